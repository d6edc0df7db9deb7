//! Drives a restart: closes the gate, runs the command, checks, opens.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use gate_common::abi::{Counter, GateStats};
use gate_common::flow::GateId;
use gate_common::state::{BootTime, Closed, StateWord};
use tokio::process::Child;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::command::{ended, find, spawn, stop};
use super::draining::{Drained, Draining};
use super::machine::{Action, Event, Machine};
use super::watch::{Health, LastFailure, Watch, effective_checks, healthy, must_listen, watch};
use super::{AtEnd, Outcome, Phase, Plan};
use crate::allow::{self, Cidr};
use crate::clock;
use crate::datapath::{self, Upped};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates::{self, Gate, Target};
use crate::health::{Check, Checker};
use crate::pins::{Lock, Pins, RestartLock};
use crate::reach;
use crate::release::{Job, Pace, Rate, Release, Released, Replayer, Step};
use crate::signals::Signals;
use crate::sockets;
use crate::status::{Waiting, waiting};
use crate::tables::{Checks, Tables};

/// Between two looks at the queues.
const POLL: Duration = Duration::from_millis(1);

/// Between two updates of the live line.
const REFRESH: Duration = Duration::from_millis(100);

/// A restart as it was asked for.
pub struct Request {
    /// The gates to close.
    pub targets: Vec<Target>,
    /// The checks; none for a TCP connection to each endpoint.
    pub checks: Vec<Check>,
    /// How they are made.
    pub checker: Checker,
    /// How often they must pass in a row.
    pub rise: u32,
    /// How it is done.
    pub plan: Plan,
    /// Sources that pass the closed gate.
    pub allow: Vec<Cidr>,
    /// The lease.
    pub max_hold: Duration,
    /// The most held connections that are let in a second.
    pub rate: Option<Rate>,
    /// The command with its arguments.
    pub command: Vec<OsString>,
    /// Whether stdout is kept for gate's own output, so that the command's goes to stderr.
    pub reserve_stdout: bool,
}

/// One moment of a restart, for the live line.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Since the gate was closed.
    pub elapsed: Duration,
    /// What is held.
    pub waiting: Waiting,
    /// What it waits for.
    pub phase: Phase,
    /// Why the last check failed; none before the first.
    pub health: Option<String>,
}

/// Told of what goes on.
pub trait Progress {
    /// This was attached for the time of the restart.
    fn attached(&mut self, attached: &[Upped]);
    /// The gate was closed.
    fn closed(&mut self, gates: &[Gate], max_hold: Duration);
    /// That many connections are waited for, for `timeout` at the most.
    fn draining(&mut self, connections: usize, timeout: Duration);
    /// The command was started.
    fn started(&mut self, command: &[OsString]);
    /// The command ended well, `elapsed` after the gate was closed.
    fn checking(&mut self, elapsed: Duration, checks: &[Check]);
    /// Some time has passed.
    fn moment(&mut self, moment: &Moment);
    /// Whether anyone looks at the moments; they cost a look at all that is held.
    fn is_live(&self) -> bool;
    /// Something that the operator should know.
    fn note(&mut self, text: &str);
}

/// How a restart went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The gates.
    pub gates: Vec<Gate>,
    /// What was attached for its time.
    pub attached: Vec<Upped>,
    /// How it ended.
    pub outcome: Outcome,
    /// What became of the gate.
    pub gate: AtEnd,
    /// From closing to opening, or to the end where it did not open.
    pub closed_for: Duration,
    /// What became of the established connections, where they were drained.
    pub drained: Option<Drained>,
    /// How long each phase took that was come to, in order.
    pub phases: Vec<(Phase, Duration)>,
    /// What the release did.
    pub released: Released,
    /// SYNs dropped, because the table was full.
    pub overflowed: u64,
    /// SYNs dropped, because they could not be kept.
    pub uncaptured: u64,
    /// Why the last check failed, where one did.
    pub last_failure: Option<String>,
    /// Gates that another command had changed, and which were left as they were.
    pub taken_over: Vec<Gate>,
    /// Why opening failed, where it did; the lease opens then.
    pub open_failure: Option<String>,
}

