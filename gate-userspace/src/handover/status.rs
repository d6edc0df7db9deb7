//! What is handed over now, read from the maps.

use gate_common::flow::GateId;
use gate_common::handover::Steered;

use super::portions;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::tables::handovers::Handovers;

/// How a gate is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverStatus {
    /// By which hook.
    pub hook: Steered,
    /// Who gets new connections.
    pub to: Vec<ToStatus>,
}

/// One that gets a part of a gate's new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToStatus {
    /// Its address.
    pub backend: Endpoint,
    /// Its weight.
    pub weight: u32,
    /// Whether it is the gate's own listener.
    pub is_own: bool,
    /// How many of its sockets still listen; none where that isn't known here.
    pub listening: Option<usize>,
}

/// How a gate is handed over; none where it isn't.
///
/// # Errors
/// Those of the maps.
pub fn status(handovers: &Handovers, gate: GateId) -> Result<Option<HandoverStatus>> {
    let Some(split) = handovers.split(gate)? else {
        return Ok(None);
    };
    let hook = match split.is_by(Steered::Connect) {
        true => Steered::Connect,
        false => Steered::Lookup,
    };
    let mut to = Vec::new();
    for (backend, weight, is_own) in portions(&split) {
        let listening = match hook {
            Steered::Lookup if !is_own => Some(handovers.listening(backend.into())?),
            Steered::Lookup | Steered::Connect => None,
        };
        to.push(ToStatus {
            backend,
            weight,
            is_own,
            listening,
        });
    }
    Ok(Some(HandoverStatus { hook, to }))
}
