//! Runs the checks of all gates, each at its time, and says what they come to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::{Check, CheckFailure, Checker, Connectors, Health, Passes, Sample, Spec, State};
use crate::gates::GateName;
use crate::pins::Pins;

/// An interval is varied by this part, up or down; a tick may vary it by as much again.
const JITTER: f64 = 0.05;

/// The shortest interval.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Checks that are due within this part of the shortest interval begin together: to wake up costs as much
/// as a check.
const TICK_PART: u32 = 20;

/// The longest that a check is late for that.
const TICK_MAX: Duration = Duration::from_millis(100);

/// What a monitor has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthEvent {
    /// A check was made.
    Checked {
        /// Of which gate.
        gate: GateName,
        /// Which of the gate's checks, from 0 in the order of its configuration.
        index: usize,
        /// What came of it, or why it failed.
        result: Result<(), String>,
        /// How long it took.
        took: Duration,
        /// The check's health, where this changed it.
        turned: Option<Health>,
    },
    /// A check could not be made, for a reason of this host: it says nothing of the backend, and
    /// counts as if it had not been due.
    Unmade {
        /// Of which gate.
        gate: GateName,
        /// Which of the gate's checks.
        index: usize,
        /// Why.
        why: String,
    },
    /// A gate's health changed.
    Changed {
        /// Which gate's.
        gate: GateName,
        /// What it was.
        from: Health,
        /// What it is.
        to: Health,
        /// Where it is down: which check, and why that failed.
        why: Option<String>,
    },
}

/// A gate's health.
#[derive(Clone, Debug)]
pub struct GateHealth {
    /// Its name.
    pub name: GateName,
    /// Its health.
    pub health: Health,
    /// For how long it has been that.
    pub since: Duration,
    /// Its checks, in the order of its configuration.
    pub checks: Vec<CheckHealth>,
}

/// A check's health.
#[derive(Clone, Debug)]
pub struct CheckHealth {
    /// What is checked.
    pub check: Check,
    /// Its health.
    pub health: Health,
    /// For how long it has been that.
    pub since: Duration,
    /// The last result.
    pub last: Option<Sample>,
    /// How long ago that came.
    pub last_ago: Option<Duration>,
    /// How many of the last results are alike.
    pub streak: u32,
    /// Why it failed last, and how long ago.
    pub last_failure: Option<(String, Duration)>,
    /// The last results, oldest first.
    pub history: Vec<Sample>,
}

type CheckId = u64;

type Done = (CheckId, Result<(), CheckFailure>);

/// Runs the checks of all gates, in the tokio runtime that calls [`Monitor::next`].
pub struct Monitor {
    gates: Vec<Gate>,
    slots: BTreeMap<CheckId, Slot>,
    /// What is to be started, and when; what runs is not in it.
    due: BTreeSet<(Instant, CheckId)>,
    running: JoinSet<Done>,
    events: VecDeque<HealthEvent>,
    connectors: Connectors,
    passes: Option<Passes>,
    random: fastrand::Rng,
    next_id: CheckId,
    start: Instant,
    tick: Duration,
}

struct Gate {
    name: GateName,
    health: Health,
    since: Instant,
    checks: Vec<CheckId>,
}

struct Slot {
    gate: GateName,
    index: usize,
    spec: Spec,
    /// None until it can be made: what it needs may not be there yet.
    checker: Option<Checker>,
    state: State,
    /// When it is due, or was.
    at: Instant,
    /// When it was started last.
    begun: Instant,
    running: Option<AbortHandle>,
}

impl Monitor {
    /// A monitor of these gates. With `pins` the checks pass closed gates that let checks pass.
    #[must_use]
    pub fn new(pins: Option<Pins>, gates: Vec<(GateName, Vec<Spec>)>) -> Self {
        let mut monitor = Self {
            gates: Vec::new(),
            slots: BTreeMap::new(),
            due: BTreeSet::new(),
            running: JoinSet::new(),
            events: VecDeque::new(),
            connectors: Connectors::default(),
            passes: pins.map(Passes::following),
            random: fastrand::Rng::new(),
            next_id: 0,
            start: Instant::now(),
            tick: TICK_MAX,
        };
        monitor.configure(gates);
        monitor
    }

