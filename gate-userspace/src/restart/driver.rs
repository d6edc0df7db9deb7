//! Drives a restart: closes the gate, runs the command, checks, opens.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gate_common::abi::{Counter, GateStats};
use gate_common::flow::GateId;
use gate_common::state::{BootTime, Closed, StateWord};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Action, CommandEnd, Event, Machine, Outcome, Phase};
use crate::clock;
use crate::datapath;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::health::{Check, Checker};
use crate::pins::{Pins, RestartLock};
use crate::release::{Released, Replayer, release};
use crate::sockets;
use crate::status::{Waiting, waiting};
use crate::tables::Tables;

/// Between two looks at the queues, and between a failed check and the next. Either costs
/// some 50 µs, so this is 5 % of a core for as long as the backend is away.
const POLL: Duration = Duration::from_millis(1);

/// Between two updates of the live line.
const REFRESH: Duration = Duration::from_millis(100);

/// How long the queues may keep the command waiting.
const QUIESCE: Duration = Duration::from_secs(1);

/// What a stopped command gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// A restart as it was asked for.
pub struct Request {
    /// The endpoints to close.
    pub endpoints: Vec<Endpoint>,
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
    /// The gate was closed.
    fn closed(&mut self, endpoints: &[Endpoint], max_hold: Duration);
    /// The command was started.
    fn started(&mut self, command: &[OsString]);
    /// The command ended well, `elapsed` after the gate was closed.
    fn checking(&mut self, elapsed: Duration, checks: &[Check]);
    /// Some time has passed.
    fn moment(&mut self, moment: &Moment);
    /// Something that the operator should know.
    fn note(&mut self, text: &str);
}

/// How a restart went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
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
    /// Endpoints whose gate another command had changed, and which were left as they were.
    pub taken_over: Vec<Endpoint>,
}

/// A gate as this restart closed it.
struct Held {
    endpoint: Endpoint,
    gate: GateId,
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
    datapath::check_attached(pins)?;
    // All that opening needs is there before anything closes.
    let mut replayer = Replayer::load(pins)?;
    let mut tables = Tables::open(pins)?;
    let mut signals = Signals::new()?;

    let closed_at = clock::now();
    let deadline = clock::after(closed_at, request.max_hold);
    let held = close(pins, &mut tables, &request.endpoints, deadline)?;
    let before = counts(&tables, &held)?;
    progress.closed(&request.endpoints, request.max_hold);

    let gates: Vec<GateId> = held.iter().map(|held| held.gate).collect();
    let mut machine = Machine::new(closed_at, deadline, QUIESCE);
    let mut child: Option<Child> = None;
    let mut checks: Option<Checks> = None;
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
            _ = queues.tick(), if machine.phase() == Phase::Quiesce => Event::Queues {
                empty: sockets::pending(&request.endpoints)
                    .is_ok_and(|pending| pending.is_empty()),
            },
            () = sleep(left) => Event::Tick,
            _ = refresh.tick() => {
                let now = clock::now();
                progress.moment(&Moment {
                    elapsed: clock::between(closed_at, now),
                    // A line that can't be shown is no reason to stop.
                    waiting: waiting(&tables, &gates, now).unwrap_or_default(),
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
                            open(pins, &mut tables, &mut replayer, &held)?;
                            return Err(error);
                        }
                    }
                }
                Action::Check => {
                    let list = effective_checks(&request);
                    progress.checking(clock::between(closed_at, clock::now()), &list);
                    checks = Some(watch(
                        request.endpoints.clone(),
                        list,
                        request.checker.clone(),
                        last_failure.clone(),
                    ));
                }
                Action::Open => opened = open(pins, &mut tables, &mut replayer, &held)?,
                Action::Stop => {
                    if let Some(child) = &mut child {
                        progress.note("stopping the command");
                        stop(child).await;
                    }
                }
            }
        }
    }
    let after = counts(&tables, &held)?;
    let lost = |counter: Counter| {
        let index = counter as usize;
        after.counts[index].saturating_sub(before.counts[index])
    };
    Ok(Summary {
        outcome: machine.outcome().unwrap_or(Outcome::Healthy),
        closed_for: clock::between(closed_at, opened.released.opened_at),
        released: opened.released,
        overflowed: lost(Counter::Overflowed),
        uncaptured: lost(Counter::Uncaptured),
        last_failure: last_failure.get(),
        taken_over: opened.taken_over,
        endpoints: request.endpoints,
    })
}

/// Closes the gates of all endpoints, or none.
fn close(
    pins: &Pins,
    tables: &mut Tables,
    endpoints: &[Endpoint],
    deadline: BootTime,
) -> Result<Vec<Held>> {
    let lock = pins.lock()?;
    let word = StateWord::closed(Closed::Hold, deadline);
    let mut held = Vec::new();
    for endpoint in endpoints.iter().copied().collect::<BTreeSet<_>>() {
        let gate = tables.define(&lock, endpoint, clock::now())?;
        let Some(claim) = pins.claim_restart(&lock, gate)? else {
            return Err(Error::RestartUnderWay { endpoint });
        };
        held.push(Held {
            endpoint,
            gate,
            word,
            _claim: claim,
        });
    }
    for held in &held {
        tables.close(&lock, held.gate, word, clock::now())?;
    }
    Ok(held)
}

