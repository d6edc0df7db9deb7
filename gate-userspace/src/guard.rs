//! Guarding gates: while no socket listens at an open gate's endpoint, the data path holds new
//! connections. It needs no process for that; one that watches releases them sooner than their
//! clients retransmit.

use std::collections::BTreeMap;
use std::time::Duration;

use gate_common::state::{Closed, Effective, StateWord};

use crate::clock;
use crate::datapath;
use crate::error::{Error, Result};
use crate::gates::{self, Gate, Target};
use crate::pins::Pins;
use crate::reach;
use crate::release::{Job, Pace, Release, Released, Replayer};
use crate::sockets;
use crate::tables::Tables;

mod watch;

pub use watch::{End, Event, Watch, Watcher};

/// The lease of a gate that is guarded no more, while what it holds is released.
const RELEASE: Duration = Duration::from_secs(15);

/// What [`guard`] did.
#[derive(Clone, Debug)]
pub struct Guarded {
    /// The gates.
    pub gates: Vec<Gate>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Guards gates, open or closed: `lease` is how long connections are held from the first one on that
/// finds no listener.
///
/// # Errors
/// [`Error::NotHere`], [`Error::NotUp`], [`Error::NotCovered`], and those of the maps.
pub fn guard(pins: &Pins, targets: &[Target], lease: Duration) -> Result<Guarded> {
    let lock = pins.lock()?;
    let endpoints = gates::meant(pins, targets)?;
    for endpoint in &endpoints {
        if !reach::is_here(*endpoint)? {
            let endpoint = *endpoint;
            return Err(Error::NotHere { endpoint });
        }
    }
    let mut notes = reach::check(pins, &endpoints, &datapath::live(pins)?)?;
    let mut tables = Tables::open(pins)?;
    let now = clock::now();
    tables.settle(&lock, now)?;
    let gates = gates::find_or_make(pins, &lock, &mut tables, targets, now)?;
    for gate in &gates {
        tables.set_guard(&lock, gate.id, lease, now)?;
    }
    let listening = sockets::listening(&endpoints)
        .map_err(Error::call("ask sock_diag for", "listening sockets"))?;
    let silent = endpoints.iter().filter(|it| !listening.contains(it));
    notes.extend(silent.map(|endpoint| {
        let lease = humantime::format_duration(lease);
        format!(
            "{endpoint}: nothing listens there: connections are held, for {lease} from the first on"
        )
    }));
    Ok(Guarded { gates, notes })
}

/// What [`unguard`] did.
#[derive(Clone, Debug)]
pub struct Unguarded {
    /// The gates.
    pub gates: Vec<Gate>,
    /// Whether none of them was guarded.
    pub already: bool,
    /// What they held, where they are not closed.
    pub released: Released,
}

/// Guards gates no more, and releases what they hold only because they were guarded.
///
/// # Errors
/// [`Error::NotUp`], [`Error::NoGate`], and those of the maps and of the injection.
pub fn unguard(pins: &Pins, targets: &[Target]) -> Result<Unguarded> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let gates = gates::find(pins, &tables, targets)?;
    let now = clock::now();
    tables.settle(&lock, now)?;
    // Before anything closes.
    let mut replayer = Replayer::load(pins, &lock)?;
    let mut already = true;
    let mut open = BTreeMap::new();
    for gate in &gates {
        let word = tables.state(gate.id)?;
        if !word.is_guarded() {
            continue;
        }
        already = false;
        if !matches!(word.at(|| now), Effective::Closed(_)) {
            // Closed while it releases: no retransmission goes beside what is held.
            let held = StateWord::closed(Closed::Hold, clock::after(now, RELEASE));
            tables.set_state(&lock, gate.id, held, now)?;
            open.insert(gate.id, held);
        }
        tables.unguard(&lock, gate.id, now)?;
    }
    drop(lock);
    let mut released = Released::default();
    if !open.is_empty() {
        let release = Release::new(pins, Job::Open(open), Pace::default());
        released = release.run(&mut tables, &mut replayer)?;
    }
    match pins.lock() {
        // A `gate down` was first.
        Err(Error::NotUp) => {}
        lock => datapath::detach_temporary(pins, lock?)?,
    }
    Ok(Unguarded {
        gates,
        already,
        released,
    })
}
