//! Injection of held SYNs: one `BPF_PROG_TEST_RUN` call runs this program once a frame, and
//! each run puts the next frame of `REPLAY` back where it was taken from.

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_OK};
use aya_ebpf::check_bounds_signed;
use aya_ebpf::helpers::{bpf_skb_change_tail, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use gate_common::abi::{Block, Counter, Cursor, FRAME_LEN, ReplayFrame, Way};
use gate_common::flow::FlowKey;
use gate_common::parse::Family;

use crate::listeners;
use crate::maps::{CURSOR, Claim, REPLAY, claim, count, unclaim};

/// Turns the run's packet into the next held SYN and lets a copy of it come in on its
/// interface, or go out. What can't be taken (the CPU's backlog is full, the interface is gone, nobody
/// listens for it) blocks the cursor, for user space to look at.
#[inline(always)]
pub fn next(ctx: &TcContext) -> i32 {
    if let Some(cursor) = CURSOR.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map value that only the one injecting call uses.
        let cursor = unsafe { &mut *cursor };
        step(ctx, cursor);
    }
    TC_ACT_OK
}

#[inline(always)]
fn step(ctx: &TcContext, cursor: &mut Cursor) {
    if cursor.blocked != Block::No as u32 {
        return;
    }
    let Some(replay) = REPLAY.get_ptr(cursor.next) else {
        return;
    };
    // SAFETY: the pointer is to a map value that nobody writes during the call.
    let replay = unsafe { &*replay };
    // As late as can be: user space looked a while ago, and a listener may close at any time.
    if replay.awaits != 0 && !is_awaited_there(ctx, &replay.attempt.flow) {
        cursor.blocked = Block::Nobody as u32;
        return;
    }
    match claim(&replay.attempt, replay.gate) {
        Claim::Won if replay.way == Way::Claim as u32 || inject(ctx, replay) => {
            cursor.injected += 1;
            count(replay.gate, Counter::Released);
        }
        Claim::Won => {
            unclaim(&replay.attempt);
            cursor.blocked = Block::Full as u32;
            return;
        }
        Claim::Lost => {}
        Claim::Full => {
            cursor.blocked = Block::Full as u32;
            return;
        }
    }
    cursor.next += 1;
}

/// Whether the listener that a frame awaits is there.
#[inline(always)]
fn is_awaited_there(ctx: &TcContext, flow: &FlowKey) -> bool {
    let family = match flow.endpoint.address.is_v4() {
        true => Family::V4,
        false => Family::V6,
    };
    listeners::is_there(ctx, flow, family)
}

#[inline(always)]
fn inject(ctx: &TcContext, replay: &ReplayFrame) -> bool {
    let len = i64::from(replay.len);
    if !check_bounds_signed(len, 60, FRAME_LEN as i64) {
        return false;
    }
    // SAFETY: the context is this run's own, and `len` bytes of the frame are within its
    // array, as just checked.
    let built = unsafe {
        bpf_skb_change_tail(ctx.skb.skb, len as u32, 0) == 0
            && bpf_skb_store_bytes(ctx.skb.skb, 0, replay.frame.as_ptr().cast(), len as u32, 0) == 0
    };
    let flags = match replay.way == Way::Out as u32 {
        true => 0,
        false => u64::from(BPF_F_INGRESS),
    };
    // SAFETY: the context is this run's own.
    unsafe {
        (*ctx.skb.skb).mark = replay.mark;
        (*ctx.skb.skb).priority = replay.priority;
    }
    built && ctx.clone_redirect(replay.ifindex, flags).is_ok()
}