/// What [`open`] did.
#[derive(Default)]
struct Opened {
    released: Released,
    taken_over: Vec<Endpoint>,
}

/// Opens the gates that are still as this restart closed them.
fn open(
    pins: &Pins,
    tables: &mut Tables,
    replayer: &mut Replayer,
    held: &[Held],
) -> Result<Opened> {
    let lock = pins.lock()?;
    let mut gates = BTreeSet::new();
    let mut opened = Opened::default();
    for held in held {
        if tables.state(held.gate)? == held.word {
            gates.insert(held.gate);
        } else {
            opened.taken_over.push(held.endpoint);
        }
    }
    opened.released = release(&lock, tables, replayer, &gates)?;
    Ok(opened)
}

/// The counters of these gates, summed.
fn counts(tables: &Tables, held: &[Held]) -> Result<GateStats> {
    let mut sum = GateStats::default();
    for held in held {
        let stats = tables.stats(held.gate)?;
        for (sum, count) in sum.counts.iter_mut().zip(stats.counts) {
            *sum += count;
        }
    }
    Ok(sum)
}

/// Finds the command's program as a shell would, so that a wrong name changes nothing.
fn find(command: &[OsString]) -> Result<PathBuf> {
    let name = command.first().map_or(Path::new(""), Path::new);
    let shown = || name.display().to_string();
    if name.components().count() > 1 || name.has_root() {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoCommand { command: shown() })
            }
            Err(cause) => Err(Error::NotExecutable {
                command: shown(),
                cause,
            }),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| Error::NoCommand { command: shown() })
}

fn executable(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    access(path, AccessFlags::X_OK).map_err(io::Error::from)
}

/// Starts the command in a process group of its own, so that it can be stopped whole and a
/// Ctrl-C reaches gate first.
fn spawn(program: &Path, request: &Request) -> Result<Child> {
    let refused = |cause| Error::NotExecutable {
        command: program.display().to_string(),
        cause,
    };
    let mut command = Command::new(program);
    command
        .args(request.command.iter().skip(1))
        .process_group(0);
    if io::stdin().is_terminal() {
        // A background group that reads the terminal would be stopped, and hang.
        command.stdin(Stdio::null());
    }
    if request.reserve_stdout {
        let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(refused)?;
        command.stdout(stderr);
    }
    command.spawn().map_err(refused)
}

async fn ended(child: &mut Option<Child>) -> CommandEnd {
    match child {
        Some(running) => {
            let status = running.wait().await;
            *child = None;
            // A child that can't be waited for is gone; that counts as a failure.
            status.map_or(CommandEnd::Code(1), end_of)
        }
        None => std::future::pending().await,
    }
}

fn end_of(status: ExitStatus) -> CommandEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => CommandEnd::Code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => CommandEnd::Signal(signal.unwrap_or(0)),
    }
}

/// Stops the command and its process group.
async fn stop(child: &mut Child) {
    let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) else {
        return;
    };
    let group = Pid::from_raw(group);
    // An error means that the group is gone, which is what is wanted.
    let _gone = killpg(group, Signal::SIGTERM);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _gone = killpg(group, Signal::SIGKILL);
        let _status = child.wait().await;
    }
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

type Checks = Pin<Box<dyn Future<Output = ()>>>;

async fn healthy(checks: &mut Option<Checks>) {
    match checks {
        Some(checks) => checks.await,
        None => std::future::pending().await,
    }
}

/// Waits until each local endpoint has a listener and every check has passed once.
fn watch(
    endpoints: Vec<Endpoint>,
    checks: Vec<Check>,
    checker: Checker,
    last: LastFailure,
) -> Checks {
    Box::pin(async move {
        for endpoint in endpoints.into_iter().filter(|endpoint| is_local(*endpoint)) {
            while sockets::pending(&[endpoint]).is_ok_and(|pending| pending.listeners == 0) {
                last.set(format!("nothing listens on {endpoint}"));
                sleep(POLL).await;
            }
        }
        for check in checks {
            while let Err(failure) = checker.run(&check).await {
                last.set(format!("{check}: {failure}"));
                sleep(POLL).await;
            }
        }
    })
}

/// Whether the endpoint's listener must be in this network namespace.
fn is_local(endpoint: Endpoint) -> bool {
    endpoint
        .address
        .is_none_or(|address| match TcpListener::bind((address, 0)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        })
}

/// The checks that were asked for, or a connection to each endpoint.
fn effective_checks(request: &Request) -> Vec<Check> {
    if !request.checks.is_empty() {
        return request.checks.clone();
    }
    let target = |endpoint: &Endpoint| {
        let address = endpoint.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Check::Tcp(SocketAddr::new(address, endpoint.port).to_string())
    };
    request.endpoints.iter().map(target).collect()
}

/// The signals that end a restart.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(Error::call("sigaction", "SIGINT, SIGTERM, SIGHUP"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
        }
    }
}
