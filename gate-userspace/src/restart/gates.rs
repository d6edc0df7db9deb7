//! Closes the gates of a restart, and lets go of them at its end.

use std::collections::BTreeSet;
use std::sync::Arc;

use gate_common::abi::GateStats;
use gate_common::flow::GateId;
use gate_common::state::{BootTime, Closed, StateWord};

use super::draining::Draining;
use super::driver::{Failure, Request};
use crate::datapath::{self, Upped};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates::{self, Gate};
use crate::nap::nap;
use crate::pins::{Anchor, Lock, Pins, RestartLock, locked};
use crate::release::{Job, Pace, Release, Released, Replayer, Step};
use crate::signals::Signals;
use crate::tables::handovers::Handovers;
use crate::tables::{Checks, Tables};
use crate::{alias, allow, clock, handover, reach, sockets, steering};

/// A gate as this restart closed it.
pub(super) struct Held {
    pub gate: Gate,
    pub word: StateWord,
    _claim: RestartLock,
}

/// What [`close`] did, and all that opening will need.
pub(super) struct Closing {
    /// What the operator should know of where it is attached.
    pub notes: Vec<String>,
    pub passes: Checks,
    /// All endpoints of the gates.
    pub endpoints: Vec<Endpoint>,
    /// These, and the aliases by which connections come as well.
    pub reached: Vec<Endpoint>,
    /// Where what listens takes the connections: the endpoints, or the backends of gates that are
    /// handed over.
    pub served: Vec<Endpoint>,
    /// Those of them that had a listener here when the gates were closed.
    pub listening: Vec<Endpoint>,
    /// The endpoints whose connections they took.
    pub awaited: Vec<Endpoint>,
    pub draining: Option<Draining>,
    pub attached: Vec<Upped>,
    pub tables: Tables,
    pub replayer: Replayer,
    pub anchor: Arc<Anchor>,
    pub held: Vec<Held>,
    pub closed_at: BootTime,
    pub deadline: BootTime,
    pub before: GateStats,
}

/// Closes all gates, or none.
pub(super) fn close(pins: &Pins, request: &Request) -> Result<Closing> {
    let lock = pins.lock_or_create()?;
    let closed = pins
        .check_version()
        .and_then(|()| gates::meant(pins, &request.targets))
        .and_then(|endpoints| {
            let reached = alias::joined(pins, &request.targets, &endpoints)?;
            let attached = datapath::attach_temporarily(pins, &lock, &reached)?;
            close_locked(pins, &lock, request, (endpoints, reached), attached)
        });
    if closed.is_err() {
        if pins.exist() {
            // The first failure counts.
            let _second = datapath::detach_temporary(pins, lock);
        } else {
            pins.remove_empty(lock);
        }
    }
    closed
}

fn close_locked(
    pins: &Pins,
    lock: &Lock,
    request: &Request,
    (endpoints, reached): (Vec<Endpoint>, Vec<Endpoint>),
    attached: Vec<Upped>,
) -> Result<Closing> {
    let mut notes = reach::check(pins, &endpoints, &datapath::live(pins)?)?;
    if !attached.is_empty() {
        notes.extend(reach::left_out()?);
    }
    notes.extend(allow::warnings(&request.allow));
    let mut tables = Tables::open(pins)?;
    let passes = Checks::open(pins)?;
    let listens = |endpoint: &Endpoint| sockets::listeners(*endpoint).is_ok_and(|count| count > 0);
    let (served, awaited) = served(pins, &tables, &endpoints, listens)?;
    let listening = served.iter().copied().filter(listens).collect();
    let drain = request.plan.drain;
    let draining = drain.map(|drain| Draining::new(&reached, drain));
    let draining = draining.transpose()?;
    let replayer = Replayer::load(pins, lock)?;
    let anchor = Arc::new(lock.anchor(pins)?);
    tables.settle(lock, clock::now())?;
    let mut claims = Vec::new();
    for gate in gates::find_or_make(pins, lock, &mut tables, &request.targets, clock::now())? {
        let Some(claim) = pins.claim_restart(lock, gate.id)? else {
            return Err(Error::RestartUnderWay {
                gate: gate.to_string(),
            });
        };
        claims.push((gate, claim));
    }
    let closed_at = clock::now();
    let deadline = clock::after(closed_at, request.max_hold);
    let mut word = StateWord::closed(Closed::Hold, deadline).with_checks();
    if !request.allow.is_empty() {
        word = word.with_allows();
    }
    let held: Vec<Held> = claims
        .into_iter()
        .map(|(gate, claim)| Held {
            gate,
            word,
            _claim: claim,
        })
        .collect();
    let before = counts(&tables, &held)?;
    // What may not fit comes first: no gate is closed yet.
    for held in &held {
        tables.set_allowed(lock, held.gate.id, &request.allow)?;
    }
    close_each(lock, &mut tables, &held)?;
    Ok(Closing {
        notes,
        passes,
        endpoints,
        reached,
        served,
        listening,
        awaited,
        draining,
        attached,
        tables,
        replayer,
        anchor,
        held,
        closed_at,
        deadline,
        before,
    })
}

