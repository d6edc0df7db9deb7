//! The one decision function. It runs in the BPF programs and in tests; hooks only
//! translate its answer.

use crate::abi::{CAPTURE_LEN, Counter, Direction};
use crate::flow::{AttemptKey, EndpointKey, FlowKey, GateId, Port, PortEntry};
use crate::parse::Syn;
use crate::state::{BootTime, Closed, Effective, StateWord};

/// The maps and the clock, as a verdict reads them.
pub trait Tables {
    /// What is known of a port.
    fn port(&self, port: Port) -> PortEntry;
    /// The gate of an endpoint with an address.
    fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId>;
    /// A gate's state word; open for a gate that isn't there.
    fn state(&self, gate: GateId) -> StateWord;
    /// Whether a SYN that came in is for this host, and not one that it forwards.
    fn is_for_this_host(&self, syn: &Syn) -> bool;
    /// Whether this is one of the gate's own health checks.
    fn is_check(&self, flow: &FlowKey) -> bool;
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
    /// Keep the frame, or drop it where that fails.
    Hold(GateId),
    /// Drop it silently, and count why.
    Drop(GateId, Counter),
    /// Answer with a RST.
    Reject(GateId),
}

/// Judges a SYN. The exact endpoint goes before the wildcard, and a closed gate before an
/// open one: whoever closes `*:80` closes it for addresses that have a gate of their own. A
/// wildcard stands for the addresses of this host, so what goes out or is forwarded is none of its
/// business.
#[inline(always)]
pub fn verdict<T: Tables>(tables: &T, syn: &Syn, direction: Direction) -> Verdict {
    let endpoint = &syn.attempt.flow.endpoint;
    let port = tables.port(endpoint.port);
    let exact = match port.has_exact() {
        true => look_up(tables, tables.gate_of(endpoint)),
        false => None,
    };
    let wildcard = match direction {
        Direction::Ingress => look_up(tables, port.wildcard()),
        Direction::Egress => None,
    };
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
    match exact.or(wildcard) {
        // Of a wildcard that doesn't stand for the destination.
        None | Some((_, _, Effective::Closed(_))) => Verdict::Pass,
        Some((gate, _, Effective::Open)) => Verdict::PassCounted(gate, Counter::Passed),
        Some((gate, _, Effective::Expired)) => Verdict::PassExpired(gate),
    }
}

#[inline(always)]
fn look_up<T: Tables>(tables: &T, gate: Option<GateId>) -> Option<(GateId, StateWord, Effective)> {
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
    match closed {
        Closed::Drop => Verdict::Drop(gate, Counter::Dropped),
        Closed::Reject => Verdict::Reject(gate),
        Closed::Hold if tables.is_released(&syn.attempt) => {
            Verdict::PassCounted(gate, Counter::Replayed)
        }
        // The client sends data in a SYN once, and retries without.
        Closed::Hold if syn.payload > 0 || syn.end > CAPTURE_LEN => {
            Verdict::Drop(gate, Counter::Uncaptured)
        }
        Closed::Hold => Verdict::Hold(gate),
    }
}
