//! Gate's data path. Entry points only: each hook translates its context to a frame, asks
//! [`gate_common::verdict`], and translates the verdict back.
#![no_std]
#![no_main]
// Only there: what clippy checks is a program for the host, by a compiler that is stable.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    missing_docs,
    clippy::needless_pass_by_value,
    reason = "aya's macros make an undocumented function of each entry point, and pass contexts by \
              value"
)]

mod endpoints;
mod frame;
mod hook;
mod licence;
mod listeners;
mod maps;
mod peers;
mod replay;
mod room;
mod routes;
mod tc;
mod xdp;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Judges the SYNs that come in on a NIC.
#[xdp]
#[inline(always)]
pub fn gate_xdp(ctx: XdpContext) -> u32 {
    xdp::judge(&ctx)
}

/// Judges the SYNs that come in on any interface.
#[classifier]
#[inline(always)]
pub fn gate_tc_ingress(ctx: TcContext) -> i32 {
    tc::judge::<false>(&ctx)
}

/// Judges the SYNs that go out.
#[classifier]
#[inline(always)]
pub fn gate_tc_egress(ctx: TcContext) -> i32 {
    tc::judge::<true>(&ctx)
}

/// Injects one held SYN a run. Never attached, only run by `BPF_PROG_TEST_RUN`.
#[classifier]
#[inline(always)]
pub fn gate_replay(ctx: TcContext) -> i32 {
    replay::next(&ctx)
}