/// A gate as this restart closed it.
struct Held {
    gate: Gate,
    word: StateWord,
    _claim: RestartLock,
}

/// Runs a restart to its end.
///
/// # Errors
/// Where it can't begin, and then nothing is changed; where the kernel fails on the way,
/// and then the lease opens the gate.
pub async fn run(pins: &Pins, request: Request, progress: &mut dyn Progress) -> Result<Summary> {
    let program = find(&request.command)?;
    let signals = Signals::new()?;
    let closing = close(pins, &request)?;
    let ended = drive(pins, request, progress, program, signals, closing).await;
    let detached = match pins.lock() {
        // A `gate down` was first.
        Err(Error::NotUp) => Ok(()),
        lock => lock.and_then(|lock| datapath::detach_temporary(pins, lock)),
    };
    if let Err(error) = detached {
        progress.note(&format!(
            "could not detach: {error}; `gate down` tries again"
        ));
    }
    ended
}

async fn drive(
    pins: &Pins,
    mut request: Request,
    progress: &mut dyn Progress,
    program: PathBuf,
    mut signals: Signals,
    closing: Closing,
) -> Result<Summary> {
    let Closing {
        notes,
        passes,
        endpoints,
        listening,
        mut draining,
        attached,
        mut tables,
        mut replayer,
        held,
        closed_at,
        deadline,
        before,
    } = closing;
    request.checker.pass(passes);
    progress.attached(&attached);
    for note in &notes {
        progress.note(note);
    }
    let gates: Vec<Gate> = held.iter().map(|held| held.gate.clone()).collect();
    progress.closed(&gates, request.max_hold);
    let ids: Vec<GateId> = gates.iter().map(|gate| gate.id).collect();
    let list = effective_checks(&request.checks, &endpoints);
    let mut machine = Machine::new(closed_at, deadline, request.plan);
    let mut child: Option<Child> = None;
    let mut checks: Option<Watch> = None;
    let last_failure = LastFailure::default();
    let mut queues = interval(POLL);
    queues.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut opened = Opened::default();
    let mut phases = Phases::new(machine.phase(), closed_at);
    while machine.outcome().is_none() {
        let left = clock::between(clock::now(), deadline);
        let event = tokio::select! {
            biased;
            signal = signals.next() => Event::Signal(signal),
            end = ended(&mut child) => Event::Ended(end),
            () = healthy(&mut checks) => Event::Healthy,
            _ = queues.tick(), if machine.phase() == Phase::Quiesce => {
                // A kernel that can't tell (no inet_diag) is taken to have nothing.
                let pending = sockets::pending_if_none_queued(&endpoints).unwrap_or_default();
                Event::Queues {
                    accepted: pending.queued == 0,
                    settled: pending.half_open == 0,
                }
            }
            () = sleep(until_look(draining.as_ref())), if machine.phase() == Phase::Drain => {
                Event::Connections(look(&mut draining, progress))
            }
            () = sleep(left) => Event::Tick,
            _ = refresh.tick(), if progress.is_live() => {
                let now = clock::now();
                progress.moment(&Moment {
                    elapsed: clock::between(closed_at, now),
                    // A line that can't be shown is no reason to stop.
                    waiting: waiting(&tables, &ids, now).unwrap_or_default(),
                    phase: machine.phase(),
                    health: last_failure.get(),
                });
                Event::Tick
            }
        };
        let actions = machine.on(event, clock::now());
        if phases.enter(machine.phase(), clock::now()) && machine.phase() == Phase::Drain {
            let timeout = request
                .plan
                .drain
                .map_or(Duration::ZERO, |drain| drain.timeout);
            let count = look(&mut draining, progress);
            progress.draining(count, timeout);
        }
        for action in actions {
            match action {
                Action::Start => {
                    progress.started(&request.command);
                    match spawn(&program, &request) {
                        Ok(spawned) => child = Some(spawned),
                        Err(error) => {
                            open(
                                pins,
                                &mut tables,
                                &mut replayer,
                                &held,
                                Pace::default(),
                                &mut signals,
                            )
                            .await;
                            return Err(error);
                        }
                    }
                }
                Action::Check => {
                    progress.checking(clock::between(closed_at, clock::now()), &list);
                    checks = Some(watch(Health {
                        must_listen: must_listen(&request.checks, &endpoints),
                        listening: listening.clone(),
                        checks: list.clone(),
                        checker: request.checker.clone(),
                        rise: request.rise,
                        last: last_failure.clone(),
                    }));
                }
                Action::Open => {
                    let pace = Pace {
                        rate: request.rate,
                        awaited: match machine.outcome() {
                            Some(Outcome::Healthy) => listening.clone(),
                            _ => Vec::new(),
                        },
                    };
                    opened =
                        open(pins, &mut tables, &mut replayer, &held, pace, &mut signals).await;
                }
                Action::Flush => {
                    let flushed = draining.as_mut().map_or(Ok(()), Draining::flush_all);
                    if let Err(error) = flushed {
                        progress.note(&format!("could not reset what is left: {error}"));
                    }
                }
                Action::Reject => {
                    let until = clock::after(clock::now(), request.max_hold);
                    opened = reject(pins, &mut tables, &held, until);
                }
                Action::Keep => opened.at = clock::now(),
                Action::Stop => {
                    if let Some(child) = &mut child {
                        progress.note("stopping the command");
                        stop(child).await;
                    }
                }
            }
        }
    }
    let after = counts(&tables, &held).unwrap_or(before);
    let lost = |counter: Counter| {
        let index = counter as usize;
        after.counts[index].saturating_sub(before.counts[index])
    };
    let outcome = machine.outcome().unwrap_or(Outcome::Healthy);
    Ok(Summary {
        attached,
        outcome,
        gate: outcome.gate(request.plan.on_failure),
        phases: phases.finish(opened.at),
        drained: draining.map(|draining| draining.drained()),
        closed_for: clock::between(closed_at, opened.at),
        released: opened.released,
        overflowed: lost(Counter::Overflowed),
        uncaptured: lost(Counter::Uncaptured),
        last_failure: last_failure.get(),
        taken_over: opened.taken_over,
        open_failure: opened.failure.map(|error| error.to_string()),
        gates,
    })
}

