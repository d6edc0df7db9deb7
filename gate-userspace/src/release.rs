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
use std::time::{Duration, Instant};

use gate_common::abi::{Direction, HeldSyn, REPLAY_BATCH, ReplayFrame, Way};
use gate_common::flow::{AttemptKey, FlowKey, GateId};
use gate_common::state::{BootTime, Effective, StateWord};

use crate::clock;
use crate::endpoint::{Endpoint, ip};
use crate::error::{Error, Result};
use crate::interfaces::{self, LOOPBACK};
use crate::pins::{Lock, Pins};
use crate::routes::{self, Neighbours, Route};
use crate::sys;
use crate::tables::Tables;

mod lookup;
mod pacer;
mod rate;
mod replayer;

use lookup::{Ends, Lookup};
use pacer::{Entry, Pacer, Taker};
pub use rate::{Rate, RateError};
pub use replayer::Replayer;

/// Rounds of injection for a gate of which nothing was left, before it opens. Each takes what came
/// during the one before; under load that would never end.
const ROUNDS: usize = 8;

/// How long a release waits for a backlog that stays full though its interface is up.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two tries to get the lock, or to inject into a full backlog.
const RETRY: Duration = Duration::from_millis(1);

/// The longest that a step injects without a pause.
const SLICE: Duration = Duration::from_millis(5);

/// After so long without the lock free for long enough that another command could take it, it is
/// left free for [`BREATH`].
const GREED: Duration = Duration::from_millis(100);

/// Longer than another command's pause between two tries.
const BREATH: Duration = Duration::from_millis(3);

/// Between two looks at all that is held, while some of it waits for its turn.
const SWEEP: Duration = Duration::from_millis(20);

/// How long the lock is tried for at least; for as long as a lease runs in any case.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// After its lease a gate passes SYNs, so clients of what is held still have sent theirs again: the
/// rest is given up once none of it could go for this long.
const STALL: Duration = Duration::from_secs(1);

/// Longest that the rest goes on being injected after the lease.
const AFTER_LEASE: Duration = Duration::from_secs(30);

/// How long an injected attempt is remembered during a release. A client that sends its SYN again
/// later than that is answered by a second injection, if the gate is closed still.
const MEMORY: Duration = Duration::from_secs(5);

/// What a release did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// SYNs injected.
    pub injected: usize,
    /// SYNs dropped, because their checksum was wrong when they came.
    pub damaged: usize,
    /// SYNs dropped, because their interface is gone or down, or took nothing for a while.
    pub gone: usize,
    /// SYNs left to their clients' retransmissions: the lease was over and the listener took no
    /// more, or another command changed the gate.
    pub left: usize,
    /// The longest time that one of the injected was held.
    pub longest_wait: Duration,
    /// When the gates were open.
    pub opened_at: BootTime,
}

/// How fast a release may be.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// No more than that, besides what the listeners' queues allow.
    pub rate: Option<Rate>,
    /// Endpoints that had a listener in this network namespace a moment ago. Where it is away, the
    /// release waits for it. At other endpoints without a listener it doesn't, so that clients are
    /// refused at once rather than late, as long as it hasn't seen one itself.
    pub awaited: Vec<Endpoint>,
}

/// What a release is for.
#[derive(Clone, Debug)]
pub enum Job {
    /// To open these gates, each as long as its word is this one.
    Open(BTreeMap<GateId, StateWord>),
    /// To inject what a gate holds for one endpoint, as long as its word is this one, which stays;
    /// until this moment it waits for room at the listener, and a bit longer.
    Inject {
        /// The gate.
        gate: GateId,
        /// The endpoint.
        endpoint: Endpoint,
        /// The gate's word.
        word: StateWord,
        /// The moment.
        until: BootTime,
    },
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next one is worth it after this time, which may be zero.
    Wait(Duration),
    /// All is done.
    Done(Released),
}

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
    /// Its SYNs that wait for their turn.
    waiting: usize,
    /// How often nothing was left and then came more.
    rounds: usize,
    /// When one of its SYNs went last.
    progress: BootTime,
}

