//! What all hooks have in common: a located TCP header in, the hook's own code out.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use gate_common::abi::{Counter, Direction, HeldSyn};
use gate_common::flow::GateId;
use gate_common::parse::{Frame, Located, Packet, Syn, locate_at, locate_plain, syn_plain, untag};
use gate_common::verdict::{Verdict, Withheld, verdict};

use crate::frame::Direct;
use crate::maps::{HELD, Kernel, back, count, exact_now, miss, scratch, supersede};
use crate::room;

/// What differs from hook to hook.
pub trait Hook: EbpfContext {
    /// What the kernel wants to be told.
    type Code;

    /// Which way the packets go.
    const DIRECTION: Direction;

    /// How the packet is read.
    type Packet: Packet;

    /// The packet, looked up anew: the verifier forgets with it how far the packet was read.
    fn packet(&self) -> Self::Packet;

    /// The interface.
    fn ifindex(&self) -> u32;

    /// Whether the frame is addressed to another host, which gets it by a bridge.
    fn is_for_another(&self) -> bool;

    /// Whether the frame is addressed to all stations, or to a group of them.
    fn is_for_many(&self) -> bool;

    /// The gate whose endpoint a SYN's process asked for, where a handover sent it to a backend.
    fn asked_for(&self, syn: &Syn) -> Option<GateId>;

    /// On to whoever is next.
    fn pass(&self) -> Self::Code;

    /// Gone, and nobody is told.
    fn drop(&self) -> Self::Code;

    /// The RST that answers the SYN goes back instead of it.
    fn reject(&self, syn: &Syn) -> Self::Code;

    /// Fills in what came beside the packet, and the first `len` bytes of the
    /// frame; false where that can't be done.
    fn capture(&self, held: &mut HeldSyn, len: usize) -> bool;
}

/// Finds the TCP header behind an Ethernet header that ends in `ethertype`; none is a frame without
/// one.
#[inline(always)]
pub fn locate<H: Hook>(hook: &H, ethertype: Option<[u8; 2]>) -> Frame {
    let untagged = ethertype.and_then(|ethertype| untag(&hook.packet(), ethertype));
    let Some((ethertype, network)) = untagged else {
        return Frame::Other;
    };
    match forget(network) {
        Some(network) => locate_at(&hook.packet(), ethertype, network),
        None => Frame::Other,
    }
}

/// Judges a frame, which may be a plain one: that is read from `direct`, by known offsets.
#[inline(always)]
pub fn judge<H: Hook>(
    hook: &H,
    direct: &Direct,
    ethertype: impl Fn() -> Option<[u8; 2]>,
) -> H::Code {
    let syn = match locate_plain(direct) {
        Some(located) if !located.is_pure_syn() => return hook.pass(),
        // What lies behind the headers may be elsewhere.
        Some(located) => syn_plain(direct, located, hook.packet().len()),
        None => match locate(hook, ethertype()) {
            Frame::Tcp(located) if located.is_pure_syn() => syn(hook, located),
            Frame::Tcp(_) | Frame::Other => return hook.pass(),
            Frame::Unparsed => None,
        },
    };
    match syn {
        Some(syn) => act(hook, &syn),
        None => {
            count(GateId::HOST, Counter::Unparsed);
            hook.pass()
        }
    }
}

#[inline(always)]
fn syn<H: Hook>(hook: &H, located: Located) -> Option<Syn> {
    let located = Located {
        network: forget(located.network)?,
        transport: forget(located.transport)?,
        ..located
    };
    located.syn(&hook.packet())
}

/// All bits of an offset: six extension headers of IPv6 end before. No more than the verifier lets a
/// program go from a packet's start in one step.
const OFFSET: u32 = 0x3fff;

/// The same offset, by way of a map: what the verifier reads there it knows nothing of, so it
/// follows what comes next once, and not once for each way that a frame can nest.
#[inline(always)]
fn forget(offset: usize) -> Option<usize> {
    let room = scratch()?;
    // SAFETY: the pointer is to this CPU's own scratch value, which only this run uses;
    // volatile, so that the compiler doesn't remember either.
    let offset = unsafe {
        let len = &raw mut (*room).len;
        len.write_volatile(offset as u32);
        len.read_volatile()
    };
    // Masked and not compared: of a value that lies on the stack, the verifier of Linux 5.10 does not
    // learn what a register is compared with.
    Some((offset & OFFSET) as usize)
}

#[inline(always)]
fn act<H: Hook>(hook: &H, syn: &Syn) -> H::Code {
    let verdict = verdict(&Kernel(hook), syn, H::DIRECTION);
    log(hook, syn, &verdict);
    match verdict {
        Verdict::Pass => hook.pass(),
        Verdict::PassCounted(gate, counter) => {
            count(gate, counter);
            hook.pass()
        }
        Verdict::PassExpired(gate) => {
            count(gate, Counter::Expired);
            supersede(&syn.attempt, gate);
            hook.pass()
        }
        Verdict::PassBack(gate) => {
            count(gate, Counter::Passed);
            back(&syn.attempt, gate);
            hook.pass()
        }
        Verdict::Guard(gate, _) if !miss(&syn.attempt.flow.endpoint, gate) => {
            count(gate, Counter::Passed);
            hook.pass()
        }
        Verdict::Hold(gate) | Verdict::Guard(gate, Withheld::Kept) => {
            count(gate, hold(hook, syn, gate));
            hook.drop()
        }
        Verdict::Guard(gate, Withheld::Dropped(counter)) => {
            count(gate, counter);
            hook.drop()
        }
        Verdict::Drop(gate, counter) => {
            count(gate, counter);
            hook.drop()
        }
        Verdict::Reject(gate) => {
            count(gate, Counter::Rejected);
            hook.reject(syn)
        }
    }
}

/// For debugging: nothing of this is left in a program that was loaded without `--debug`,
/// because the verifier knows the log level and removes the branch.
#[inline(always)]
fn log<H: Hook>(hook: &H, syn: &Syn, verdict: &Verdict) {
    let (gate, what) = match *verdict {
        Verdict::Pass => return,
        Verdict::PassCounted(gate, _) => (gate, "pass"),
        Verdict::PassExpired(gate) => (gate, "pass, the lease ran out"),
        Verdict::PassBack(gate) => (gate, "pass, a socket listens again"),
        Verdict::Hold(gate) => (gate, "hold"),
        Verdict::Guard(gate, _) => (gate, "withhold, no socket listens"),
        Verdict::Drop(gate, _) => (gate, "drop"),
        Verdict::Reject(gate) => (gate, "reject"),
    };
    let flow = &syn.attempt.flow;
    debug!(
        hook,
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
fn hold<H: Hook>(hook: &H, syn: &Syn, gate: GateId) -> Counter {
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
    // Before the frame is kept: a count that is one too high because it could not be kept does less harm
    // than three more words that the verifier must follow from here on.
    if before.is_none() && !room::take(&syn.attempt.flow.source) {
        return Counter::Overflowed;
    }
    // SAFETY: the pointer is to this CPU's own scratch value, which only this run uses.
    let held = unsafe { &mut *held };
    held.arrived = arrived;
    held.refreshed = now;
    held.gate = gate;
    held.len = syn.end as u32;
    held.isn = syn.attempt.isn;
    held.direction = H::DIRECTION as u32;
    held.ifindex = hook.ifindex();
    if !hook.capture(held, syn.end) {
        return Counter::Uncaptured;
    }
    let held: &HeldSyn = held;
    match HELD.insert(syn.attempt.flow, held, 0) {
        Ok(()) => counter,
        Err(_) => Counter::Overflowed,
    }
}
