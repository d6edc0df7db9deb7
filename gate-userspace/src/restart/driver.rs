//! Drives a restart: closes the gate, runs the command, checks, opens.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gate_common::abi::{Counter, GateStats};
use gate_common::flow::GateId;
use gate_common::state::{BootTime, Closed, StateWord};
use tokio::process::Child;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::command::{ended, find, spawn, stop};
use super::{Action, Event, Machine, Outcome, Phase};
use crate::clock;
use crate::datapath::{self, Upped};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates::{self, Gate, Target};
use crate::health::{Check, Checker};
use crate::pins::{Lock, Pins, RestartLock};
use crate::reach;
use crate::release::{Released, Replayer, release};
use crate::signals::Signals;
use crate::sockets;
use crate::status::{Waiting, waiting};
use crate::tables::{Checks, Tables};

/// Between two looks at the queues, and between a failed check and the next: what is held waits
/// for this, too.
const POLL: Duration = Duration::from_millis(1);

/// Between a failed command check and the next: a fork costs more than a connection.
const EXEC_POLL: Duration = Duration::from_millis(20);

/// Between two updates of the live line.
const REFRESH: Duration = Duration::from_millis(100);

/// How long the queues may keep the command waiting.
const QUIESCE: Duration = Duration::from_secs(1);

