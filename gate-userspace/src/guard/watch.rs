//! Watching over guarded gates: as soon as a socket listens again where none did, what is held for it
//! is released.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use gate_common::abi::Guard;
use gate_common::flow::{EndpointKey, GateId};
use gate_common::state::{BootTime, Effective, StateWord};
use tokio::time::sleep;

use crate::alias;
use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates::Gate;
use crate::handover;
use crate::listens::{self, Listens};
use crate::pins::{Lock, Pins, locked};
use crate::release::{Job, Pace, Release, Released, Replayer, Step};
use crate::signals::Signals;
use crate::sockets;
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

/// How often is looked.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    /// Between two looks while all is quiet.
    quiet: Duration,
    /// Between two looks while a listener is missing.
    missing: Duration,
}

/// Where the kernel tells that a socket listens. A look finds then what it doesn't tell: that one is
/// missing, and SYNs that were being judged when it began to listen.
const TOLD: Pauses = Pauses {
    quiet: Duration::from_millis(100),
    missing: Duration::from_millis(20),
};

/// Where it doesn't: what is held waits for this, too.
const POLLED: Pauses = Pauses {
    quiet: Duration::from_millis(5),
    missing: Duration::from_millis(1),
};

/// For so long after a socket began to listen a look comes each millisecond: a SYN that found no listener
/// just before is entered by then.
const AFTERMATH: Duration = Duration::from_millis(5);

/// Between two releases for one destination: where the data path sees no listener though sock_diag
/// shows one (a socket bound to a device, say), what is injected comes back at once.
const AGAIN: Duration = Duration::from_millis(50);

/// Between two looks whether the maps are still those that are pinned.
const CURRENT: Duration = Duration::from_secs(1);

/// What the watcher saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing listens there, and connections are held for as long as the lease runs.
    Missing {
        /// Where.
        endpoint: Endpoint,
        /// The lease.
        lease: Duration,
    },
    /// A socket listens there again.
    Back {
        /// Where.
        endpoint: Endpoint,
        /// Since the first connection that found none.
        after: Duration,
        /// What was held.
        released: Released,
    },
    /// The lease is over, and connections are refused.
    Over {
        /// Where.
        endpoint: Endpoint,
        /// The lease.
        lease: Duration,
    },
}

/// Why watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By this signal. The gates stay guarded.
    Signal(i32),
    /// None of the gates is guarded any more.
    Unguarded,
}

/// A destination where nothing listened a moment ago.
struct Outage {
    gate: GateId,
    since: BootTime,
    is_over: bool,
}

/// What is held for one destination, on its way to the listener.
struct Releasing {
    release: Release,
    endpoint: Endpoint,
    /// How long nothing listened.
    after: Duration,
    /// When its next step is due.
    due: Instant,
}

/// Which gates are watched.
enum Watched {
    /// These, as long as they are guarded.
    These(BTreeSet<GateId>),
    /// All that are guarded.
    All,
}

/// Watches over guarded gates, look by look.
pub struct Watcher {
    pins: Pins,
    tables: Tables,
    replayer: Replayer,
    gates: Watched,
    pauses: Pauses,
    told: Option<Instant>,
    outages: HashMap<EndpointKey, Outage>,
    releasing: HashMap<EndpointKey, Releasing>,
    released: HashMap<EndpointKey, Instant>,
    looked: Instant,
}

/// A watch over some guarded gates.
pub struct Watch {
    watcher: Watcher,
    listens: Option<Listens>,
}

impl Watch {
    /// Begins it: from here on the kernel tells of sockets that listen, where it can.
    ///
    /// # Errors
    /// [`Error::NotUp`], [`Error::Locked`], and those of loading what injects.
    pub fn new(pins: &Pins, gates: &[Gate]) -> Result<Self> {
        let ids = gates.iter().map(|gate| gate.id).collect();
        // A host without cgroups of version 2 is polled.
        let listens = Listens::open().ok();
        let told = listens.is_some();
        Ok(Self {
            watcher: Watcher::new(pins, &pins.lock()?, Watched::These(ids), told)?,
            listens,
        })
    }

    /// Goes on until a signal comes, or none of the gates is guarded any more.
    ///
    /// # Errors
    /// Those of the maps and of the injection.
    pub async fn run(mut self, signals: &mut Signals, tell: &mut dyn FnMut(&Event)) -> Result<End> {
        loop {
            let pause = match self.watcher.look(tell) {
                Ok(Some(pause)) => pause,
                // By `gate guard --off`, or by `gate down`.
                Ok(None) | Err(Error::NotUp) => return Ok(End::Unguarded),
                Err(error) => return Err(error),
            };
            tokio::select! {
                biased;
                signal = signals.next() => return Ok(End::Signal(signal)),
                ports = listens::next(&mut self.listens) => {
                    self.watcher.tell(&ports?);
                }
                () = sleep(pause) => {}
            }
        }
    }
}

