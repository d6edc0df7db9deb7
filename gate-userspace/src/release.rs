//! Release: replay what gates hold, oldest first and no faster than its listeners take it, and open
//! them.
//!
//! Order: what is held is injected while the gates are still closed, so that what comes meanwhile
//! queues behind it and nothing overtakes; a gate of which nothing is left is set to open; then
//! sweeps, with an RCU barrier between, take what a data path that had read the old word was just
//! putting in.
//!
//! A release is made of steps, and holds the lock only while it injects or opens. Between two
//! steps whoever drives it sleeps, minds signals, or dies: the next release goes on from there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate_common::flow::{AttemptKey, GateId};
use gate_common::state::{BootTime, Effective, StateWord};

use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::pins::{Anchor, Lock, Pins};
use crate::routes::Neighbours;
use crate::sys;
use crate::tables::Tables;

mod inject;
mod job;
mod locked;
mod lookup;
mod pacer;
mod queue;
mod rate;
mod replayer;

pub use job::{Job, Pace, Released, Step};
use lookup::Lookup;
use pacer::{Entry, Pacer};
pub use rate::{Rate, RateError};
pub use replayer::Replayer;

/// Rounds of injection for a gate of which nothing was left, before it opens. Each takes what came
/// during the one before; under load that would never end.
const ROUNDS: usize = 8;

/// Between two tries to get the lock, or to inject into a full backlog.
const RETRY: Duration = Duration::from_millis(1);

/// The longest that a step injects without a pause.
const SLICE: Duration = Duration::from_millis(5);

/// After so long without the lock free for long enough that another command could take it, it is
/// left free for [`BREATH`].
const GREED: Duration = Duration::from_millis(100);

/// Longer than another command's pause between two tries.
const BREATH: Duration = Duration::from_millis(3);

/// After its lease a gate passes SYNs, so clients of what is held still have sent theirs again: the
/// rest is given up once none of it could go for this long.
const STALL: Duration = Duration::from_secs(1);

/// Longest that the rest goes on being injected after the lease.
const AFTER_LEASE: Duration = Duration::from_secs(30);

/// Where one gate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Opened,
    TakenOver,
}

#[derive(Clone, Copy, Debug)]
struct Gate {
    word: StateWord,
    phase: Phase,
    /// Until when its SYNs wait for room.
    deadline: BootTime,
    /// Whether it was guarded when it was looked at last.
    is_guarded: bool,
    /// Its SYNs that wait for their turn.
    waiting: usize,
    /// Its SYNs that are its guard's, because nothing listens for them.
    kept: usize,
    /// How often nothing was left and then came more.
    rounds: usize,
    /// When one of its SYNs went last.
    progress: BootTime,
}

/// A release under way.
pub struct Release {
    pins: Pins,
    anchor: Option<Arc<Anchor>>,
    awaited: Vec<Endpoint>,
    /// The only endpoint whose SYNs are injected; the words stay then.
    only: Option<Endpoint>,
    gates: BTreeMap<GateId, Gate>,
    pacer: Pacer,
    /// Held SYNs whose listener is not looked up yet, oldest first.
    pending: VecDeque<Entry>,
    queued: HashSet<AttemptKey>,
    sent: VecDeque<(BootTime, AttemptKey)>,
    lookup: Option<Lookup>,
    locals: HashMap<IpAddr, bool>,
    listeners: HashSet<SocketAddr>,
    neighbours: Neighbours,
    released: Released,
    swept: Option<Instant>,
    sweep_after: Duration,
    blocked_since: Option<Instant>,
    locked_out_since: Option<Instant>,
    greedy_since: Instant,
    barriered: bool,
    hurried: bool,
}

impl Release {
    /// A release that has done nothing yet.
    #[must_use]
    pub fn new(pins: &Pins, job: Job, pace: Pace) -> Self {
        let now = clock::now();
        let (words, only, until) = match job {
            Job::Open(words) => (words, None, None),
            Job::Inject {
                gate,
                endpoint,
                word,
                until,
            } => (BTreeMap::from([(gate, word)]), Some(endpoint), Some(until)),
        };
        let gate = |word: StateWord| Gate {
            word,
            phase: match only {
                None => Phase::Closed,
                Some(_) => Phase::Opened,
            },
            deadline: match (until, word.at(|| now)) {
                (Some(until), _) => until,
                // It was guarded a moment ago.
                (None, Effective::Open) => now,
                (None, Effective::Closed(_) | Effective::Expired) => word.deadline(),
            },
            is_guarded: word.is_guarded(),
            waiting: 0,
            kept: 0,
            rounds: 0,
            progress: now,
        };
        Self {
            pins: pins.clone(),
            anchor: None,
            awaited: pace.awaited,
            only,
            gates: words
                .into_iter()
                .map(|(id, word)| (id, gate(word)))
                .collect(),
            pacer: Pacer::new(pace.rate, handshake_limit(), now),
            pending: VecDeque::new(),
            queued: HashSet::new(),
            sent: VecDeque::new(),
            // A kernel that can't tell (no inet_diag) leaves only the rate.
            lookup: Lookup::open().ok(),
            locals: HashMap::new(),
            listeners: HashSet::new(),
            neighbours: Neighbours::default(),
            released: Released::default(),
            swept: None,
            sweep_after: queue::SWEEP,
            blocked_since: None,
            locked_out_since: None,
            greedy_since: Instant::now(),
            barriered: false,
            hurried: false,
        }
    }