/// A release under way.
pub struct Release {
    pins: Pins,
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
            deadline: until.unwrap_or_else(|| word.deadline()),
            waiting: 0,
            rounds: 0,
            progress: now,
        };
        Self {
            pins: pins.clone(),
            awaited: pace.awaited,
            only,
            gates: words
                .into_iter()
                .map(|(id, word)| (id, gate(word)))
                .collect(),
            pacer: Pacer::new(pace.rate, handshake_limit()),
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
            sweep_after: SWEEP,
            blocked_since: None,
            locked_out_since: None,
            greedy_since: Instant::now(),
            barriered: false,
            hurried: false,
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
    /// Those of the maps and of the injection, and [`Error::Locked`]. The gates are open then all
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

    /// Queues what is held and was not seen before.
    fn sweep(&mut self, tables: &Tables) -> Result<()> {
        let start = Instant::now();
        let mut found: Vec<Entry> = Vec::new();
        for (flow, syn) in tables.held()? {
            let is_ours = self
                .gates
                .get(&syn.gate)
                .is_some_and(|gate| gate.phase != Phase::TakenOver)
                && self.only.is_none_or(|only| covers(only, &flow));
            let attempt = AttemptKey { flow, isn: syn.isn };
            if is_ours && self.queued.insert(attempt) {
                found.push(Entry::new(&flow, &syn, self.ends(&flow, &syn)));
                if let Some(gate) = self.gates.get_mut(&syn.gate) {
                    gate.waiting += 1;
                }
            }
        }
        self.pending.extend(found);
        self.pending
            .make_contiguous()
            .sort_by_key(|entry| entry.arrived);
        self.swept = Some(Instant::now());
        // Looking costs as much as there is; it must not take more than a part of the time.
        self.sweep_after = SWEEP.max(start.elapsed() * 10);
        Ok(())
    }

    /// The ends of a flow whose backend is in this network namespace.
    fn ends(&mut self, flow: &FlowKey, syn: &HeldSyn) -> Option<Ends> {
        if Direction::from_number(syn.direction) == Direction::Egress {
            return None;
        }
        let address = ip(&flow.endpoint.address);
        let is_local = *self.locals.entry(address).or_insert_with(|| {
            // What can't be told is decided by whether a listener is found.
            syn.ifindex == LOOPBACK
                || matches!(routes::to(address, None), Ok(Route::Local) | Err(_))
        });
        is_local.then(|| Ends {
            local: SocketAddr::new(address, flow.endpoint.port.number()),
            remote: SocketAddr::new(ip(&flow.source), flow.source_port.number()),
            ifindex: syn.ifindex,
        })
    }

    /// The next to go, as far as there is room for them.
    fn choose(&mut self, now: BootTime) -> Result<Vec<(Taker, Entry)>> {
        const BATCH: usize = REPLAY_BATCH as usize;
        loop {
            if self.pacer.len() < BATCH {
                self.place(BATCH);
            }
            if !self.pacer.is_ready(now) {
                return Ok(Vec::new());
            }
            self.look(now);
            let chosen = self.pacer.take(BATCH, now);
            if !chosen.is_empty() || self.pending.is_empty() {
                return Ok(chosen);
            }
            // All of those wait for listeners that are full.
            self.place(BATCH);
        }
    }

    /// Finds out who takes the oldest of those for whom that is not known yet.
    fn place(&mut self, count: usize) {
        let count = count.min(self.pending.len());
        let entries: Vec<Entry> = self.pending.drain(..count).collect();
        self.assign(&entries);
    }

    fn assign(&mut self, entries: &[Entry]) {
        let ends: Vec<Ends> = entries.iter().filter_map(|entry| entry.ends).collect();
        let mut found = self.listeners(&ends).into_iter();
        for entry in entries {
            let taker = match (entry.ends, entry.ends.and_then(|_| found.next())) {
                (Some(ends), Some(Some((cookie, _)))) => {
                    self.listeners.insert(ends.local);
                    Taker::Listener(cookie)
                }
                (Some(ends), Some(None)) if self.is_awaited(ends.local) => {
                    Taker::Absent(ends.local)
                }
                _ => Taker::Unknown,
            };
            self.pacer.add(taker, *entry);
        }
    }

    /// The listeners of these flows; nothing where that can't be told, or does not matter.
    fn listeners(&mut self, ends: &[Ends]) -> Vec<Option<(lookup::Cookie, lookup::Queue)>> {
        let lookup = self.lookup.as_mut().filter(|_| !self.hurried);
        match lookup.map(|lookup| lookup.listeners(ends)) {
            Some(Ok(found)) => found,
            Some(Err(_)) => {
                self.lookup = None;
                self.pacer.unpace_queues();
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn is_awaited(&self, local: SocketAddr) -> bool {
        let covers = |endpoint: &Endpoint| {
            endpoint.port == local.port() && endpoint.address.is_none_or(|it| it == local.ip())
        };
        self.listeners.contains(&local) || self.awaited.iter().any(covers)
    }

    /// Looks at the queues of the listeners for which something waits.
    fn look(&mut self, now: BootTime) {
        let heads = self.pacer.heads();
        let ends: Vec<Ends> = heads.iter().map(|(_, ends)| *ends).collect();
        let found = self.listeners(&ends);
        for ((taker, ends), found) in heads.into_iter().zip(found) {
            match (taker, found) {
                (Taker::Listener(known), Some((cookie, queue))) if known == cookie => {
                    if self.pacer.look(taker, queue, now) {
                        self.confirm(taker, ends, now);
                    }
                }
                (Taker::Absent(_), None) | (Taker::Unknown, _) => {}
                // Another one listens, or none does.
                (Taker::Listener(_) | Taker::Absent(_), _) => {
                    let entries = Vec::from(self.pacer.evict(taker));
                    self.assign(&entries);
                }
            }
        }
    }

    /// Finds out which handshakes are over, and looks at the queue again, which has got them.
    fn confirm(&mut self, taker: Taker, head: Ends, now: BootTime) {
        let under_way = self.pacer.under_way(taker);
        if let Some(lookup) = &mut self.lookup
            && let Ok(met) = lookup.meet(&under_way)
        {
            self.pacer.confirm(taker, &met, now);
        }
        if let Some(Some((_, queue))) = self.listeners(&[head]).first() {
            self.pacer.look(taker, *queue, now);
        }
    }

    /// Injects these. False where the CPU's backlog is full, so that it is to be tried again later.
    fn inject(
        &mut self,
        lock: &Lock,
        tables: &mut Tables,
        replayer: &mut Replayer,
        chosen: Vec<(Taker, Entry)>,
    ) -> Result<bool> {
        let (mut entries, mut frames) = (Vec::new(), Vec::new());
        for (taker, entry) in chosen {
            // The newest frame: its client may have sent it again while it waited for its turn.
            match tables.held_for(&entry.attempt.flow)? {
                Some(syn) if (syn.isn, syn.gate) == (entry.attempt.isn, entry.gate) => {
                    match replayer::frame(&entry.attempt.flow, &syn) {
                        Some(frame) => {
                            frames.push(frame);
                            entries.push((taker, entry));
                        }
                        None => {
                            self.released.damaged += 1;
                            self.left_queue(entry.gate);
                        }
                    }
                }
                // Its client began anew, or another command forgot it.
                _ => {
                    self.released.left += 1;
                    self.queued.remove(&entry.attempt);
                    self.left_queue(entry.gate);
                }
            }
        }
        if frames.is_empty() {
            return Ok(true);
        }
        // They have an address already, mostly the right one.
        let _unrefreshed = self.neighbours.refresh(&mut frames);
        let injection = replayer.inject(&frames)?;
        self.released.injected += injection.injected;
        self.released.gone += injection.lost;
        let rest = entries.split_off(injection.done);
        self.sent(lock, tables, &entries)?;
        self.pacer.put_back(rest);
        if injection.done > 0 {
            self.blocked_since = None;
            return Ok(true);
        }
        self.may_pass(&frames[0])
    }

    /// Whether the first frame, which can't go now, will never go, and is dropped.
    fn may_pass(&mut self, frame: &ReplayFrame) -> Result<bool> {
        let since = *self.blocked_since.get_or_insert_with(Instant::now);
        // What goes out meets no backlog: whoever took it will do so again.
        let is_patient = frame.way != Way::Out as u32 && since.elapsed() < PATIENCE;
        if is_patient && is_up(frame.ifindex)? {
            return Ok(false);
        }
        self.pacer.drop_first(&frame.attempt);
        self.released.gone += 1;
        self.left_queue(frame.gate);
        Ok(true)
    }

    fn left_queue(&mut self, id: GateId) {
        if let Some(gate) = self.gates.get_mut(&id) {
            gate.waiting = gate.waiting.saturating_sub(1);
        }
    }

    /// Takes note of what went.
    fn sent(&mut self, lock: &Lock, tables: &mut Tables, went: &[(Taker, Entry)]) -> Result<()> {
        let now = clock::now();
        for (taker, entry) in went {
            let waited = clock::between(entry.arrived, now);
            self.released.longest_wait = self.released.longest_wait.max(waited);
            self.pacer.sent(*taker, entry, now);
            self.queued.remove(&entry.attempt);
            self.sent.push_back((now, entry.attempt));
            self.left_queue(entry.gate);
            if let Some(gate) = self.gates.get_mut(&entry.gate) {
                gate.progress = now;
            }
        }
        // So that there is room for those that come meanwhile.
        let flows: Vec<FlowKey> = went.iter().map(|(_, it)| it.attempt.flow).collect();
        tables.forget_flows(lock, &flows)?;
        let room = tables.held_max() as usize / 4 * 3;
        let mut old = Vec::new();
        while let Some((at, attempt)) = self.sent.front()
            && (clock::between(*at, now) > MEMORY || self.sent.len() > room)
        {
            old.push(*attempt);
            self.sent.pop_front();
        }
        tables.forget_attempts(lock, &old)
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

    /// The lock, with a look at what other commands did meanwhile; none where one has it now.
    fn lock<'a>(&mut self, given: Option<&'a Lock>, tables: &Tables) -> Result<Option<Locked<'a>>> {
        let lock = match given {
            Some(lock) => Locked::Given(lock),
            None => match self.pins.try_lock() {
                Ok(Some(lock)) => Locked::Own(lock),
                Ok(None) => return Ok(None),
                Err(Error::NotUp) => {
                    // A `gate down` opened them.
                    self.take_over(|_, _| Ok(true))?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            },
        };
        self.locked_out_since = None;
        let is_current = tables.are_current(&self.pins);
        // A guard may come and go meanwhile.
        self.take_over(|id, word| {
            Ok(!is_current || tables.state(id)?.guarded(false) != word.guarded(false))
        })?;
        Ok(Some(lock))
    }

    fn take_over(&mut self, is_taken: impl Fn(GateId, StateWord) -> Result<bool>) -> Result<()> {
        for (id, gate) in &mut self.gates {
            if gate.phase != Phase::TakenOver && is_taken(*id, gate.word)? {
                gate.phase = Phase::TakenOver;
                self.pacer.forget(|other| other == *id);
                self.pending.retain(|entry| entry.gate != *id);
                self.released.left += gate.waiting;
                gate.waiting = 0;
            }
        }
        Ok(())
    }

    /// What a step comes to that did not get the lock.
    fn locked_out(&mut self) -> Result<Step> {
        if self
            .gates
            .values()
            .all(|gate| gate.phase == Phase::TakenOver)
        {
            return Ok(self.done());
        }
        let since = *self.locked_out_since.get_or_insert_with(Instant::now);
        let now = clock::now();
        let leases_run = self.gates.values().any(|gate| now < gate.deadline);
        if since.elapsed() >= LOCK_PATIENCE && !leases_run {
            return Err(self.pins.locked());
        }
        Ok(Step::Wait(RETRY))
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
        match self.only {
            Some(_) => {
                let sent: Vec<AttemptKey> = self.sent.iter().map(|(_, it)| *it).collect();
                tables.forget_attempts(&lock, &sent)?;
            }
            None => {
                let is_open =
                    |(id, gate): (&GateId, &Gate)| (gate.phase == Phase::Opened).then_some(*id);
                let open = self.gates.iter().filter_map(is_open).collect();
                tables.discard(&lock, &open)?;
            }
        }
        Ok(self.done())
    }

    fn done(&mut self) -> Step {
        if self.released.opened_at == BootTime(0) {
            self.released.opened_at = clock::now();
        }
        Step::Done(self.released)
    }
}

/// The lock, its own or its caller's.
enum Locked<'a> {
    Own(Lock),
    Given(&'a Lock),
}

impl std::ops::Deref for Locked<'_> {
    type Target = Lock;

    fn deref(&self) -> &Lock {
        match self {
            Self::Own(lock) => lock,
            Self::Given(lock) => lock,
        }
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

/// Whether the flow goes to the endpoint.
fn covers(endpoint: Endpoint, flow: &FlowKey) -> bool {
    let is_address = |address: IpAddr| address == ip(&flow.endpoint.address);
    endpoint.port == flow.endpoint.port.number() && endpoint.address.is_none_or(is_address)
}

fn is_up(ifindex: u32) -> Result<bool> {
    let interfaces = interfaces::list()?;
    let mut same = interfaces.iter().filter(|it| it.index == ifindex);
    Ok(same.next().is_some_and(|interface| interface.is_up))
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