impl Watcher {
    /// A watcher over all guarded gates. `told` says whether [`tell`](Self::tell) is called when a socket
    /// begins to listen.
    ///
    /// # Errors
    /// [`Error::NotUp`], [`Error::Locked`] where another command is at work, and those of loading what
    /// injects.
    pub fn of_all(pins: &Pins, told: bool) -> Result<Self> {
        // Whoever looks has other things to do than to wait.
        let lock = pins.try_lock()?.ok_or_else(locked)?;
        Self::new(pins, &lock, Watched::All, told)
    }

    fn new(pins: &Pins, lock: &Lock, gates: Watched, told: bool) -> Result<Self> {
        let replayer = Replayer::load(pins, lock)?;
        Ok(Self {
            pins: pins.clone(),
            tables: Tables::open(pins)?,
            replayer,
            gates,
            pauses: if told { TOLD } else { POLLED },
            told: None,
            outages: HashMap::new(),
            releasing: HashMap::new(),
            released: HashMap::new(),
            looked: Instant::now(),
        })
    }

    /// Says that sockets began to listen at these ports.
    pub fn tell(&mut self, ports: &BTreeSet<u16>) {
        let now = Instant::now();
        self.told = Some(now);
        // Another socket than that which what was released there met.
        self.released
            .retain(|key, _| !ports.contains(&key.port.number()));
        for (key, releasing) in &mut self.releasing {
            if ports.contains(&key.port.number()) {
                releasing.due = now;
            }
        }
    }

    /// The gates that are guarded, with their words and how.
    fn guarded(&self) -> Result<Vec<(GateId, StateWord, Guard)>> {
        let mut guarded = Vec::new();
        match &self.gates {
            Watched::These(gates) => {
                for gate in gates {
                    let word = self.tables.state(*gate)?;
                    if word.is_guarded() {
                        guarded.push((*gate, word, self.tables.guard(*gate)?));
                    }
                }
            }
            Watched::All => {
                let mut words = self.tables.states()?;
                words.retain(|(_, word)| word.is_guarded());
                if !words.is_empty() {
                    let guards: HashMap<GateId, Guard> =
                        self.tables.guards()?.into_iter().collect();
                    let known = |(gate, word): (GateId, StateWord)| {
                        guards.get(&gate).map(|guard| (gate, word, *guard))
                    };
                    guarded.extend(words.into_iter().filter_map(known));
                }
            }
        }
        Ok(guarded)
    }

    /// Looks once and does what is to be done; how long to wait for the next time, or none where no
    /// gate is guarded any more.
    ///
    /// # Errors
    /// [`Error::NotUp`] after a `gate down`; those of the maps and of the injection.
    pub fn look(&mut self, tell: &mut dyn FnMut(&Event)) -> Result<Option<Duration>> {
        if self.looked.elapsed() >= CURRENT {
            self.looked = Instant::now();
            self.check_current()?;
        }
        let now = clock::now();
        let guarded = self.guarded()?;
        if guarded.is_empty() {
            self.outages.clear();
            self.releasing.clear();
            return Ok(None);
        }
        let mut dirty = BTreeMap::new();
        for (gate, word, guard) in &guarded {
            // What a closed gate holds is for whoever opens it.
            let is_closed = matches!(word.at(|| now), Effective::Closed(_));
            if guard.dirty != 0 && !is_closed {
                dirty.insert(*gate, Duration::from_nanos(guard.lease));
            }
        }
        if let Watched::These(gates) = &mut self.gates {
            *gates = guarded.iter().map(|(gate, _, _)| *gate).collect();
        }
        let is_fresh = self.told.is_some_and(|at| at.elapsed() < AFTERMATH);
        let quiet = if is_fresh {
            POLLED.missing
        } else {
            self.pauses.quiet
        };
        if dirty.is_empty() && self.releasing.is_empty() {
            self.outages.clear();
            return Ok(Some(quiet));
        }
        self.note(&dirty, now, tell)?;
        self.begin(&dirty)?;
        let next = self.step(tell)?;
        if self.outages.is_empty() && self.releasing.is_empty() {
            self.calm(&dirty)?;
        }
        let runs = self.outages.values().any(|outage| !outage.is_over);
        let missing = if is_fresh {
            POLLED.missing
        } else {
            self.pauses.missing
        };
        let pause = if runs { missing } else { quiet };
        Ok(Some(next.map_or(pause, |next| next.min(pause))))
    }

    fn check_current(&self) -> Result<()> {
        match self.tables.are_current(&self.pins) {
            true => Ok(()),
            false => Err(Error::NotUp),
        }
    }