/// Closes all of these, or opens again those that it has closed.
fn close_each(lock: &Lock, tables: &mut Tables, held: &[Held]) -> Result<()> {
    for (closed, one) in held.iter().enumerate() {
        if let Err(error) = tables.close(lock, one.gate.id, one.word, clock::now()) {
            for closed in &held[..closed] {
                // The first failure counts.
                let _second = tables.set_state(lock, closed.gate.id, StateWord::OPEN, clock::now());
            }
            return Err(error);
        }
    }
    Ok(())
}

/// The backends that a handed-over gate's connections go to, or its endpoint where no backend listens;
/// and the endpoints whose connections something takes.
fn served(
    pins: &Pins,
    tables: &Tables,
    endpoints: &[Endpoint],
    listens: impl Fn(&Endpoint) -> bool,
) -> Result<(Vec<Endpoint>, Vec<Endpoint>)> {
    let handovers = Handovers::open(pins)?;
    let mut served = BTreeSet::new();
    let mut awaited = Vec::new();
    for endpoint in endpoints {
        let mut takers = handover::takers(tables, handovers.as_ref(), *endpoint)?;
        takers.retain(&listens);
        match takers.is_empty() {
            true => drop(served.insert(*endpoint)),
            false => {
                served.extend(takers);
                awaited.push(*endpoint);
            }
        }
    }
    Ok((served.into_iter().collect(), awaited))
}

/// Makes the listeners known that the gates' backends have now.
///
/// # Errors
/// As a line for the operator; it is worth another try.
pub(super) fn renew_backends(anchor: &Anchor, gates: &BTreeSet<GateId>) -> Result<(), String> {
    let renew = || -> Result<()> {
        match Handovers::open(anchor.pins())? {
            Some(handovers) if handover::is_lost(&handovers, gates)? => {}
            _ => return Ok(()),
        }
        match anchor.try_lock()? {
            Some(lock) => handover::renew(anchor.pins(), &lock, gates).map(drop),
            None => Err(locked()),
        }
    };
    renew().map_err(|error| anchor.told(&error))
}

/// What [`open`] did.
#[derive(Default)]
pub(super) struct Opened {
    pub at: BootTime,
    pub released: Released,
    pub taken_over: Vec<Gate>,
    pub failure: Option<Failure>,
}

impl Opened {
    /// What was done at this moment, and what failed; the gates are as they were then.
    fn done(anchor: &Anchor, taken_over: Vec<Gate>, failed: Option<Error>) -> Self {
        Self {
            at: clock::now(),
            taken_over,
            failure: failed.map(|error| Failure {
                text: anchor.told(&error),
                is_open: false,
            }),
            ..Self::default()
        }
    }
}

