//! The one decision function. It runs in the BPF programs and in tests; hooks only
//! translate its answer.

use crate::abi::{Counter, FRAME_LEN};
use crate::flow::{AttemptKey, EndpointKey, GateId, Port, PortEntry};
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
/// open one: whoever closes `*:80` closes it for addresses that have a gate of their own.
#[inline(always)]
pub fn verdict<T: Tables>(tables: &T, syn: &Syn) -> Verdict {
    let endpoint = &syn.attempt.flow.endpoint;
    let port = tables.port(endpoint.port);
    let exact = match port.has_exact() {
        true => look_up(tables, tables.gate_of(endpoint)),
        false => None,
    };
    if let Some((gate, Effective::Closed(closed))) = exact {
        return judge(tables, syn, gate, closed);
    }
    let wildcard = look_up(tables, port.wildcard());
    if let Some((gate, Effective::Closed(closed))) = wildcard {
        return judge(tables, syn, gate, closed);
    }
    match exact.or(wildcard) {
        None | Some((_, Effective::Closed(_))) => Verdict::Pass,
        Some((gate, Effective::Open)) => Verdict::PassCounted(gate, Counter::Passed),
        Some((gate, Effective::Expired)) => Verdict::PassExpired(gate),
    }
}

#[inline(always)]
fn look_up<T: Tables>(tables: &T, gate: Option<GateId>) -> Option<(GateId, Effective)> {
    let gate = gate?;
    Some((gate, tables.state(gate).at(|| tables.now())))
}

#[inline(always)]
fn judge<T: Tables>(tables: &T, syn: &Syn, gate: GateId, closed: Closed) -> Verdict {
    match closed {
        Closed::Drop => Verdict::Drop(gate, Counter::Dropped),
        Closed::Reject => Verdict::Reject(gate),
        Closed::Hold if tables.is_released(&syn.attempt) => {
            Verdict::PassCounted(gate, Counter::Replayed)
        }
        // The client sends data in a SYN once, and retries without.
        Closed::Hold if syn.payload > 0 || syn.end > FRAME_LEN => {
            Verdict::Drop(gate, Counter::Uncaptured)
        }
        Closed::Hold => Verdict::Hold(gate),
    }
}
