//! Drives a restart: closes the gate, runs the command, checks, opens.

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use gate_common::abi::Counter;
use gate_common::flow::GateId;
use gate_common::state::BootTime;
use tokio::process::Child;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::command::{ended, find, spawn, stop};
use super::draining::{Drained, Draining};
use super::gates::{
    Closing, Opened, close, counts, keep, open, reject, renew_aliases, renew_backends,
};
use super::machine::{Action, Event, Machine};
use super::phases::Phases;
use super::watch::{
    Health, LastFailure, Renew, Watch, effective_checks, healthy, must_listen, watch,
};
use super::{AtEnd, Outcome, Phase, Plan};
use crate::allow::Cidr;
use crate::clock;
use crate::datapath::{self, Upped};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result, exit};
use crate::gates::{Gate, Target};
use crate::health::{Check, Checker, Passes};
use crate::nap::nap;
use crate::pins::{Anchor, Pins};
use crate::release::{Pace, Rate, Released};
use crate::signals::Signals;
use crate::sockets;
use crate::status::{Waiting, waiting};

/// Between two looks at the queues.
const POLL: Duration = Duration::from_millis(1);

/// Between two updates of the live line.
const REFRESH: Duration = Duration::from_millis(100);

/// What is left to do where bpffs went during a restart.
const OUT_OF_REACH: &str = "gate's pins are out of reach: bpffs was unmounted, or something is mounted over \
    it; `mount -t bpf bpf /sys/fs/bpf`, or unmount that; `gate status` then shows what is left, and `gate \
    down` takes it away";

/// A restart as it was asked for.
pub struct Request {
    /// The gates to close.
    pub targets: Vec<Target>,
    /// The checks; none for a TCP connection to each endpoint.
    pub checks: Vec<Checker>,
    /// How long a check may take that was not asked for.
    pub check_timeout: Duration,
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
    /// What failed at the end, where something did.
    pub open_failure: Option<Failure>,
}

impl Summary {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.outcome.exit_code() {
            exit::DONE if self.open_failure.is_some() => exit::FAILURE,
            code => code,
        }
    }

    /// The gates that no other command had changed.
    #[must_use]
    pub fn own(&self) -> Vec<Gate> {
        let is_own = |gate: &&Gate| !self.taken_over.contains(gate);
        self.gates.iter().filter(is_own).cloned().collect()
    }

    /// What became of those; none where there are none.
    #[must_use]
    pub fn became(&self) -> Option<AtEnd> {
        match &self.open_failure {
            _ if self.own().is_empty() => None,
            None => Some(self.gate),
            Some(failure) if failure.is_open => Some(AtEnd::Opens),
            Some(_) => Some(AtEnd::Stays),
        }
    }
}

/// What failed when a gate was to be opened, or to reject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub text: String,
    /// Whether the gates are open all the same; where not, their leases open them.
    pub is_open: bool,
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
    let anchor = Arc::clone(&closing.anchor);
    let ended = drive(request, progress, program, signals, closing).await;
    let detached = match anchor.is_lost() {
        // What is pinned there is none of these gates.
        true => Ok(()),
        false => match pins.lock() {
            // A `gate down` was first.
            Err(Error::NotUp) => Ok(()),
            lock => lock.and_then(|lock| datapath::detach_temporary(pins, lock)),
        },
    };
    if let Err(error) = detached {
        progress.note(&format!(
            "could not detach: {error}; `gate down` tries again"
        ));
    }
    if anchor.is_out_of_reach() {
        progress.note(OUT_OF_REACH);
    }
    ended
}

