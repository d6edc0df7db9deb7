//! What a release is asked to do, and what it says of it.

use std::collections::BTreeMap;
use std::time::Duration;

use gate_common::flow::GateId;
use gate_common::state::{BootTime, StateWord};

use super::rate::Rate;
use crate::endpoint::Endpoint;

/// What a release did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// SYNs injected.
    pub injected: usize,
    /// SYNs dropped, because their checksum was wrong when they came.
    pub damaged: usize,
    /// SYNs dropped, because their interface is gone or down, or took nothing for a while.
    pub gone: usize,
    /// SYNs left to their clients' retransmissions: the lease was over and the listener took no
    /// more, or another command changed the gate.
    pub left: usize,
    /// SYNs that stay held, because the gate is guarded and nothing listens for them.
    pub guarded: usize,
    /// The longest time that one of the injected was held.
    pub longest_wait: Duration,
    /// When the gates were open.
    pub opened_at: BootTime,
}

/// How fast a release may be.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// No more than that, besides what the listeners' queues allow.
    pub rate: Option<Rate>,
    /// Endpoints that had a listener in this network namespace a moment ago. Where it is away, the
    /// release waits for it. At other endpoints without a listener it doesn't, so that clients are
    /// refused at once rather than late, as long as it hasn't seen one itself.
    pub awaited: Vec<Endpoint>,
}

/// What a release is for.
#[derive(Clone, Debug)]
pub enum Job {
    /// To open these gates, each as long as its word is this one.
    Open(BTreeMap<GateId, StateWord>),
    /// To inject what a gate holds for one endpoint, as long as its word is this one, which stays;
    /// until this moment it waits for room at the listener, and a bit longer.
    Inject {
        /// The gate.
        gate: GateId,
        /// The endpoint.
        endpoint: Endpoint,
        /// The gate's word.
        word: StateWord,
        /// The moment.
        until: BootTime,
    },
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next one is worth it after this time, which may be zero.
    Wait(Duration),
    /// All is done.
    Done(Released),
}
