//! The one decision function. It runs in the BPF programs and in tests; hooks only
//! translate its answer.

use crate::abi::{CAPTURE_LEN, Counter, Direction, Guard, Missing};
use crate::flow::{Address, AttemptKey, EndpointKey, FlowKey, GateId, Port, PortEntry};
use crate::parse::Syn;
use crate::state::{BootTime, Closed, Effective, StateWord};

/// The maps and the clock, as a verdict reads them.
pub trait Tables {
    /// What is known of a port.
    fn port(&self, port: Port) -> PortEntry;
    /// The gate of an endpoint with an address.
    fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId>;
    /// The gate whose endpoint a SYN's process asked for, where the connection was sent to a backend
    /// instead.
    fn asked_for(&self, syn: &Syn) -> Option<GateId>;
    /// A gate's state word; open for a gate that isn't there.
    fn state(&self, gate: GateId) -> StateWord;
    /// Whether a SYN that came in is for this host, and not one that it forwards.
    fn is_for_this_host(&self, syn: &Syn) -> bool;
    /// Whether the frame is addressed to all stations, or to a group of them.
    fn is_for_many(&self) -> bool;
    /// Whether this is one of the gate's own health checks.
    fn is_check(&self, flow: &FlowKey) -> bool;
    /// Whether the gate lets this source pass.
    fn is_allowed(&self, gate: GateId, source: &Address) -> bool;
    /// Whether a socket listens for a SYN that came in.
    fn has_listener(&self, syn: &Syn) -> bool;
    /// How a gate is guarded.
    fn guard(&self, gate: GateId) -> Guard;
    /// Since when nothing listens at a guarded destination.
    fn missing(&self, endpoint: &EndpointKey) -> Option<Missing>;
    /// Whether this attempt was injected already.
    fn is_released(&self, attempt: &AttemptKey) -> bool;
    /// The time.
    fn now(&self) -> BootTime;
}

/// What becomes of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No gate knows the endpoint: pass, nothing to count.
    Pass,
    /// Pass and count.
    PassCounted(GateId, Counter),
    /// Pass because the lease ran out. A copy that is still held must not follow.
    PassExpired(GateId),
    /// Pass, after a time when perhaps no socket listened: that is over, and a copy that is still
    /// held must not follow.
    PassBack(GateId),
    /// Keep the frame, or drop it where that fails.
    Hold(GateId),
    /// Note that nobody listens, and withhold the SYN. Pass where that can't be noted: the lease
    /// would never end.
    Guard(GateId, Withheld),
    /// Drop it silently, and count why.
    Drop(GateId, Counter),
    /// Answer with a RST.
    Reject(GateId),
}

/// How a SYN that finds no listener is withheld.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// As by [`Verdict::Hold`].
    Kept,
    /// As by [`Verdict::Drop`].
    Dropped(Counter),
}

/// A gate that some SYN may belong to.
type Known = (GateId, StateWord, Effective);

/// Judges a SYN. The exact endpoint goes before the wildcard, a closed gate before a guarded one,
/// and that before an open one: whoever closes `*:80` closes it for addresses that have a gate of
/// their own. A wildcard stands for the addresses of this host, so what goes out or is forwarded is
/// none of its business. What was sent to a backend is judged as if it went where its process wanted,
/// unless the backend's own gate is closed. What many stations get passes: TCP is between two, the
/// stack drops it without a word, and if each of them answered, one SYN would be answered by all.
#[inline(always)]
pub fn verdict<T: Tables>(tables: &T, syn: &Syn, direction: Direction) -> Verdict {
    let endpoint = &syn.attempt.flow.endpoint;
    let port = tables.port(endpoint.port);
    let exact = match port.has_exact() {
        true => look_up(tables, tables.gate_of(endpoint)),
        false => None,
    };
    let exact = match exact {
        Some((_, _, Effective::Closed(_))) => exact,
        _ => look_up(tables, tables.asked_for(syn)).or(exact),
    };
    let wildcard = match direction {
        Direction::Ingress => look_up(tables, port.wildcard()),
        Direction::Egress => None,
    };
    if exact.or(wildcard).is_none() || tables.is_for_many() {
        return Verdict::Pass;
    }
    let closed = match (exact, wildcard) {
        (Some((gate, word, Effective::Closed(closed))), _) => Some((gate, word, closed)),
        (_, Some((gate, word, Effective::Closed(closed)))) if tables.is_for_this_host(syn) => {
            Some((gate, word, closed))
        }
        _ => None,
    };
    if let Some((gate, word, closed)) = closed {
        return judge(tables, syn, gate, word, closed);
    }
    match guarded(exact).or_else(|| guarded(wildcard)) {
        Some(known) if direction == Direction::Ingress => return guard(tables, syn, known),
        _ => {}
    }
    match exact.or(wildcard) {
        // Of a wildcard that doesn't stand for the destination.
        None | Some((_, _, Effective::Closed(_))) => Verdict::Pass,
        Some((gate, _, Effective::Open)) => Verdict::PassCounted(gate, Counter::Passed),
        Some((gate, _, Effective::Expired)) => Verdict::PassExpired(gate),
    }
}

