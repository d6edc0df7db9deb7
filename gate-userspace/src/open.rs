//! Opening gates and releasing what they hold: what `gate open` does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gate_common::flow::GateId;
use gate_common::state::{BootTime, Effective, StateWord};

use crate::alias;
use crate::clock;
use crate::close::By;
use crate::datapath;
use crate::error::{Error, Result};
use crate::gates::{self, Gate, Target};
use crate::pins::{Lock, Pins};
use crate::release::{Job, Pace, Rate, Release, Released, Replayer, Step};
use crate::tables::Tables;

/// After that time, a client whose SYN was held has sent it again: what is held still is stale.
const RETRANSMISSION: Duration = Duration::from_secs(1);

/// What is to be opened.
#[derive(Clone, Debug)]
pub enum Which {
    /// Every gate.
    All,
    /// These. An endpoint that never had a gate is open.
    These(Vec<Target>),
}

/// What is to be opened, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The gates.
    pub which: Which,
    /// No more of the held connections a second than this; as fast as the listeners accept with none.
    pub rate: Option<Rate>,
    /// Who opens; for [`By::Health`] only what was closed by that is opened.
    pub by: By,
}

/// What opening did.
#[derive(Debug)]
pub struct Opened {
    /// What was opened, or was open, as it was asked for; every gate that is known where all were.
    pub gates: Vec<String>,
    /// What was released; none where nothing was to be opened.
    pub released: Option<Released>,
    /// [`Error::LeaseOver`] where the lease of one that was named ran out before.
    pub over: Option<Error>,
    /// What the operator should know.
    pub note: Option<String>,
}

/// An opening under way. It holds the lock for moments only; whoever steps it sleeps between.
pub struct Opening {
    pins: Pins,
    tables: Tables,
    replayer: Replayer,
    release: Option<Release>,
    opened: Opened,
}

/// Opens gates, and waits until all that they held is released.
///
/// # Errors
/// As [`Opening::begin`] and [`Opening::step`].
pub fn open(pins: &Pins, request: &Request) -> Result<Opened> {
    let mut opening = Opening::begin(pins, request)?;
    while let Some(pause) = opening.step()? {
        std::thread::sleep(pause);
    }
    opening.finish()
}

impl Opening {
    /// Looks at what is closed. A gate whose lease ran out a while ago is cleared up; the others open
    /// by [`step`](Self::step).
    ///
    /// # Errors
    /// [`Error::NotUp`], [`Error::Locked`], [`Error::NoGate`], [`Error::Member`]; those of
    /// [`Replayer::load`] and of the maps.
    pub fn begin(pins: &Pins, request: &Request) -> Result<Self> {
        let replayer = Replayer::load(pins, &pins.lock()?)?;
        Self::with(pins, request, replayer)
    }

    /// As [`begin`](Self::begin), with what injects, loaded before: that takes most of the time until the
    /// first SYN goes.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn with(pins: &Pins, request: &Request, replayer: Replayer) -> Result<Self> {
        let lock = pins.lock()?;
        let mut tables = Tables::open(pins)?;
        let known = match &request.which {
            Which::All => gates::list(pins, &tables)?,
            Which::These(targets) => gates::find(pins, &tables, targets)?,
        };
        let ids = known.iter().map(|gate| gate.id).collect();
        let note = alias::renew_or_note(pins, &lock, &ids);
        let (closed, over) = sort(&lock, &mut tables, &known, request.by, clock::now())?;
        let release = (!closed.is_empty()).then(|| {
            let pace = Pace {
                rate: request.rate,
                ..Pace::default()
            };
            Release::new(pins, Job::Open(closed), pace)
        });
        let (gates, over) = match &request.which {
            Which::All => (known.iter().map(ToString::to_string).collect(), None),
            Which::These(targets) => {
                let each: BTreeSet<&Target> = targets.iter().collect();
                (each.into_iter().map(ToString::to_string).collect(), over)
            }
        };
        Ok(Self {
            pins: pins.clone(),
            tables,
            replayer,
            release,
            opened: Opened {
                gates,
                released: None,
                over,
                note,
            },
        })
    }

    /// Goes on for some milliseconds at the most; how long to wait for the next step, or none once
    /// all is done.
    ///
    /// # Errors
    /// As [`Release::step`].
    pub fn step(&mut self) -> Result<Option<Duration>> {
        let Some(release) = &mut self.release else {
            return Ok(None);
        };
        Ok(match release.step(&mut self.tables, &mut self.replayer)? {
            Step::Wait(pause) => Some(pause),
            Step::Done(released) => {
                self.opened.released = Some(released);
                self.release = None;
                None
            }
        })
    }

    /// Clears up, once nothing is left to be done.
    ///
    /// # Errors
    /// [`Error::Locked`], and those of the maps.
    pub fn finish(self) -> Result<Opened> {
        self.finish_and_keep().map(|(opened, _)| opened)
    }

    /// As [`finish`](Self::finish), and gives back what injects.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_and_keep(mut self) -> Result<(Opened, Replayer)> {
        match self.pins.lock() {
            // A `gate down` was first.
            Err(Error::NotUp) => {}
            lock => {
                let lock = lock?;
                self.tables.settle(&lock, clock::now())?;
                // A restart that failed, or was killed, may have left that.
                datapath::detach_temporary(&self.pins, lock)?;
            }
        }
        Ok((self.opened, self.replayer))
    }
}

/// The words of those that are to be released, and the first whose lease ran out. What is stale is
/// forgotten.
fn sort(
    lock: &Lock,
    tables: &mut Tables,
    known: &[Gate],
    by: By,
    now: BootTime,
) -> Result<(BTreeMap<GateId, StateWord>, Option<Error>)> {
    let mut closed = BTreeMap::new();
    let mut over: Option<Error> = None;
    for gate in known {
        let word = tables.state(gate.id)?;
        if by == By::Health && !word.is_by_health() {
            continue;
        }
        match word.at(|| now) {
            Effective::Open => {}
            Effective::Closed(_) => {
                closed.insert(gate.id, word);
            }
            Effective::Expired => {
                let ago = clock::between(word.deadline(), now);
                if ago < RETRANSMISSION {
                    closed.insert(gate.id, word);
                } else {
                    tables.discard(lock, &BTreeSet::from([gate.id]))?;
                    tables.set_state(lock, gate.id, StateWord::OPEN, now)?;
                }
                let gate = gate.to_string();
                over.get_or_insert(Error::LeaseOver { gate, ago });
            }
        }
    }
    Ok((closed, over))
}
