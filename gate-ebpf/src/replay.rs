//! Injection of held SYNs: one `BPF_PROG_TEST_RUN` call with live frames runs this program
//! once a frame, and each run becomes the next frame of `REPLAY`.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::check_bounds_signed;
use aya_ebpf::helpers::{bpf_xdp_adjust_tail, bpf_xdp_store_bytes};
use aya_ebpf::programs::XdpContext;
use gate_common::abi::{Counter, FRAME_LEN};

use crate::maps::{claim, count, next_replay};

/// Turns the run's frame into the next held SYN and passes it to the stack, as if it had
/// just come in on the context's interface. The run's frame must be [`FRAME_LEN`] long.
#[inline(always)]
pub fn next(ctx: &XdpContext) -> u32 {
    let Some(replay) = next_replay() else {
        return XDP_DROP;
    };
    // SAFETY: the pointer is to a map value that nobody writes during the call.
    let replay = unsafe { &*replay };
    let len = i64::from(replay.len);
    if !check_bounds_signed(len, 60, FRAME_LEN as i64) || !claim(&replay.attempt, replay.gate) {
        return XDP_DROP;
    }
    // SAFETY: the context is this run's own; no packet pointer is used after the calls, and
    // `len` bytes of the frame are within its array, as just checked.
    let stored = unsafe {
        bpf_xdp_adjust_tail(ctx.ctx, len as i32 - FRAME_LEN as i32) == 0
            && bpf_xdp_store_bytes(
                ctx.ctx,
                0,
                replay.frame.as_ptr().cast_mut().cast(),
                len as u32,
            ) == 0
    };
    if !stored {
        return XDP_DROP;
    }
    count(replay.gate, Counter::Released);
    XDP_PASS
}
