//! Status ports: addresses by which a balancer asks whether a gate's service is to be used.
//!
//! An alias is answered by the listener of one of the gate's endpoints, as if that were bound there
//! as well. It is closed, guarded and drained with its gate: while it answers, `ENDPOINTS` leads from
//! it to the gate. Withdrawn, it is refused at once, so then nothing leads from it. An existing status
//! port has a listener of its own, and all that is done is to refuse it.

use std::collections::{BTreeMap, BTreeSet};

use gate_common::flow::{EndpointKey, GateId};
use gate_common::handover::Alias;

use crate::endpoint::Endpoint;
use crate::error::{AliasError, Error, Result};
use crate::gates::{self, Gate, Target};
use crate::handover;
use crate::pins::{Lock, Pins};
use crate::sockets;
use crate::steering;
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

mod add;
mod soft;

pub use add::{Added, Removed, Wanted, add, remove};
pub use soft::{Softened, soft_start, soft_stop};

/// Who listens at a status port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nobody: the gate's listener answers.
    Alias,
    /// A socket of its own.
    Existing,
}

/// A status port of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatusPort {
    /// Where it is.
    pub at: Endpoint,
    /// Whose listener answers; its own where it has one.
    pub of: Endpoint,
    /// Who listens there.
    pub kind: Kind,
    /// Whether it is refused.
    pub is_withdrawn: bool,
}

impl StatusPort {
    fn read(at: EndpointKey, alias: Alias) -> Self {
        Self {
            at: at.into(),
            of: alias.of.into(),
            kind: match alias.flags & Alias::EXISTING {
                0 => Kind::Alias,
                _ => Kind::Existing,
            },
            is_withdrawn: alias.flags & Alias::WITHDRAWN != 0,
        }
    }

    fn entry(self, gate: GateId) -> Alias {
        let existing = match self.kind {
            Kind::Alias => 0,
            Kind::Existing => Alias::EXISTING,
        };
        let withdrawn = if self.is_withdrawn {
            Alias::WITHDRAWN
        } else {
            0
        };
        Alias {
            of: self.of.into(),
            gate,
            flags: existing | withdrawn,
        }
    }

    /// Whether the data path takes it for an endpoint of its gate.
    #[must_use]
    pub fn is_led(&self) -> bool {
        self.kind == Kind::Alias && !self.is_withdrawn
    }
}

/// What becomes of a connection to a status port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is taken, unless the gate is closed.
    Answers,
    /// It is refused.
    Withdrawn,
    /// Nothing listens that could answer.
    Silent,
    /// What listens is not known yet: it came without gate.
    Stale,
}

impl State {
    /// One word for machines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Withdrawn => "withdrawn",
            Self::Silent => "silent",
            Self::Stale => "stale",
        }
    }
}

/// All status ports, by their gates, in order.
///
/// # Errors
/// Those of the maps.
pub fn all(pins: &Pins) -> Result<BTreeMap<GateId, Vec<StatusPort>>> {
    let mut all = BTreeMap::<GateId, Vec<StatusPort>>::new();
    if let Some(handovers) = Handovers::open(pins)? {
        for (at, alias) in handovers.aliases()? {
            let of_gate = all.entry(alias.gate).or_default();
            of_gate.push(StatusPort::read(at, alias));
        }
    }
    for ports in all.values_mut() {
        ports.sort_unstable();
    }
    Ok(all)
}

/// What becomes of a connection to each of a gate's status ports.
///
/// # Errors
/// Those of the maps and of sock_diag.
pub fn states(handovers: Option<&Handovers>, gate: &Gate) -> Result<Vec<(StatusPort, State)>> {
    let state = |port: &StatusPort| Ok((*port, state(handovers, gate, port)?));
    gate.aliases.iter().map(state).collect()
}

fn state(handovers: Option<&Handovers>, gate: &Gate, port: &StatusPort) -> Result<State> {
    if port.is_withdrawn {
        return Ok(State::Withdrawn);
    }
    let listens = |endpoint| {
        let count =
            sockets::listeners(endpoint).map_err(Error::call("ask sock_diag for", "listeners"))?;
        Ok::<bool, Error>(count > 0)
    };
    if port.kind == Kind::Existing {
        return Ok(match listens(port.at)? {
            true => State::Answers,
            false => State::Silent,
        });
    }
    let Some(handovers) = handovers else {
        return Ok(State::Stale);
    };
    let is_known = handovers.listening(port.of.into())? > 0;
    if is_known || handover::has_backend(handovers, gate.id)? {
        return Ok(State::Answers);
    }
    Ok(match listens(port.of)? {
        true => State::Stale,
        false => State::Silent,
    })
}

/// These endpoints, and the aliases by which connections come to the gates that are meant, also those
/// that are withdrawn.
///
/// # Errors
/// Those of the maps.
pub fn joined(pins: &Pins, targets: &[Target], endpoints: &[Endpoint]) -> Result<Vec<Endpoint>> {
    let mut joined: BTreeSet<Endpoint> = endpoints.iter().copied().collect();
    joined.extend(meant(pins, targets)?);
    Ok(joined.into_iter().collect())
}