/// How long until the established connections are looked at.
fn until_look(draining: Option<&Draining>) -> Duration {
    let next = draining.map_or(BootTime(0), Draining::next_look);
    clock::between(clock::now(), next)
}

/// How many connections there are. Where the kernel doesn't tell there are none: the command is not to
/// wait for what can't be seen.
fn look(draining: &mut Option<Draining>, progress: &mut dyn Progress) -> usize {
    let looked = draining.as_mut().map_or(Ok(0), Draining::look);
    looked.unwrap_or_else(|error| {
        progress.note(&format!("the drain ends early: {error}"));
        0
    })
}

/// How long each phase took.
struct Phases {
    done: Vec<(Phase, Duration)>,
    now_in: Phase,
    since: BootTime,
}

impl Phases {
    fn new(phase: Phase, now: BootTime) -> Self {
        Self {
            done: Vec::new(),
            now_in: phase,
            since: now,
        }
    }

    /// Whether it is another than before.
    fn enter(&mut self, phase: Phase, now: BootTime) -> bool {
        if phase == self.now_in {
            return false;
        }
        let took = clock::between(self.since, now);
        self.done.push((self.now_in, took));
        (self.now_in, self.since) = (phase, now);
        true
    }

    fn finish(mut self, now: BootTime) -> Vec<(Phase, Duration)> {
        let took = clock::between(self.since, now);
        self.done.push((self.now_in, took));
        self.done
    }
}

/// What [`close`] did, and all that opening will need.
struct Closing {
    /// What the operator should know of where it is attached.
    notes: Vec<String>,
    passes: Checks,
    /// All endpoints of the gates.
    endpoints: Vec<Endpoint>,
    /// Those that had a listener here when they were closed.
    listening: Vec<Endpoint>,
    draining: Option<Draining>,
    attached: Vec<Upped>,
    tables: Tables,
    replayer: Replayer,
    held: Vec<Held>,
    closed_at: BootTime,
    deadline: BootTime,
    before: GateStats,
}