/// Opens the gates that are still as this restart closed them. Tries for as long as the lease
/// runs, and for some seconds at least; after that the gates are open anyway. A signal opens at once.
pub(super) async fn open(
    anchor: &Arc<Anchor>,
    tables: &mut Tables,
    replayer: &mut Replayer,
    held: &[Held],
    pace: Pace,
    signals: &mut Signals,
) -> Opened {
    let words = held.iter().map(|held| (held.gate.id, held.word)).collect();
    let mut release = Release::anchored(anchor, Job::Open(words), pace);
    let mut opened = Opened::default();
    loop {
        match release.step(tables, replayer) {
            Ok(Step::Wait(pause)) => tokio::select! {
                biased;
                _ = signals.next() => release.hurry(),
                () = nap(pause) => {}
            },
            Ok(Step::Done(released)) => {
                opened.released = released;
                break;
            }
            Err(error) => {
                opened.released = release.so_far();
                opened.failure = Some(Failure {
                    text: anchor.told(&error),
                    is_open: !release.is_closed(),
                });
                break;
            }
        }
    }
    let taken_over = release.taken_over();
    let is_taken = |held: &&Held| taken_over.contains(&held.gate.id);
    let taken = held.iter().filter(is_taken);
    opened.taken_over = taken.map(|held| held.gate.clone()).collect();
    opened.at = match opened.released.opened_at {
        BootTime(0) => clock::now(),
        at => at,
    };
    opened
}

/// Makes the listeners known that answer for the gates' aliases now; what to tell the operator.
pub(super) fn renew_aliases(anchor: &Anchor, held: &[Held]) -> Option<String> {
    // No alias is without it, and without one the lock is not worth a wait.
    if !steering::has_lookup(anchor.pins()) {
        return None;
    }
    let gates = held.iter().map(|held| held.gate.id).collect();
    match anchor.lock() {
        Ok(lock) => alias::renew_or_note(anchor.pins(), &lock, &gates),
        Err(error) => Some(format!(
            "the status ports may refuse: {}",
            anchor.told(&error)
        )),
    }
}

/// Lets the gates that are still as this restart closed them reject new connections. What they held
/// is forgotten: its clients retransmit, and are rejected then.
pub(super) fn reject(
    anchor: &Anchor,
    tables: &mut Tables,
    held: &[Held],
    until: BootTime,
) -> Opened {
    let word = StateWord::closed(Closed::Reject, until).with_checks();
    let mut taken_over = Vec::new();
    let rejected = anchor.lock().and_then(|lock| {
        let (own, others) = sorted(anchor, tables, held)?;
        taken_over = others;
        own.into_iter()
            .try_for_each(|id| tables.close(&lock, id, word, clock::now()))
    });
    Opened::done(anchor, taken_over, rejected.err())
}

/// Leaves the gates to their leases.
pub(super) fn keep(anchor: &Anchor, tables: &Tables, held: &[Held]) -> Opened {
    match sorted(anchor, tables, held) {
        Ok((_, taken_over)) => Opened::done(anchor, taken_over, None),
        Err(error) => Opened::done(anchor, Vec::new(), Some(error)),
    }
}

/// The gates that are still as this restart closed them, and those that another command changed.
fn sorted(anchor: &Anchor, tables: &Tables, held: &[Held]) -> Result<(Vec<GateId>, Vec<Gate>)> {
    let are_current = !tables.are_replaced(anchor.pins());
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for held in held {
        match are_current && tables.state(held.gate.id)?.guarded(false) == held.word {
            true => own.push(held.gate.id),
            false => others.push(held.gate.clone()),
        }
    }
    Ok((own, others))
}

/// The counters of these gates, summed.
pub(super) fn counts(tables: &Tables, held: &[Held]) -> Result<GateStats> {
    let mut sum = GateStats::default();
    for held in held {
        let stats = tables.stats(held.gate.id)?;
        for (sum, count) in sum.counts.iter_mut().zip(stats.counts) {
            *sum += count;
        }
    }
    Ok(sum)
}