    /// Monitors these gates from now on. A check that its gate had before goes on as it was.
    /// Certificates to verify against are read anew.
    pub fn configure(&mut self, gates: Vec<(GateName, Vec<Spec>)>) {
        let now = Instant::now();
        let mut before: BTreeMap<GateName, Gate> = std::mem::take(&mut self.gates)
            .into_iter()
            .map(|gate| (gate.name.clone(), gate))
            .collect();
        self.connectors = Connectors::default();
        for (name, specs) in gates {
            let mut gate = before.remove(&name).unwrap_or_else(|| Gate {
                name,
                health: Health::Unknown,
                since: now,
                checks: Vec::new(),
            });
            let mut old = std::mem::take(&mut gate.checks);
            for (index, spec) in specs.into_iter().enumerate() {
                let same = old.iter().position(|id| self.slots[id].spec == spec);
                let id = match same {
                    Some(at) => self.keep(old.remove(at), index),
                    None => self.add(&gate.name, index, spec, now),
                };
                gate.checks.push(id);
            }
            self.remove(&old);
            self.gates.push(gate);
            self.judge(self.gates.len() - 1, now);
        }
        for gate in before.into_values() {
            self.remove(&gate.checks);
        }
        let shortest = self.slots.values().map(Slot::interval).min();
        self.tick = shortest.map_or(TICK_MAX, |it| (it / TICK_PART).min(TICK_MAX));
    }

