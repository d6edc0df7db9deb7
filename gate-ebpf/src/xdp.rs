//! The XDP hook.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::check_bounds_signed;
use aya_ebpf::helpers::{bpf_xdp_adjust_tail, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use gate_common::abi::{Counter, FRAME_LEN, HeldSyn};
use gate_common::flow::GateId;
use gate_common::parse::{Family, Frame, Packet, Syn, locate};
use gate_common::reset;
use gate_common::verdict::{Verdict, verdict};
use network_types::eth::EthHdr;

use crate::maps::{HELD, Kernel, claim, count, exact_now, is_armed, scratch};

/// A frame in direct packet access.
struct Direct {
    start: usize,
    end: usize,
}

impl Direct {
    #[inline(always)]
    fn new(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// Overwrites the `N` bytes at `at`; false where the frame ends before.
    #[inline(always)]
    fn store<const N: usize>(&self, at: usize, bytes: [u8; N]) -> bool {
        let to = self.start + at;
        if to + N > self.end {
            return false;
        }
        // SAFETY: [to, to + N) lies within the packet, as just checked (and as the verifier
        // checks once more); a byte array has no alignment.
        unsafe { (to as *mut [u8; N]).write(bytes) };
        true
    }
}

impl Packet for Direct {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let from = self.start + at;
        if from + N > self.end {
            return None;
        }
        // SAFETY: [from, from + N) lies within the packet, as just checked (and as the
        // verifier checks once more); a byte array has no alignment.
        Some(unsafe { (from as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }
}

/// Judges one frame.
#[inline(always)]
pub fn judge(ctx: &XdpContext) -> u32 {
    if !is_armed() {
        return XDP_PASS;
    }
    let packet = Direct::new(ctx);
    let located = match locate(&packet) {
        Frame::Tcp(located) if located.is_pure_syn() => located,
        Frame::Tcp(_) | Frame::Other => return XDP_PASS,
        Frame::Unparsed => {
            count(GateId::HOST, Counter::Unparsed);
            return XDP_PASS;
        }
    };
    let Some(syn) = located.syn(&packet) else {
        count(GateId::HOST, Counter::Unparsed);
        return XDP_PASS;
    };
    act(ctx, &packet, &syn)
}

#[inline(always)]
fn act(ctx: &XdpContext, packet: &Direct, syn: &Syn) -> u32 {
    let verdict = verdict(&Kernel, syn);
    log(ctx, syn, &verdict);
    match verdict {
        Verdict::Pass => XDP_PASS,
        Verdict::PassCounted(gate, counter) => {
            count(gate, counter);
            XDP_PASS
        }
        Verdict::PassExpired(gate) => {
            count(gate, Counter::Expired);
            // SAFETY: as in `hold`; a reused slot has another ISN.
            let held = unsafe { HELD.get(syn.attempt.flow) };
            if held.is_some_and(|held| held.isn == syn.attempt.isn) {
                claim(&syn.attempt, gate);
            }
            XDP_PASS
        }
        Verdict::Hold(gate) => {
            count(gate, hold(ctx, syn, gate));
            XDP_DROP
        }
        Verdict::Drop(gate, counter) => {
            count(gate, counter);
            XDP_DROP
        }
        Verdict::Reject(gate) => {
            count(gate, Counter::Rejected);
            reject(ctx, packet, syn)
        }
    }
}

/// For debugging: nothing of this is left in a program that was loaded without `--debug`,
/// because the verifier knows the log level and removes the branch.
#[inline(always)]
fn log(ctx: &XdpContext, syn: &Syn, verdict: &Verdict) {
    let (gate, what) = match *verdict {
        Verdict::Pass => return,
        Verdict::PassCounted(gate, _) => (gate, "pass"),
        Verdict::PassExpired(gate) => (gate, "pass, the lease ran out"),
        Verdict::Hold(gate) => (gate, "hold"),
        Verdict::Drop(gate, _) => (gate, "drop"),
        Verdict::Reject(gate) => (gate, "reject"),
    };
    let flow = &syn.attempt.flow;
    debug!(
        ctx,
        "gate {}: SYN from {:i} port {} to {:i} port {}: {}",
        gate.0,
        flow.source.octets(),
        flow.source_port.number(),
        flow.endpoint.address.octets(),
        flow.endpoint.port.number(),
        what
    );
}

/// Keeps the frame, and says what to count for it.
#[inline(always)]
fn hold(ctx: &XdpContext, syn: &Syn, gate: GateId) -> Counter {
    let Some(held) = scratch() else {
        return Counter::Overflowed;
    };
    let now = exact_now().0;
    // SAFETY: a pointer is to a map value. Should its slot be reused this moment, the worst is
    // another flow's arrival time.
    let before = unsafe { HELD.get(syn.attempt.flow) };
    let (arrived, counter) = match before {
        Some(before) if before.isn == syn.attempt.isn => (before.arrived, Counter::Refreshed),
        _ => (now, Counter::Held),
    };
    // SAFETY: the pointer is to this CPU's own scratch value, which only this run uses.
    let held = unsafe { &mut *held };
    held.arrived = arrived;
    held.refreshed = now;
    held.gate = gate;
    held.ifindex = ctx.ingress_ifindex() as u32;
    held.len = syn.end as u32;
    held.isn = syn.attempt.isn;
    let len = syn.end as i64;
    // SAFETY: `len` bytes fit the frame's array, as checked for the verifier's sake once more.
    let copied = check_bounds_signed(len, 1, FRAME_LEN as i64)
        && unsafe {
            bpf_xdp_load_bytes(ctx.ctx, 0, held.frame.as_mut_ptr().cast(), len as u32) == 0
        };
    if !copied {
        return Counter::Uncaptured;
    }
    let held: &HeldSyn = held;
    match HELD.insert(syn.attempt.flow, held, 0) {
        Ok(()) => counter,
        Err(_) => Counter::Overflowed,
    }
}

/// Turns the SYN into the RST that answers it, and sends it back.
#[inline(always)]
fn reject(ctx: &XdpContext, packet: &Direct, syn: &Syn) -> u32 {
    // Shorter frames than Ethernet's least need padding again.
    const MIN_FRAME: usize = 60;
    let network = syn.at.network;
    let (written, len) = match syn.at.family {
        Family::V4 => (
            packet.store(network, reset::v4(syn)),
            network + reset::V4_LEN,
        ),
        Family::V6 => (
            packet.store(network, reset::v6(syn)),
            network + reset::V6_LEN,
        ),
    };
    let (Some(destination), Some(source)) = (packet.load::<6>(0), packet.load::<6>(6)) else {
        return XDP_DROP;
    };
    if !(written && packet.store(0, source) && packet.store(6, destination)) {
        return XDP_DROP;
    }
    let old = packet.len();
    let new = if len < MIN_FRAME && old >= MIN_FRAME {
        for at in len..MIN_FRAME {
            packet.store(at, [0]);
        }
        MIN_FRAME
    } else {
        len
    };
    // SAFETY: the context is this run's own; no packet pointer is used after the call.
    let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, new as i32 - old as i32) };
    if cut == 0 { XDP_TX } else { XDP_DROP }
}

const _: () = assert!(EthHdr::LEN == 14 && FRAME_LEN >= 60);
