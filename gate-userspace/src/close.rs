//! Closing gates: what `gate hold`, `drop` and `reject` do.

use std::collections::BTreeSet;
use std::time::Duration;

use gate_common::state::{Closed, Effective, Mode, StateWord};

use crate::allow::{self, Cidr};
use crate::clock;
use crate::datapath;
use crate::error::Result;
use crate::gates::{self, Gate, Target};
use crate::pins::Pins;
use crate::reach;
use crate::release::Replayer;
use crate::tables::Tables;

/// What is to be closed, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The gates; an endpoint that never had one gets it.
    pub targets: Vec<Target>,
    /// What becomes of new connections.
    pub mode: Closed,
    /// After this the gates open by themselves.
    pub lease: Duration,
    /// Sources that pass all the same.
    pub allow: Vec<Cidr>,
    /// Who closes.
    pub by: By,
}

/// Who closes a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Somebody who knows why: whatever the gate was before.
    Operator,
    /// The daemon, because the gate's backend is down: what others closed stays as it is. It has loaded
    /// what injects before.
    Health,
}

/// What [`close`] did.
#[derive(Clone, Debug)]
pub struct Closing {
    /// The gates that were closed.
    pub gates: Vec<Gate>,
    /// Their mode.
    pub mode: Mode,
    /// Their lease.
    pub lease: Duration,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Closes gates, all of them or none.
///
/// # Errors
/// [`Error::NotUp`](crate::Error::NotUp), [`Error::Locked`](crate::Error::Locked),
/// [`Error::NoGate`](crate::Error::NoGate), [`Error::Member`](crate::Error::Member),
/// [`Error::NotCovered`](crate::Error::NotCovered), [`Error::Full`](crate::Error::Full); for
/// [`Closed::Hold`] those of [`Replayer::load`]; those of the maps.
pub fn close(pins: &Pins, request: &Request) -> Result<Closing> {
    let lock = pins.lock()?;
    let endpoints = gates::meant(pins, &request.targets)?;
    let mut notes = reach::check(pins, &endpoints, &datapath::live(pins)?)?;
    notes.extend(allow::warnings(&request.allow));
    let mut tables = Tables::open(pins)?;
    if request.mode == Closed::Hold && request.by == By::Operator {
        // Holding what can't be released would be worse than dropping it.
        Replayer::load(pins, &lock)?;
    }
    let now = clock::now();
    tables.settle(&lock, now)?;
    let mut word = StateWord::closed(request.mode, clock::after(now, request.lease)).with_checks();
    if request.by == By::Health {
        word = word.by_health();
    }
    if !request.allow.is_empty() {
        word = word.with_allows();
    }
    let mut gates = gates::find_or_make(pins, &lock, &mut tables, &request.targets, now)?;
    if request.by == By::Health {
        let mut others = BTreeSet::new();
        for gate in &gates {
            let word = tables.state(gate.id)?;
            if matches!(word.at(|| now), Effective::Closed(_)) && !word.is_by_health() {
                others.insert(gate.id);
            }
        }
        gates.retain(|gate| !others.contains(&gate.id));
    }
    // All lists before the first word: one that doesn't fit closes nothing.
    for gate in &gates {
        tables.set_allowed(&lock, gate.id, &request.allow)?;
    }
    for gate in &gates {
        tables.close(&lock, gate.id, word, now)?;
    }
    Ok(Closing {
        gates,
        mode: request.mode.into(),
        lease: request.lease,
        notes,
    })
}
