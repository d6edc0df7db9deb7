//! Backends that came back: their listening sockets are others than those that were handed to.

use std::collections::BTreeSet;

use gate_common::flow::{EndpointKey, GateId};
use gate_common::handover::{Share, Split, Steered};

use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::pins::{Lock, Pins};
use crate::sockets;
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

/// Where what listens takes the new connections for `endpoint`: the backends of its gate, or the
/// endpoint itself.
///
/// # Errors
/// Those of the maps.
pub fn takers(
    tables: &Tables,
    handovers: Option<&Handovers>,
    endpoint: Endpoint,
) -> Result<BTreeSet<Endpoint>> {
    let own = BTreeSet::from([endpoint]);
    let (Some(handovers), Some(gate)) = (handovers, tables.gate_of(endpoint)?) else {
        return Ok(own);
    };
    let Some(split) = split(handovers, gate)? else {
        return Ok(own);
    };
    let mut takers = BTreeSet::new();
    for share in split.used() {
        match share.is_own() {
            true => drop(takers.insert(endpoint)),
            false => takers.extend(addresses(share)),
        }
    }
    Ok(takers)
}

/// Whether some backend of a gate is known by a socket that listens.
///
/// # Errors
/// Those of the maps.
pub fn has_backend(handovers: &Handovers, gate: GateId) -> Result<bool> {
    for share in backends(handovers, gate)? {
        if handovers.listening(share.backend)? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether some backend of these gates is known by no socket that still listens.
///
/// # Errors
/// Those of the maps.
pub fn is_lost(handovers: &Handovers, gates: &BTreeSet<GateId>) -> Result<bool> {
    for gate in gates {
        for share in backends(handovers, *gate)? {
            if handovers.listening(share.backend)? == 0 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Enters the listening sockets anew of backends that are known by none. Returns the backends where
/// nothing listens.
///
/// # Errors
/// Those of the maps, and where what listens can't be had.
pub fn renew(pins: &Pins, lock: &Lock, gates: &BTreeSet<GateId>) -> Result<Vec<Endpoint>> {
    let mut silent = Vec::new();
    let Some(mut handovers) = Handovers::open(pins)? else {
        return Ok(silent);
    };
    for gate in gates {
        for share in backends(&handovers, *gate)? {
            if handovers.listening(share.backend)? > 0 {
                continue;
            }
            let mut taken = Vec::new();
            for at in addresses(&share) {
                match sockets::take_if_any(at)? {
                    Some(backend) => taken.push(backend),
                    None => silent.push(at),
                }
            }
            handovers.enter(lock, share.backend, &taken)?;
        }
    }
    Ok(silent)
}

/// The split of a gate that is handed over by the look-up of listeners.
fn split(handovers: &Handovers, gate: GateId) -> Result<Option<Split>> {
    let split = handovers.split(gate)?;
    Ok(split.filter(|split| split.is_by(Steered::Lookup)))
}

fn backends(handovers: &Handovers, gate: GateId) -> Result<Vec<Share>> {
    let split = split(handovers, gate)?;
    Ok(split.iter().flat_map(Split::others).copied().collect())
}

/// All addresses of a share's backend.
pub(super) fn addresses(share: &Share) -> impl Iterator<Item = Endpoint> {
    let all = [share.backend, share.also].into_iter();
    all.filter(|key| *key != EndpointKey::NONE)
        .map(Endpoint::from)
}
