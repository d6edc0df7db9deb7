//! Backends that came back: their listening sockets are others than those that were handed to.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use gate_common::flow::{EndpointKey, GateId};
use gate_common::handover::{Share, Steered};

use crate::endpoint::Endpoint;
use crate::error::{BackendError, Error, Result};
use crate::pins::{Lock, Pins};
use crate::sockets::{self, Backend};
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
    let shares = shares(handovers, gate)?;
    if shares.is_empty() {
        return Ok(own);
    }
    let mut takers = BTreeSet::new();
    for share in shares {
        match share.flags & Share::OWN {
            0 => takers.extend(addresses(&share)),
            _ => drop(takers.insert(endpoint)),
        }
    }
    Ok(takers)
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
                match take(at)? {
                    Some(backend) => taken.push(backend),
                    None => silent.push(at),
                }
            }
            let sockets = taken.iter().flat_map(|backend| &backend.sockets);
            let sockets: Vec<_> = sockets
                .map(|taken| (taken.socket.endpoint().into(), taken.fd.as_fd()))
                .collect();
            handovers.enter(lock, share.backend, sockets.into_iter())?;
        }
    }
    Ok(silent)
}

/// What listens there; none where nothing does.
fn take(at: Endpoint) -> Result<Option<Backend>> {
    match sockets::take(at, None) {
        Ok(backend) => Ok(Some(backend)),
        Err(Error::Backend(BackendError::NothingListens { .. } | BackendError::OnlyUdp { .. })) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The shares of a gate that is handed over by the look-up of listeners.
fn shares(handovers: &Handovers, gate: GateId) -> Result<Vec<Share>> {
    let split = handovers.split(gate)?;
    let split = split.filter(|split| split.hook == Steered::Lookup as u32);
    let shares = split.into_iter().flat_map(|split| split.shares);
    Ok(shares.filter(|share| share.limit > 0).collect())
}

fn backends(handovers: &Handovers, gate: GateId) -> Result<Vec<Share>> {
    let mut shares = shares(handovers, gate)?;
    shares.retain(|share| share.flags & Share::OWN == 0);
    Ok(shares)
}

/// All addresses of a share's backend.
pub(super) fn addresses(share: &Share) -> impl Iterator<Item = Endpoint> {
    let all = [share.backend, share.also].into_iter();
    all.filter(|key| *key != EndpointKey::NONE)
        .map(Endpoint::from)
}