    /// The same, which goes on also where the pins are out of reach.
    #[must_use]
    pub fn anchored(anchor: &Arc<Anchor>, job: Job, pace: Pace) -> Self {
        Self {
            anchor: Some(Arc::clone(anchor)),
            ..Self::new(anchor.pins(), job, pace)
        }
    }

    /// From now on nothing is waited for: the next step opens the gates and injects the rest.
    pub fn hurry(&mut self) {
        self.hurried = true;
        self.pacer.unpace();
    }

    /// The gates that another command changed meanwhile, and which were left as they were.
    #[must_use]
    pub fn taken_over(&self) -> BTreeSet<GateId> {
        let taken = |(id, gate): (&GateId, &Gate)| (gate.phase == Phase::TakenOver).then_some(*id);
        self.gates.iter().filter_map(taken).collect()
    }

    /// Does what can be done now, for some milliseconds at the most.
    ///
    /// # Errors
    /// Those of the maps and of the injection, and [`Error::Locked`](crate::error::Error::Locked). The gates are open then all
    /// the same, as far as the kernel still answers.
    pub fn step(&mut self, tables: &mut Tables, replayer: &mut Replayer) -> Result<Step> {
        self.step_under(None, tables, replayer)
    }

    /// Steps to the end, and sleeps between.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn run(mut self, tables: &mut Tables, replayer: &mut Replayer) -> Result<Released> {
        self.run_under(None, tables, replayer)
    }

    /// Whether some gate is closed still.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.closed().is_empty()
    }

    /// What it did so far.
    #[must_use]
    pub fn so_far(&self) -> Released {
        self.released
    }

    fn run_under(
        &mut self,
        lock: Option<&Lock>,
        tables: &mut Tables,
        replayer: &mut Replayer,
    ) -> Result<Released> {
        loop {
            match self.step_under(lock, tables, replayer)? {
                Step::Wait(pause) => std::thread::sleep(pause),
                Step::Done(released) => return Ok(released),
            }
        }
    }

    fn step_under(
        &mut self,
        given: Option<&Lock>,
        tables: &mut Tables,
        replayer: &mut Replayer,
    ) -> Result<Step> {
        let stepped = self.try_step(given, tables, replayer);
        if stepped.is_err()
            && let Ok(Some(lock)) = self.lock(given, tables)
        {
            // Each is tried, whatever became of the others; the first failure counts.
            for id in self.closed() {
                let _second = self.open(&lock, tables, id);
            }
        }
        stepped
    }

    fn try_step(
        &mut self,
        given: Option<&Lock>,
        tables: &mut Tables,
        replayer: &mut Replayer,
    ) -> Result<Step> {
        let started = Instant::now();
        loop {
            if self.hurried && !self.closed().is_empty() {
                let Some(lock) = self.lock(given, tables)? else {
                    return self.locked_out();
                };
                for id in self.closed() {
                    self.open(&lock, tables, id)?;
                }
            }
            if !self.open_emptied(given, tables)? {
                return self.locked_out();
            }
            let now = clock::now();
            if self.is_empty() && self.closed().is_empty() {
                if !self.barriered {
                    sys::rcu_barrier();
                    self.barriered = true;
                    self.sweep(tables)?;
                    continue;
                }
                return self.finish(given, tables);
            }
            let chosen = self.choose(now)?;
            if chosen.is_empty() {
                self.give_up(now);
                self.greedy_since = Instant::now();
                return Ok(Step::Wait(self.pacer.wait(now)));
            }
            let Some(lock) = self.lock(given, tables)? else {
                self.pacer.put_back(chosen);
                return self.locked_out();
            };
            let went = self.inject(&lock, tables, replayer, chosen)?;
            drop(lock);
            if !went {
                return Ok(Step::Wait(RETRY));
            }
            if started.elapsed() >= SLICE {
                return Ok(Step::Wait(self.breath()));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.pacer.len() == 0
    }

    fn closed(&self) -> Vec<GateId> {
        let is_closed = |(id, gate): (&GateId, &Gate)| (gate.phase == Phase::Closed).then_some(*id);
        self.gates.iter().filter_map(is_closed).collect()
    }

    /// Opens the gates of which nothing is left, and looks at what is held where that is due.
    /// False where the lock is not to be had.
    fn open_emptied(&mut self, given: Option<&Lock>, tables: &mut Tables) -> Result<bool> {
        let is_idle = |id: &GateId| self.gates.get(id).is_some_and(|gate| gate.waiting == 0);
        let idle: Vec<GateId> = self.closed().into_iter().filter(is_idle).collect();
        let is_due = self.swept.is_none_or(|at| at.elapsed() >= self.sweep_after);
        if idle.is_empty() && (!is_due || self.barriered) {
            return Ok(true);
        }
        self.sweep(tables)?;
        let mut emptied = Vec::new();
        for id in idle {
            if let Some(gate) = self.gates.get_mut(&id) {
                gate.rounds += 1;
                if gate.waiting == 0 || gate.rounds >= ROUNDS {
                    emptied.push(id);
                }
            }
        }
        if emptied.is_empty() {
            return Ok(true);
        }
        let Some(lock) = self.lock(given, tables)? else {
            return Ok(false);
        };
        for id in emptied {
            self.open(&lock, tables, id)?;
        }
        Ok(true)
    }

    /// Sets a gate to open, if it is still as it was.
    fn open(&mut self, lock: &Lock, tables: &mut Tables, id: GateId) -> Result<()> {
        let now = clock::now();
        let Some(gate) = self.gates.get_mut(&id) else {
            return Ok(());
        };
        if gate.phase != Phase::Closed {
            return Ok(());
        }
        if gate.kept > 0 {
            // Before it opens: from then on a retransmission may find a listener.
            tables.mark_dirty(lock, id)?;
        }
        tables.set_state(lock, id, StateWord::OPEN, now)?;
        let opened_at = match gate.word.at(|| now) {
            Effective::Expired => gate.word.deadline(),
            Effective::Open | Effective::Closed(_) => now,
        };
        self.released.opened_at = self.released.opened_at.max(opened_at);
        gate.word = StateWord::OPEN;
        gate.phase = Phase::Opened;
        gate.deadline = now;
        gate.progress = now;
        Ok(())
    }

    /// Leaves those to their clients that wait for nothing any more.
    fn give_up(&mut self, now: BootTime) {
        for (id, gate) in &mut self.gates {
            let over = clock::between(gate.deadline, now);
            let is_stalled = over >= STALL && clock::between(gate.progress, now) >= STALL;
            if gate.waiting > 0 && (is_stalled || over >= AFTER_LEASE) {
                let left = self.pacer.forget(|other| other == *id);
                self.pending.retain(|entry| entry.gate != *id);
                // They are held still, and must not be queued again.
                self.released.left += left.max(gate.waiting);
                gate.waiting = 0;
            }
        }
    }

    /// A pause for other commands, now and then.
    fn breath(&mut self) -> Duration {
        if self.greedy_since.elapsed() < GREED {
            return Duration::ZERO;
        }
        self.greedy_since = Instant::now();
        BREATH
    }

    /// Clears up.
    fn finish(&mut self, given: Option<&Lock>, tables: &mut Tables) -> Result<Step> {
        let Some(lock) = self.lock(given, tables)? else {
            return self.locked_out();
        };
        let sent: Vec<AttemptKey> = self.sent.iter().map(|(_, it)| *it).collect();
        tables.forget_attempts(&lock, &sent)?;
        let mut open = BTreeSet::new();
        for (id, gate) in &self.gates {
            // What a guard holds meanwhile is its own.
            if self.only.is_some() || gate.phase != Phase::Opened {
                continue;
            }
            if !tables.state(*id)?.is_guarded() {
                open.insert(*id);
            } else if gate.kept > 0 {
                // What the last sweeps found came after the gate was marked.
                tables.mark_dirty(&lock, *id)?;
            }
        }
        tables.discard(&lock, &open)?;
        Ok(self.done())
    }

    fn done(&mut self) -> Step {
        if self.released.opened_at == BootTime(0) {
            self.released.opened_at = clock::now();
        }
        Step::Done(self.released)
    }
}

/// Opens gates under a lock that is held through, and injects what they hold at once: for whoever
/// is about to take the maps away.
///
/// # Errors
/// As [`Release::step`].
pub fn release_at_once(
    pins: &Pins,
    lock: &Lock,
    tables: &mut Tables,
    replayer: &mut Replayer,
    gates: BTreeMap<GateId, StateWord>,
) -> Result<Released> {
    let mut release = Release::new(pins, Job::Open(gates), Pace::default());
    release.pacer.unpace();
    release.run_under(Some(lock), tables, replayer)
}

/// Most handshakes that may be under way at one listener. Without SYN cookies the kernel keeps a
/// quarter of `tcp_max_syn_backlog` for clients that it knows; with them only the listener's
/// backlog counts.
fn handshake_limit() -> usize {
    let read = |name: &str| -> Option<usize> {
        let path = format!("/proc/sys/net/ipv4/{name}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    match (read("tcp_syncookies"), read("tcp_max_syn_backlog")) {
        (Some(0), Some(most)) => (most / 2).max(1),
        _ => usize::MAX,
    }
}