/// A restart as it was asked for.
pub struct Request {
    /// The gates to close.
    pub targets: Vec<Target>,
    /// The checks; none for a TCP connection to each endpoint.
    pub checks: Vec<Check>,
    /// How they are made.
    pub checker: Checker,
    /// The lease.
    pub max_hold: Duration,
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
    /// From closing to opening.
    pub closed_for: Duration,
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
    let closing = close(pins, &request.targets, request.max_hold)?;
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
    let list = effective_checks(&request, &endpoints);
    let mut machine = Machine::new(closed_at, deadline, QUIESCE);
    let mut child: Option<Child> = None;
    let mut checks: Option<Watch> = None;
    let last_failure = LastFailure::default();
    let mut queues = interval(POLL);
    queues.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut opened = Opened::default();
    while machine.outcome().is_none() {
        let left = clock::between(clock::now(), deadline);
        let event = tokio::select! {
            biased;
            signal = signals.next() => Event::Signal(signal),
            end = ended(&mut child) => Event::Ended(end),
            () = healthy(&mut checks) => Event::Healthy,
            _ = queues.tick(), if machine.phase() == Phase::Quiesce => {
                // A kernel that can't tell (no inet_diag) is taken to have nothing.
                let pending = sockets::pending(&endpoints).unwrap_or_default();
                Event::Queues {
                    accepted: pending.queued == 0,
                    settled: pending.half_open == 0,
                }
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
        for action in machine.on(event, clock::now()) {
            match action {
                Action::Start => {
                    progress.started(&request.command);
                    match spawn(&program, &request) {
                        Ok(spawned) => child = Some(spawned),
                        Err(error) => {
                            open(pins, &mut tables, &mut replayer, &held, deadline).await;
                            return Err(error);
                        }
                    }
                }
                Action::Check => {
                    progress.checking(clock::between(closed_at, clock::now()), &list);
                    checks = Some(watch(
                        must_listen(&request, &endpoints),
                        listening.clone(),
                        list.clone(),
                        request.checker.clone(),
                        last_failure.clone(),
                    ));
                }
                Action::Open => {
                    opened = open(pins, &mut tables, &mut replayer, &held, deadline).await;
                }
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
    Ok(Summary {
        attached,
        outcome: machine.outcome().unwrap_or(Outcome::Healthy),
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

/// What [`close`] did, and all that opening will need.
struct Closing {
    /// What the operator should know of where it is attached.
    notes: Vec<String>,
    passes: Checks,
    /// All endpoints of the gates.
    endpoints: Vec<Endpoint>,
    /// Those that had a listener here when they were closed.
    listening: Vec<Endpoint>,
    attached: Vec<Upped>,
    tables: Tables,
    replayer: Replayer,
    held: Vec<Held>,
    closed_at: BootTime,
    deadline: BootTime,
    before: GateStats,
}

/// Closes all gates, or none.
fn close(pins: &Pins, targets: &[Target], max_hold: Duration) -> Result<Closing> {
    let lock = pins.lock_or_create()?;
    let closed = pins
        .check_version()
        .and_then(|()| gates::meant(pins, targets))
        .and_then(|endpoints| {
            let attached = datapath::attach_temporarily(pins, &lock, &endpoints)?;
            close_locked(pins, &lock, (targets, endpoints), max_hold, attached)
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
    (targets, endpoints): (&[Target], Vec<Endpoint>),
    max_hold: Duration,
    attached: Vec<Upped>,
) -> Result<Closing> {
    let mut notes = reach::check(&endpoints, &datapath::live(pins)?)?;
    if !attached.is_empty() {
        notes.extend(reach::left_out()?);
    }
    let mut tables = Tables::open(pins)?;
    let passes = Checks::open(pins)?;
    let listens = |endpoint: &Endpoint| sockets::listeners(*endpoint).is_ok_and(|count| count > 0);
    let listening = endpoints.iter().copied().filter(listens).collect();
    let replayer = Replayer::load(pins, lock)?;
    tables.settle(lock, clock::now())?;
    let mut claims = Vec::new();
    for gate in gates::find_or_make(pins, lock, &mut tables, targets, clock::now())? {
        let Some(claim) = pins.claim_restart(lock, gate.id)? else {
            return Err(Error::RestartUnderWay {
                gate: gate.to_string(),
            });
        };
        claims.push((gate, claim));
    }
    let closed_at = clock::now();
    let deadline = clock::after(closed_at, max_hold);
    let word = StateWord::closed(Closed::Hold, deadline).with_checks();
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
        tables.close(lock, held.gate.id, word, clock::now())?;
    }
    Ok(Closing {
        notes,
        passes,
        endpoints,
        listening,
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
/// runs, and for at least a second; after that the gates are open anyway.
async fn open(
    pins: &Pins,
    tables: &mut Tables,
    replayer: &mut Replayer,
    held: &[Held],
    deadline: BootTime,
) -> Opened {
    let until = deadline.max(clock::after(clock::now(), Duration::from_secs(1)));
    let mut opened = Opened::default();
    loop {
        let result = match pins.try_lock() {
            Ok(Some(lock)) => open_locked(pins, &lock, tables, replayer, held, &mut opened),
            Ok(None) if clock::now() < until => {
                sleep(POLL).await;
                continue;
            }
            Ok(None) => pins.lock().map(drop),
            Err(Error::NotUp) => {
                // A `gate down` opened them.
                opened.taken_over = held.iter().map(|held| held.gate.clone()).collect();
                Ok(())
            }
            Err(error) => Err(error),
        };
        opened.failure = result.err();
        opened.at = match opened.released.opened_at {
            BootTime(0) => clock::now(),
            at => at,
        };
        return opened;
    }
}

fn open_locked(
    pins: &Pins,
    lock: &Lock,
    tables: &mut Tables,
    replayer: &mut Replayer,
    held: &[Held],
    opened: &mut Opened,
) -> Result<()> {
    let current = tables.are_current(pins);
    let mut gates = BTreeSet::new();
    for held in held {
        if current && tables.state(held.gate.id)? == held.word {
            gates.insert(held.gate.id);
        } else {
            opened.taken_over.push(held.gate.clone());
        }
    }
    opened.released = release(lock, tables, replayer, &gates)?;
    Ok(())
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

/// Why the last check failed, told from the checks to the live line.
#[derive(Clone, Default)]
struct LastFailure(Arc<Mutex<Option<String>>>);

impl LastFailure {
    fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }
}

type Watch = Pin<Box<dyn Future<Output = ()>>>;

async fn healthy(checks: &mut Option<Watch>) {
    match checks {
        Some(checks) => checks.await,
        None => std::future::pending().await,
    }
}

/// Waits until each local endpoint has a listener and every check has passed once.
fn watch(
    endpoints: Vec<Endpoint>,
    listening: Vec<Endpoint>,
    checks: Vec<Check>,
    checker: Checker,
    last: LastFailure,
) -> Watch {
    Box::pin(async move {
        for endpoint in endpoints {
            while sockets::listeners(endpoint).is_ok_and(|listeners| listeners == 0)
                && !is_published(endpoint, &listening, &checker).await
            {
                last.set(format!("nothing listens on {endpoint}"));
                sleep(POLL).await;
            }
        }
        for check in checks {
            let pause = match check {
                Check::Exec(_) => EXEC_POLL,
                Check::Tcp(_) | Check::Http(_) => POLL,
            };
            while let Err(failure) = checker.run(&check).await {
                last.set(format!("{check}: {failure}"));
                sleep(pause).await;
            }
        }
    })
}

/// The endpoints whose listener must be in this network namespace: those with an address of
/// this host. A wildcard may stand for hosts behind this one, so it counts only where there is
/// nothing else to check.
fn must_listen(request: &Request, endpoints: &[Endpoint]) -> Vec<Endpoint> {
    let is_local = |endpoint: &Endpoint| match endpoint.address {
        None => request.checks.is_empty(),
        Some(address) => match TcpListener::bind((address, 0)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        },
    };
    endpoints.iter().copied().filter(is_local).collect()
}

/// Whether an endpoint that never had a listener here takes connections all the same: a port that
/// is published for a backend elsewhere.
async fn is_published(endpoint: Endpoint, listening: &[Endpoint], checker: &Checker) -> bool {
    match endpoint.address {
        Some(address) if !listening.contains(&endpoint) => {
            let target = SocketAddr::new(address, endpoint.port).to_string();
            checker.run(&Check::Tcp(target)).await.is_ok()
        }
        _ => false,
    }
}

/// The checks that were asked for, or a connection to each endpoint with an address.
fn effective_checks(request: &Request, endpoints: &[Endpoint]) -> Vec<Check> {
    if !request.checks.is_empty() {
        return request.checks.clone();
    }
    let target = |endpoint: &Endpoint| {
        let target = SocketAddr::new(endpoint.address?, endpoint.port);
        Some(Check::Tcp(target.to_string()))
    };
    endpoints.iter().filter_map(target).collect()
}