    /// Notes where a listener is missing, and where one was missing for so short a time that only
    /// what is held still tells of it.
    fn note(
        &mut self,
        dirty: &BTreeMap<GateId, Duration>,
        now: BootTime,
        tell: &mut dyn FnMut(&Event),
    ) -> Result<()> {
        self.outages
            .retain(|_, outage| dirty.contains_key(&outage.gate));
        for (key, missing) in self.tables.missing()? {
            let Some(lease) = dirty.get(&missing.gate).copied() else {
                continue;
            };
            let (endpoint, since) = (Endpoint::from(key), BootTime(missing.since));
            let known = self.outages.get(&key).map(|outage| outage.since);
            if known != Some(since) {
                let outage = Outage {
                    gate: missing.gate,
                    since,
                    is_over: false,
                };
                self.outages.insert(key, outage);
                tell(&Event::Missing { endpoint, lease });
            }
            if let Some(outage) = self.outages.get_mut(&key)
                && !outage.is_over
                && clock::between(since, now) >= lease
            {
                outage.is_over = true;
                tell(&Event::Over { endpoint, lease });
            }
        }
        for outage in self.outages.values_mut() {
            // One that only held SYNs tell of has no lease of its own, and must end as well.
            let lease = dirty.get(&outage.gate);
            outage.is_over |= lease.is_some_and(|it| clock::between(outage.since, now) >= *it);
        }
        if self.outages.is_empty() && self.releasing.is_empty() {
            for (flow, syn) in self.tables.held()? {
                if dirty.contains_key(&syn.gate) {
                    self.outages.entry(flow.endpoint).or_insert(Outage {
                        gate: syn.gate,
                        since: BootTime(syn.arrived),
                        is_over: false,
                    });
                }
            }
        }
        Ok(())
    }

    fn calm(&mut self, dirty: &BTreeMap<GateId, Duration>) -> Result<()> {
        match self.pins.try_lock()? {
            Some(lock) => self.tables.calm(&lock, &dirty.keys().copied().collect()),
            // Another command is at work: the next look is soon enough.
            None => Ok(()),
        }
    }

    /// Begins to release what is held for destinations where a socket listens again.
    fn begin(&mut self, leases: &BTreeMap<GateId, Duration>) -> Result<()> {
        if self.outages.is_empty() {
            return Ok(());
        }
        self.released.retain(|_, at| at.elapsed() < AGAIN);
        let waiting = self.outages.keys().copied().map(Endpoint::from);
        let waiting: Vec<Endpoint> = waiting.collect();
        let handovers = Handovers::open(&self.pins)?;
        let mut places = Vec::new();
        for at in alias::listened_at(&self.pins, &waiting)? {
            let mut takers = handover::takers(&self.tables, handovers.as_ref(), at)?;
            // Where no backend is left, the gate's own listener takes over.
            takers.insert(at);
            places.push(takers);
        }
        let all: Vec<Endpoint> = places.iter().flatten().copied().collect();
        let listening = sockets::listening(&all)
            .map_err(Error::call("ask sock_diag for", "listening sockets"))?;
        for (endpoint, takers) in waiting.into_iter().zip(places) {
            if !listening.iter().any(|it| takers.contains(it)) {
                continue;
            }
            let key = EndpointKey::from(endpoint);
            let is_busy = self.releasing.contains_key(&key) || self.released.contains_key(&key);
            let Some(outage) = self.outages.get(&key).filter(|_| !is_busy) else {
                continue;
            };
            let (gate, since, now) = (outage.gate, outage.since, clock::now());
            let word = self.tables.state(gate)?;
            // Closed by another command this moment: what it holds is for whoever opens it.
            if matches!(word.at(|| now), Effective::Closed(_)) {
                continue;
            }
            let Some(lock) = self.pins.try_lock()? else {
                return Ok(());
            };
            if outage.is_over {
                // Clients that have given up long ago.
                self.tables.settle(&lock, now)?;
            }
            if handovers.is_some() {
                // The program that chooses for it must know what listens now.
                // Where one can't be had, another may answer: what is injected finds out.
                let _silent = alias::renew(&self.pins, &lock, &BTreeSet::from([gate]));
                let _silent = handover::renew(&self.pins, &lock, &BTreeSet::from([gate]));
            }
            self.tables.found(&lock, &key)?;
            drop(lock);
            let lease = leases.get(&gate).copied().unwrap_or_default();
            let job = Job::Inject {
                gate,
                endpoint,
                word,
                until: clock::after(now, lease),
            };
            let pace = Pace {
                rate: None,
                awaited: vec![endpoint],
            };
            self.outages.remove(&key);
            let releasing = Releasing {
                release: Release::new(&self.pins, job, pace),
                endpoint,
                after: clock::between(since, now),
                due: Instant::now(),
            };
            self.releasing.insert(key, releasing);
        }
        Ok(())
    }

    /// Goes on with the releases that are due; how long to wait for the next step of one.
    fn step(&mut self, tell: &mut dyn FnMut(&Event)) -> Result<Option<Duration>> {
        let mut done = Vec::new();
        for (key, releasing) in &mut self.releasing {
            if Instant::now() < releasing.due {
                continue;
            }
            match releasing
                .release
                .step(&mut self.tables, &mut self.replayer)?
            {
                Step::Wait(pause) => releasing.due = Instant::now() + pause,
                Step::Done(released) => {
                    tell(&Event::Back {
                        endpoint: releasing.endpoint,
                        after: releasing.after,
                        released,
                    });
                    done.push(*key);
                }
            }
        }
        for key in done {
            self.releasing.remove(&key);
            self.released.insert(key, Instant::now());
        }
        let due = self.releasing.values().map(|releasing| releasing.due).min();
        Ok(due.map(|due| due.saturating_duration_since(Instant::now())))
    }
}