/// Closes all gates, or none.
fn close(pins: &Pins, request: &Request) -> Result<Closing> {
    let lock = pins.lock_or_create()?;
    let closed = pins
        .check_version()
        .and_then(|()| gates::meant(pins, &request.targets))
        .and_then(|endpoints| {
            let attached = datapath::attach_temporarily(pins, &lock, &endpoints)?;
            close_locked(pins, &lock, request, endpoints, attached)
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
    endpoints: Vec<Endpoint>,
    attached: Vec<Upped>,
) -> Result<Closing> {
    let mut notes = reach::check(&endpoints, &datapath::live(pins)?)?;
    if !attached.is_empty() {
        notes.extend(reach::left_out()?);
    }
    notes.extend(allow::warnings(&request.allow));
    let mut tables = Tables::open(pins)?;
    let passes = Checks::open(pins)?;
    let listens = |endpoint: &Endpoint| sockets::listeners(*endpoint).is_ok_and(|count| count > 0);
    let listening = endpoints.iter().copied().filter(listens).collect();
    let drain = request.plan.drain;
    let draining = drain.map(|drain| Draining::new(&endpoints, drain));
    let draining = draining.transpose()?;
    let replayer = Replayer::load(pins, lock)?;
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
    for held in &held {
        tables.close_but(lock, held.gate.id, word, &request.allow, clock::now())?;
    }
    Ok(Closing {
        notes,
        passes,
        endpoints,
        listening,
        draining,
        attached,
        tables,
        replayer,
        held,
        closed_at,
        deadline,
        before,
    })
}

/// What [`open`] did.
#[derive(Default)]
struct Opened {
    at: BootTime,
    released: Released,
    taken_over: Vec<Gate>,
    failure: Option<Error>,
}

/// Opens the gates that are still as this restart closed them. Tries for as long as the lease
/// runs, and for some seconds at least; after that the gates are open anyway. A signal opens at once.
async fn open(
    pins: &Pins,
    tables: &mut Tables,
    replayer: &mut Replayer,
    held: &[Held],
    pace: Pace,
    signals: &mut Signals,
) -> Opened {
    let words = held.iter().map(|held| (held.gate.id, held.word)).collect();
    let mut release = Release::new(pins, Job::Open(words), pace);
    let mut opened = Opened::default();
    loop {
        match release.step(tables, replayer) {
            Ok(Step::Wait(pause)) => tokio::select! {
                biased;
                _ = signals.next() => release.hurry(),
                () = rest(pause) => {}
            },
            Ok(Step::Done(released)) => {
                opened.released = released;
                break;
            }
            Err(error) => {
                opened.failure = Some(error);
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

/// Sleeps; also where there is no time to, whatever has come is seen.
async fn rest(pause: Duration) {
    match pause.is_zero() {
        true => tokio::task::yield_now().await,
        false => sleep(pause).await,
    }
}

/// Lets the gates that are still as this restart closed them reject new connections. What they held
/// is forgotten: its clients retransmit, and are rejected then.
fn reject(pins: &Pins, tables: &mut Tables, held: &[Held], until: BootTime) -> Opened {
    let mut opened = Opened::default();
    let word = StateWord::closed(Closed::Reject, until);
    let rejected = pins.lock().and_then(|lock| {
        let current = tables.are_current(pins);
        for held in held {
            if current && tables.state(held.gate.id)?.guarded(false) == held.word {
                tables.close(&lock, held.gate.id, word, clock::now())?;
            } else {
                opened.taken_over.push(held.gate.clone());
            }
        }
        Ok(())
    });
    opened.failure = rejected.err();
    opened.at = clock::now();
    opened
}

/// The counters of these gates, summed.
fn counts(tables: &Tables, held: &[Held]) -> Result<GateStats> {
    let mut sum = GateStats::default();
    for held in held {
        let stats = tables.stats(held.gate.id)?;
        for (sum, count) in sum.counts.iter_mut().zip(stats.counts) {
            *sum += count;
        }
    }
    Ok(sum)
}