#[inline(always)]
fn look_up<T: Tables>(tables: &T, gate: Option<GateId>) -> Option<Known> {
    let gate = gate?;
    let word = tables.state(gate);
    Some((gate, word, word.at(|| tables.now())))
}

#[inline(always)]
fn judge<T: Tables>(
    tables: &T,
    syn: &Syn,
    gate: GateId,
    word: StateWord,
    closed: Closed,
) -> Verdict {
    if word.lets_checks_pass() && tables.is_check(&syn.attempt.flow) {
        return Verdict::PassCounted(gate, Counter::Checked);
    }
    if word.lets_allowed_pass() && tables.is_allowed(gate, &syn.attempt.flow.source) {
        return Verdict::PassCounted(gate, Counter::Allowed);
    }
    match closed {
        Closed::Drop => Verdict::Drop(gate, Counter::Dropped),
        Closed::Reject => Verdict::Reject(gate),
        Closed::Hold if tables.is_released(&syn.attempt) => {
            Verdict::PassCounted(gate, Counter::Replayed)
        }
        Closed::Hold if !can_be_kept(syn) => Verdict::Drop(gate, Counter::Uncaptured),
        Closed::Hold => Verdict::Hold(gate),
    }
}

/// Whether a SYN can be replayed later. One with data can't: its client sends them once, and retries
/// without.
#[inline(always)]
fn can_be_kept(syn: &Syn) -> bool {
    syn.payload == 0 && syn.end <= CAPTURE_LEN
}

/// The gate, where it is one that listeners decide for.
#[inline(always)]
fn guarded(known: Option<Known>) -> Option<Known> {
    known.filter(|(_, word, state)| match state {
        Effective::Open | Effective::Expired => word.is_guarded(),
        Effective::Closed(_) => false,
    })
}

/// Judges a SYN for a guarded gate. Whether it is for this host, whose sockets are all that can be
/// asked for, is looked at last: that costs the most.
#[inline(always)]
fn guard<T: Tables>(tables: &T, syn: &Syn, (gate, _, state): Known) -> Verdict {
    let Guard { lease, dirty } = tables.guard(gate);
    if tables.has_listener(syn) || !tables.is_for_this_host(syn) {
        return match (state, dirty) {
            (Effective::Open, 0) => Verdict::PassCounted(gate, Counter::Passed),
            _ => Verdict::PassBack(gate),
        };
    }
    // It is to find out that nothing listens, and no client waits for it.
    if tables.is_check(&syn.attempt.flow) {
        return Verdict::PassCounted(gate, Counter::Checked);
    }
    let missing = tables.missing(&syn.attempt.flow.endpoint);
    let is_over = |missing: Missing| tables.now().0.saturating_sub(missing.since) >= lease;
    if missing.is_some_and(is_over) {
        return Verdict::PassExpired(gate);
    }
    let withheld = if !can_be_kept(syn) {
        Withheld::Dropped(Counter::Uncaptured)
    } else if tables.is_released(&syn.attempt) {
        // The listener that it was released to is gone again. The client's next one is kept.
        Withheld::Dropped(Counter::Dropped)
    } else {
        Withheld::Kept
    };
    Verdict::Guard(gate, withheld)
}