/// The aliases by which connections come to the gates that are meant.
///
/// # Errors
/// Those of the maps.
pub fn meant(pins: &Pins, targets: &[Target]) -> Result<BTreeSet<Endpoint>> {
    if !pins.exist() {
        return Ok(BTreeSet::new());
    }
    let is_meant = |gate: &Gate| {
        targets.iter().any(|target| match target {
            Target::Named(name) => gate.name.as_ref() == Some(name),
            Target::Endpoint(endpoint) => gate.name.is_none() && gate.endpoints.contains(endpoint),
        })
    };
    let gates = gates::list(pins, &Tables::open(pins)?)?;
    let ports = gates
        .iter()
        .filter(|gate| is_meant(gate))
        .flat_map(|gate| &gate.aliases);
    let aliases = ports.filter(|port| port.kind == Kind::Alias);
    Ok(aliases.map(|port| port.at).collect())
}

/// Where it is to be seen whether something listens for each of these: an alias has no listener of
/// its own.
///
/// # Errors
/// Those of the maps.
pub fn listened_at(pins: &Pins, endpoints: &[Endpoint]) -> Result<Vec<Endpoint>> {
    if !steering::has_lookup(pins) {
        return Ok(endpoints.to_vec());
    }
    let ports = all(pins)?.into_values().flatten();
    let ports: Vec<StatusPort> = ports.filter(StatusPort::is_led).collect();
    let at = |endpoint: &Endpoint| {
        let exact = ports.iter().find(|port| port.at == *endpoint);
        let port = exact.or_else(|| ports.iter().find(|port| port.at.meets(*endpoint)));
        port.map_or(*endpoint, |port| port.of)
    };
    Ok(endpoints.iter().map(at).collect())
}

/// Enters the listening sockets anew that answer for the aliases of these gates: those of a backend
/// that was restarted are others. Returns the aliases that nothing listens for.
///
/// # Errors
/// Those of the maps, and where what listens can't be had.
pub fn renew(pins: &Pins, lock: &Lock, gates: &BTreeSet<GateId>) -> Result<Vec<StatusPort>> {
    let Some(mut handovers) = Handovers::open(pins)? else {
        return Ok(Vec::new());
    };
    let mut silent = Vec::new();
    for (at, alias) in handovers.aliases()? {
        let port = StatusPort::read(at, alias);
        if !gates.contains(&alias.gate) || port.kind == Kind::Existing {
            continue;
        }
        let backend = sockets::take_if_any(port.of)?;
        if backend.is_none() {
            silent.push(port);
        }
        handovers.enter(lock, port.of.into(), backend.as_slice())?;
    }
    Ok(silent)
}

/// As [`renew`], for a caller that goes on whatever becomes of it: what to tell the operator.
#[must_use]
pub fn renew_or_note(pins: &Pins, lock: &Lock, gates: &BTreeSet<GateId>) -> Option<String> {
    if !steering::has_lookup(pins) {
        return None;
    }
    let failed = renew(pins, lock, gates).err()?;
    Some(format!("the status ports refuse: {failed}"))
}

/// Forgets all status ports of a gate.
///
/// # Errors
/// Those of the maps.
pub fn forget(pins: &Pins, lock: &Lock, tables: &mut Tables, gate: &Gate) -> Result<()> {
    let Some(mut handovers) = Handovers::open(pins)? else {
        return Ok(());
    };
    for port in &gate.aliases {
        withdraw(&mut handovers, lock, tables, (gate.id, *port))?;
        handovers.forget_alias(lock, port.at.into())?;
    }
    handover::clear_up(pins, lock, tables, &mut handovers)
}

/// Refuses first: a closed gate must not be passed by what it is told of no more.
fn withdraw(
    handovers: &mut Handovers,
    lock: &Lock,
    tables: &mut Tables,
    (gate, port): (GateId, StatusPort),
) -> Result<()> {
    let withdrawn = StatusPort {
        is_withdrawn: true,
        ..port
    };
    handovers.set_alias(lock, port.at.into(), withdrawn.entry(gate))?;
    match port.kind {
        Kind::Alias => tables.forget_alias(lock, port.at),
        Kind::Existing => Ok(()),
    }
}

/// Answers last, for the same reason.
fn bring_back(
    handovers: &mut Handovers,
    lock: &Lock,
    tables: &mut Tables,
    (gate, port): (GateId, StatusPort),
) -> Result<()> {
    if port.kind == Kind::Alias {
        tables.lead(lock, port.at, gate)?;
    }
    let answering = StatusPort {
        is_withdrawn: false,
        ..port
    };
    handovers.set_alias(lock, port.at.into(), answering.entry(gate))
}

/// Whether connections to the endpoint meet the status port first.
fn is_at(port: &StatusPort, endpoint: Endpoint) -> bool {
    port.at == endpoint || port.at.address.is_none() && port.at.port == endpoint.port
}

/// Fails where an endpoint is one of a gate's status ports.
///
/// # Errors
/// [`AliasError::Known`].
pub(crate) fn check_none(gates: &[Gate], endpoint: Endpoint) -> Result<()> {
    for gate in gates {
        if let Some(port) = gate.aliases.iter().find(|port| is_at(port, endpoint)) {
            let gate = gate.to_string();
            return Err(AliasError::Known { at: port.at, gate }.into());
        }
    }
    Ok(())
}