async fn drive(
    request: Request,
    progress: &mut dyn Progress,
    program: PathBuf,
    mut signals: Signals,
    closing: Closing,
) -> Result<Summary> {
    let Closing {
        notes,
        passes,
        endpoints,
        reached,
        served,
        listening,
        awaited,
        mut draining,
        attached,
        mut tables,
        mut replayer,
        anchor,
        held,
        closed_at,
        deadline,
        before,
    } = closing;
    let passes = Passes::always(passes);
    progress.attached(&attached);
    for note in &notes {
        progress.note(note);
    }
    let gates: Vec<Gate> = held.iter().map(|held| held.gate.clone()).collect();
    progress.closed(&gates, request.max_hold);
    let ids: Vec<GateId> = gates.iter().map(|gate| gate.id).collect();
    let list = effective_checks(&request.checks, &endpoints, request.check_timeout, &passes);
    let queued_at: Vec<Endpoint> = reached.iter().chain(&served).copied().collect();
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
    let until_lease_ends = || nap(clock::between(clock::now(), deadline));
    let mut lease = pin!(until_lease_ends());
    while machine.outcome().is_none() {
        let event = tokio::select! {
            biased;
            signal = signals.next() => Event::Signal(signal),
            end = ended(&mut child) => Event::Ended(end),
            () = healthy(&mut checks) => Event::Healthy,
            _ = queues.tick(), if machine.phase() == Phase::Quiesce => {
                // A kernel that can't tell (no inet_diag) is taken to have nothing.
                let pending = sockets::pending_if_none_queued(&queued_at).unwrap_or_default();
                Event::Queues {
                    accepted: pending.queued == 0,
                    settled: pending.half_open == 0,
                }
            }
            () = sleep(until_look(draining.as_ref())), if machine.phase() == Phase::Drain => {
                Event::Connections(look(&mut draining, progress))
            }
            () = &mut lease => {
                lease.set(until_lease_ends());
                Event::Tick
            }
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
                            let opened = open(
                                &anchor,
                                &mut tables,
                                &mut replayer,
                                &held,
                                Pace::default(),
                                &mut signals,
                            )
                            .await;
                            if let Some(Failure { text, is_open }) = opened.failure {
                                let so = match is_open {
                                    true => "could not release all that the gate held",
                                    false => "could not open the gate, so its lease does",
                                };
                                progress.note(&format!("{so}: {text}"));
                            }
                            return Err(error);
                        }
                    }
                }
                Action::Check => {
                    let shown: Vec<Check> = list.iter().map(|it| it.check().clone()).collect();
                    progress.checking(clock::between(closed_at, clock::now()), &shown);
                    checks = Some(watch(Health {
                        must_listen: must_listen(&request.checks, &served),
                        renew: renewal(&anchor, &ids),
                        listening: listening.clone(),
                        checks: list.clone(),
                        passes: passes.clone(),
                        timeout: request.check_timeout,
                        rise: request.rise,
                        last: last_failure.clone(),
                    }));
                }
                Action::Open => {
                    if let Some(note) = renew_aliases(&anchor, &held) {
                        progress.note(&note);
                    }
                    let pace = Pace {
                        rate: request.rate,
                        awaited: match machine.outcome() {
                            Some(Outcome::Healthy) => awaited.clone(),
                            _ => Vec::new(),
                        },
                    };
                    opened = open(
                        &anchor,
                        &mut tables,
                        &mut replayer,
                        &held,
                        pace,
                        &mut signals,
                    )
                    .await;
                }
                Action::Flush => {
                    let flushed = draining.as_mut().map_or(Ok(()), Draining::flush_all);
                    if let Err(error) = flushed {
                        progress.note(&format!("could not reset what is left: {error}"));
                    }
                }
                Action::Reject => {
                    let until = clock::after(clock::now(), request.max_hold);
                    opened = reject(&anchor, &mut tables, &held, until);
                }
                Action::Keep => opened = keep(&anchor, &tables, &held),
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
        open_failure: opened.failure,
        gates,
    })
}

/// What makes the gates' backends known again.
fn renewal(anchor: &Arc<Anchor>, gates: &[GateId]) -> Renew {
    let anchor = Arc::clone(anchor);
    let gates = gates.iter().copied().collect();
    Box::new(move || renew_backends(&anchor, &gates))
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
