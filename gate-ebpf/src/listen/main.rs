//! Tells user space that a socket begins to listen. An object of its own: it lives only as long as
//! the process that reads it, and is never pinned.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    clippy::needless_pass_by_value,
    reason = "aya's macros make an undocumented function of each entry point, and pass contexts by \
              value"
)]

#[path = "../licence.rs"]
mod licence;

use aya_ebpf::bindings::BPF_SOCK_OPS_TCP_LISTEN_CB;
use aya_ebpf::macros::{map, sock_ops};
use aya_ebpf::maps::RingBuf;
use aya_ebpf::programs::SockOpsContext;
use gate_common::abi::LISTENS_LEN;

/// Ports at which sockets began to listen, in host byte order.
#[map]
static LISTENS: RingBuf = RingBuf::with_byte_size(LISTENS_LEN, 0);

/// Called by the kernel behind listen(2), when connections are taken already.
#[sock_ops]
pub fn gate_listen(context: SockOpsContext) -> u32 {
    if context.op() == BPF_SOCK_OPS_TCP_LISTEN_CB {
        // Full: whoever reads it has so much to look at already that it looks at everything.
        let _full = LISTENS.output::<u32>(context.local_port(), 0);
    }
    1
}
