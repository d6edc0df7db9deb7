//! Gate's programs on sockets: which listener a new connection gets, and where one that is made goes. An object of its own, because
//! only a handover or an alias needs it, at once, and not every kernel that can hold has its maps.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    clippy::needless_pass_by_value,
    reason = "aya's macros make an undocumented function of each entry point, and pass contexts by \
              value"
)]

mod connect;
#[path = "../endpoints.rs"]
mod endpoints;
#[path = "../licence.rs"]
mod licence;
mod lookup;
mod maps;
#[path = "../peers.rs"]
mod peers;

use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext};

/// Chooses the listening socket for a connection that comes in.
#[sk_lookup]
pub fn gate_sk_lookup(ctx: SkLookupContext) -> u32 {
    lookup::choose(&ctx)
}

/// The answer that lets a call go on.
const GO_ON: i32 = 1;

/// Chooses the backend for a connection that is made from here, by IPv4.
#[cgroup_sock_addr(connect4)]
pub fn gate_connect4(ctx: SockAddrContext) -> i32 {
    connect::send::<false>(&ctx);
    GO_ON
}

/// As [`gate_connect4`], for IPv6 sockets.
#[cgroup_sock_addr(connect6)]
pub fn gate_connect6(ctx: SockAddrContext) -> i32 {
    connect::send::<true>(&ctx);
    GO_ON
}

/// Tells a process the address that it asked for.
#[cgroup_sock_addr(getpeername4)]
pub fn gate_getpeername4(ctx: SockAddrContext) -> i32 {
    connect::name::<false>(&ctx);
    GO_ON
}

/// As [`gate_getpeername4`], for IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn gate_getpeername6(ctx: SockAddrContext) -> i32 {
    connect::name::<true>(&ctx);
    GO_ON
}
