//! Gate's programs on sockets: which listener a new connection gets. An object of its own, because
//! only a handover or an alias needs it, at once, and not every kernel that can hold has its maps.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    clippy::needless_pass_by_value,
    reason = "aya's macros make an undocumented function of each entry point, and pass contexts by \
              value"
)]

#[path = "../endpoints.rs"]
mod endpoints;
mod lookup;
mod maps;

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;

/// Chooses the listening socket for a connection that comes in.
#[sk_lookup]
pub fn gate_sk_lookup(ctx: SkLookupContext) -> u32 {
    lookup::choose(&ctx)
}

/// The helpers that need a GPL-compatible program are open to this licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
