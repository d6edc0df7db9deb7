//! Takes a service out of a balancer's rotation by its status ports, and back.

use super::{
    AliasError, Gate, Kind, StatusPort, Target, add::nothing_listens, bring_back, withdraw,
};
use crate::clock;
use crate::error::Result;
use crate::gates;
use crate::handover;
use crate::pins::{Lock, Pins};
use crate::sockets::{self, Backend};
use crate::steering;
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

/// What [`soft_stop`] or [`soft_start`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Softened {
    /// The gates, with their status ports as they are now.
    pub gates: Vec<Gate>,
    /// Whether all were just so before.
    pub already: bool,
}

/// Withdraws the status ports of these gates: from now on new connections to them are refused at
/// once. The gates' endpoints go on, and so does what is connected.
///
/// # Errors
/// [`AliasError::None`], and then nothing is changed; those of the maps.
pub fn soft_stop(pins: &Pins, targets: &[Target]) -> Result<Softened> {
    let lock = pins.lock()?;
    let (mut tables, gates) = find(pins, &lock, targets)?;
    steering::attach_lookup(pins, &lock)?;
    let already = ports(&gates).all(|(_, port)| port.is_withdrawn);
    if let Some(mut handovers) = Handovers::open(pins)? {
        for (gate, port) in ports(&gates) {
            withdraw(&mut handovers, &lock, &mut tables, (gate.id, port))?;
        }
    }
    again(pins, &tables, targets, already)
}

/// Brings the status ports of these gates back, with the sockets that listen now.
///
/// # Errors
/// [`AliasError::None`], [`BackendError::NothingListens`](crate::error::BackendError) where nothing
/// could answer, and then nothing is changed; those of the maps.
pub fn soft_start(pins: &Pins, targets: &[Target]) -> Result<Softened> {
    let lock = pins.lock()?;
    let (mut tables, gates) = find(pins, &lock, targets)?;
    let already = ports(&gates).all(|(_, port)| !port.is_withdrawn);
    let Some(mut handovers) = Handovers::open(pins)? else {
        return again(pins, &tables, targets, already);
    };
    let mut found: Vec<(&Gate, StatusPort, Option<Backend>)> = Vec::new();
    for (gate, port) in ports(&gates) {
        let backend = match port.kind {
            Kind::Alias => sockets::take_if_any(port.of)?,
            Kind::Existing => None,
        };
        let answers = backend.is_some() || port.kind == Kind::Existing;
        if !answers && !handover::has_backend(&handovers, gate.id)? {
            return Err(nothing_listens(port.of)?);
        }
        found.push((gate, port, backend));
    }
    steering::attach_lookup(pins, &lock)?;
    for (gate, port, backend) in found {
        if port.kind == Kind::Alias {
            handovers.enter(&lock, port.of.into(), backend.as_slice())?;
        }
        bring_back(&mut handovers, &lock, &mut tables, (gate.id, port))?;
    }
    again(pins, &tables, targets, already)
}

/// The gates that are meant, each of which has a status port.
fn find(pins: &Pins, lock: &Lock, targets: &[Target]) -> Result<(Tables, Vec<Gate>)> {
    let mut tables = Tables::open(pins)?;
    let gates = gates::find(pins, &tables, targets)?;
    for target in targets {
        // An endpoint that never had a gate has none of these either.
        let has_some = |gate: &Gate| match target {
            Target::Named(name) => gate.name.as_ref() == Some(name),
            Target::Endpoint(endpoint) => gate.endpoints.contains(endpoint),
        };
        let found = gates.iter().find(|gate| has_some(gate));
        if found.is_none_or(|gate| gate.aliases.is_empty()) {
            let gate = target.to_string();
            return Err(AliasError::None { gate }.into());
        }
    }
    tables.settle(lock, clock::now())?;
    Ok((tables, gates))
}

fn ports(gates: &[Gate]) -> impl Iterator<Item = (&Gate, StatusPort)> {
    gates
        .iter()
        .flat_map(|gate| gate.aliases.iter().map(move |port| (gate, *port)))
}

fn again(pins: &Pins, tables: &Tables, targets: &[Target], already: bool) -> Result<Softened> {
    let gates = gates::find(pins, tables, targets)?;
    Ok(Softened { gates, already })
}
