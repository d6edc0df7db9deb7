//! Drives a drain: looks, waits, and resets what is left where that is asked for.

use std::time::Duration;

use tokio::time::sleep;

use super::{Event, Machine, Outcome, Phase, Watch, Whose};
use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::flush::{self, Flushed};
use crate::gates::Target;
use crate::rights;
use crate::signals::Signals;
use crate::sockets::{Connection, Found};

/// Between two updates of the live line.
const REFRESH: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The gates whose connections are meant; where there are backends, only what came by these.
    pub targets: Vec<Target>,
    /// Only the connections of these backends.
    pub backends: Vec<Endpoint>,
    /// How long to wait.
    pub timeout: Duration,
    /// Whether the connections that are left then are reset.
    pub flush: bool,
}

/// A drain as it is run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The endpoints; those of backends where `by` is there.
    pub endpoints: Vec<Endpoint>,
    /// Where only connections that these backends accepted are meant: the endpoints by which they
    /// came, none for any.
    pub by: Option<Vec<Endpoint>>,
    /// How long it waits.
    pub timeout: Duration,
    /// Whether the connections that are left then are reset.
    pub flush: bool,
    /// What the operator should know while it waits.
    pub notes: Vec<String>,
}

impl Request {
    /// What is meant by that.
    ///
    /// # Errors
    /// [`Error::Rights`](crate::Error::Rights) where a flush would lack them, and those of
    /// [`resolve`](super::resolve) and of [`of_backends`](super::of_backends).
    pub fn new(wanted: &Wanted) -> Result<Self> {
        if wanted.flush {
            rights::check_net_admin()?;
        }
        let now = clock::now();
        let (endpoints, by, notes) = match wanted.backends.is_empty() {
            true => {
                let meant = super::resolve(&wanted.targets, now)?;
                let notes = meant.open(now).iter().map(still_open).collect();
                (meant.endpoints, None, notes)
            }
            false => {
                let meant = super::of_backends(&wanted.backends, &wanted.targets, now)?;
                let notes = meant.giving.iter().map(still_giving).collect();
                (wanted.backends.clone(), Some(meant.by), notes)
            }
        };
        Ok(Self {
            endpoints,
            by,
            timeout: wanted.timeout,
            flush: wanted.flush,
            notes,
        })
    }
}

/// What is open goes on taking connections.
fn still_open(endpoint: &Endpoint) -> String {
    format!("{endpoint} is open, so new connections go on coming in: `gate hold` first keeps them")
}

fn still_giving(gate: &String) -> String {
    format!(
        "{gate} still gives it new connections: `gate handover {gate} --to ADDR` first gives them to \
         another"
    )
}

/// One moment of a drain, for the live line.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Since it began.
    pub elapsed: Duration,
    /// Connections.
    pub connections: usize,
    /// How long the one that is idle for the longest time is.
    pub oldest: Option<Duration>,
    /// What it waits for.
    pub phase: Phase,
}

/// Told of what goes on.
pub trait Progress {
    /// It begins to wait for that many connections, one at least.
    fn draining(&mut self, connections: usize, request: &Request);
    /// Some time has passed.
    fn drain_moment(&mut self, moment: Moment);
}

/// How a drain went.
#[derive(Clone, Debug)]
pub struct Drained {
    /// How the waiting ended.
    pub outcome: Outcome,
    /// Connections that were there when it began.
    pub before: usize,
    /// How long it waited.
    pub waited: Duration,
    /// What was there by the last look.
    pub left: Found,
    /// What was reset then.
    pub flushed: Option<Flushed>,
}

/// Runs a drain to its end.
///
/// # Errors
/// Those of [`flush::check`], before it waits for anything; those of [`flush::all`]; the kernel's.
pub async fn run(request: &Request, progress: &mut dyn Progress) -> Result<Drained> {
    if request.flush {
        flush::check()?;
    }
    let mut watch = match &request.by {
        None => Watch::new(&request.endpoints)?,
        Some(by) => Watch::of_backends(Whose::new(request.endpoints.clone(), by.clone()))?,
    };
    let start = clock::now();
    let mut machine = Machine::new(start, request.timeout);
    let waited_for = wait(request, &mut watch, &mut machine, progress).await?;
    let outcome = machine.outcome().unwrap_or(Outcome::Remaining);
    let waited = clock::between(start, clock::now());
    let flushed = match outcome {
        Outcome::Remaining if request.flush => Some(flush::all(watch.look()?)?),
        Outcome::Remaining | Outcome::Drained | Outcome::Interrupted(_) => None,
    };
    Ok(Drained {
        outcome,
        before: waited_for.before,
        waited,
        left: waited_for.found,
        flushed,
    })
}

/// Waits until these backends have no connection any more, whichever endpoint it came by, or until
/// the time is up: what a handover does before it says that a backend may be stopped.
///
/// # Errors
/// As [`run`].
pub async fn empty(
    backends: &[Endpoint],
    timeout: Duration,
    progress: &mut dyn Progress,
) -> Result<Drained> {
    let request = Request {
        endpoints: backends.to_vec(),
        by: Some(Vec::new()),
        timeout,
        flush: false,
        notes: Vec::new(),
    };
    run(&request, progress).await
}

/// Waits until the machine has ended.
async fn wait(
    request: &Request,
    watch: &mut Watch,
    machine: &mut Machine,
    progress: &mut dyn Progress,
) -> Result<Waited> {
    let mut signals = Signals::new()?;
    let start = clock::now();
    let mut before = None;
    let mut shown = None;
    loop {
        let began = clock::now();
        let found = watch.look()?;
        let now = clock::now();
        let connections = found.connections.len();
        let looked = Event::Looked {
            connections,
            half_open: found.half_open.len(),
            took: clock::between(began, now),
        };
        machine.on(looked, now);
        if before.is_none() && connections > 0 {
            progress.draining(connections, request);
        }
        let before = *before.get_or_insert(connections);
        if shown.is_none_or(|shown| clock::between(shown, now) >= REFRESH) {
            shown = Some(now);
            progress.drain_moment(moment(machine, &found, clock::between(start, now)));
        }
        if machine.outcome().is_none() {
            tokio::select! {
                biased;
                signal = signals.next() => machine.on(Event::Signal(signal), clock::now()),
                () = sleep(clock::between(now, machine.next_look())) => {}
            }
        }
        if machine.outcome().is_some() {
            return Ok(Waited { before, found });
        }
    }
}

/// What was there first and last.
struct Waited {
    before: usize,
    found: Found,
}

fn moment(machine: &Machine, found: &Found, elapsed: Duration) -> Moment {
    let idle = found.connections.iter().filter_map(Connection::idle);
    Moment {
        elapsed,
        connections: found.connections.len(),
        oldest: idle.max(),
        phase: machine.phase(),
    }
}

impl Drained {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.outcome, self.flushed) {
            (Outcome::Remaining, Some(_)) => Outcome::Drained.exit_code(),
            (outcome, _) => outcome.exit_code(),
        }
    }
}