    fn keep(&mut self, id: CheckId, index: usize) -> CheckId {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.index = index;
            if slot.spec.check.is_over_tls() {
                slot.checker = None;
            }
        }
        id
    }

    fn add(&mut self, gate: &GateName, index: usize, spec: Spec, now: Instant) -> CheckId {
        let id = self.next_id;
        self.next_id += 1;
        // Many checks that begin together would also be due together.
        let at = now + spec.interval.mul_f64(self.random.f64());
        let slot = Slot {
            gate: gate.clone(),
            index,
            state: State::new(spec.rise, spec.fall, now),
            spec,
            checker: None,
            at,
            begun: at,
            running: None,
        };
        self.slots.insert(id, slot);
        self.due.insert((at, id));
        id
    }

    fn remove(&mut self, ids: &[CheckId]) {
        for id in ids {
            if let Some(slot) = self.slots.remove(id) {
                self.due.remove(&(slot.at, *id));
                if let Some(running) = slot.running {
                    running.abort();
                }
            }
        }
    }

    /// Makes a gate's checks at once, but for those that are under way.
    pub fn hurry(&mut self, gate: &GateName) {
        let now = Instant::now();
        let gate = self.gates.iter().find(|it| it.name == *gate);
        for id in gate.map_or(&[][..], |gate| &gate.checks) {
            if let Some(slot) = self.slots.get_mut(id)
                && self.due.remove(&(slot.at, *id))
            {
                slot.at = now;
                self.due.insert((now, *id));
            }
        }
        self.start_due(now);
    }

    /// The next thing to tell. It can be dropped at any time, and called again: nothing is lost.
    /// Without any checks it waits for ever.
    pub async fn next(&mut self) -> HealthEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let due = self.due.first().map(|(at, _)| self.tick_after(*at));
            tokio::select! {
                Some(done) = self.running.join_next() => self.finish(done, Instant::now()),
                () = until(due) => self.start_due(Instant::now()),
            }
        }
    }

    /// The first tick at or after a time.
    fn tick_after(&self, time: Instant) -> Instant {
        let since = time.saturating_duration_since(self.start).as_nanos();
        let tick = self.tick.as_nanos().max(1);
        let nanos = since.div_ceil(tick).saturating_mul(tick);
        let whole = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.start.checked_add(whole).unwrap_or(time)
    }

    fn start_due(&mut self, now: Instant) {
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.begun = now;
            match slot.checker(&mut self.connectors, self.passes.as_ref()) {
                Ok(checker) => {
                    let run = async move { (id, checker.run().await) };
                    slot.running = Some(self.running.spawn(run));
                }
                Err(failure) => self.record(id, Err(failure), now),
            }
        }
    }

    fn finish(&mut self, done: Result<Done, JoinError>, now: Instant) {
        match done {
            Ok((id, result)) => self.record(id, result, now),
            Err(error) => {
                // One that was taken away has no slot. One that panicked is not to stay away for ever.
                if let Some(id) = self.running_as(error.id()) {
                    let ours = std::io::Error::other(error.to_string());
                    self.record(id, Err(CheckFailure::Ours(ours)), now);
                }
            }
        }
    }

    fn running_as(&self, task: Id) -> Option<CheckId> {
        let is_it = |slot: &Slot| slot.running.as_ref().is_some_and(|it| it.id() == task);
        self.slots
            .iter()
            .find_map(|(id, slot)| is_it(slot).then_some(*id))
    }

    fn record(&mut self, id: CheckId, result: Result<(), CheckFailure>, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.running = None;
        let took = now - slot.begun;
        let interval = slot.interval();
        let factor = 1.0 - JITTER + 2.0 * JITTER * self.random.f64();
        slot.at = (slot.at + interval.mul_f64(factor)).max(now);
        self.due.insert((slot.at, id));
        let gate = slot.gate.clone();
        let index = slot.index;
        let result = match result {
            Err(failure) if failure.is_ours() => {
                let why = failure.to_string();
                self.events
                    .push_back(HealthEvent::Unmade { gate, index, why });
                return;
            }
            result => result.map_err(|failure| failure.to_string()),
        };
        let turned = slot.state.record(result.clone(), took, now);
        let at = self.gates.iter().position(|it| it.name == gate);
        self.events.push_back(HealthEvent::Checked {
            gate,
            index,
            result,
            took,
            turned,
        });
        if let (Some(at), Some(_)) = (at, turned) {
            self.judge(at, now);
        }
    }

    /// Looks whether a gate's health is another.
    fn judge(&mut self, at: usize, now: Instant) {
        let Some(gate) = self.gates.get_mut(at) else {
            return;
        };
        let slots = gate.checks.iter().filter_map(|id| self.slots.get(id));
        let to = Health::of_all(slots.clone().map(|slot| slot.state.health()));
        if to == gate.health {
            return;
        }
        let why = slots
            .filter(|slot| slot.state.health() == Health::Down)
            .find_map(|slot| {
                let (_, why) = slot.state.failure()?;
                Some(format!("{}: {why}", slot.spec.check))
            });
        self.events.push_back(HealthEvent::Changed {
            gate: gate.name.clone(),
            from: gate.health,
            to,
            why,
        });
        gate.health = to;
        gate.since = now;
    }

    /// A gate's health; unknown for one that is not monitored.
    #[must_use]
    pub fn health(&self, gate: &GateName) -> Health {
        let gate = self.gates.iter().find(|it| it.name == *gate);
        gate.map_or(Health::Unknown, |gate| gate.health)
    }

    /// All gates with their checks, in the order of the configuration.
    #[must_use]
    pub fn snapshot(&self) -> Vec<GateHealth> {
        let now = Instant::now();
        let gate = |gate: &Gate| GateHealth {
            name: gate.name.clone(),
            health: gate.health,
            since: now - gate.since,
            checks: gate
                .checks
                .iter()
                .filter_map(|id| Some(self.slots.get(id)?.snapshot(now)))
                .collect(),
        };
        self.gates.iter().map(gate).collect()
    }
}

impl Slot {
    fn interval(&self) -> Duration {
        self.spec.interval.max(INTERVAL_MIN)
    }

    fn checker(
        &mut self,
        connectors: &mut Connectors,
        passes: Option<&Passes>,
    ) -> Result<Checker, CheckFailure> {
        if let Some(checker) = &self.checker {
            return Ok(checker.clone());
        }
        let mut checker = Checker::new(&self.spec, connectors)?;
        if let Some(passes) = passes {
            checker.pass(passes);
        }
        self.checker = Some(checker.clone());
        Ok(checker)
    }

    fn snapshot(&self, now: Instant) -> CheckHealth {
        let state = &self.state;
        let failure = state.failure();
        CheckHealth {
            check: self.spec.check.clone(),
            health: state.health(),
            since: now - state.since(),
            last: state.history().next_back(),
            last_ago: state.last().map(|at| now - at),
            streak: state.streak(),
            last_failure: failure.map(|(at, why)| (why.to_owned(), now - at)),
            history: state.history().collect(),
        }
    }
}

/// Until that time; for ever where there is none.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
