//! What the daemon does to gates, each on a thread of its own, and to one gate one thing at a time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gate_common::state::Closed;
use tokio::task::{Id, JoinSet};

use super::control::Action;
use crate::allow::Cidr;
use crate::close::{self, By};
use crate::drain;
use crate::error::Result;
use crate::flush;
use crate::gates::{self, GateName, Target};
use crate::open::{self, Opening, Which};
use crate::pins::Pins;
use crate::release::{Rate, Replayer};

/// What injects, kept from one release to the next, because loading it takes longer than most releases.
#[derive(Clone, Default)]
pub(super) struct Spare(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    replayer: Option<Replayer>,
    /// Counts the times that the maps became others.
    maps: u64,
}

impl Spare {
    /// Loads it before it is needed.
    pub(super) fn fill(&self, pins: &Pins) -> Result<()> {
        let maps = match &*self.kept() {
            Kept {
                replayer: Some(_), ..
            } => return Ok(()),
            Kept { maps, .. } => *maps,
        };
        let replayer = Replayer::load(pins, &pins.lock()?)?;
        self.put(replayer, maps);
        Ok(())
    }

    /// Forgets it: the maps are others.
    pub(super) fn clear(&self) {
        let mut kept = self.kept();
        kept.replayer = None;
        kept.maps += 1;
    }

    fn take(&self) -> (Option<Replayer>, u64) {
        let mut kept = self.kept();
        (kept.replayer.take(), kept.maps)
    }

    /// Keeps one of these maps, if they are the same still.
    fn put(&self, replayer: Replayer, maps: u64) {
        let mut kept = self.kept();
        if kept.maps == maps {
            kept.replayer = Some(replayer);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing to do to a gate.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub gate: GateName,
    pub action: Action,
    pub allow: Vec<Cidr>,
}

/// What is under way and what waits.
pub(super) struct Actions {
    pins: Pins,
    spare: Spare,
    waiting: BTreeMap<GateName, VecDeque<Task>>,
    running: JoinSet<(Task, Result<()>)>,
    gates: HashMap<Id, GateName>,
}

impl Actions {
    pub(super) fn new(pins: &Pins, spare: Spare) -> Self {
        Self {
            pins: pins.clone(),
            spare,
            waiting: BTreeMap::new(),
            running: JoinSet::new(),
            gates: HashMap::new(),
        }
    }

    /// Does this once what was asked for before is done.
    pub(super) fn push(&mut self, task: Task) {
        match self.waiting.get_mut(&task.gate) {
            Some(queue) => queue.push_back(task),
            None => {
                self.waiting.insert(task.gate.clone(), VecDeque::new());
                self.spawn(task);
            }
        }
    }

    /// Whether something is under way for this gate.
    pub(super) fn is_busy(&self, gate: &GateName) -> bool {
        self.waiting.contains_key(gate)
    }

    /// Loads what releases need before the first of them; what fails is tried again then.
    pub(super) fn prepare(&self) {
        let _later = self.spare.fill(&self.pins);
    }

    /// What waits for this gate is not to be done any more.
    pub(super) fn drop_waiting(&mut self, gate: &GateName) {
        if let Some(queue) = self.waiting.get_mut(gate) {
            queue.clear();
        }
    }

    /// The maps are others than before.
    pub(super) fn forget(&self) {
        self.spare.clear();
    }

    /// Waits until nothing is under way any more.
    pub(super) async fn finish(&mut self) {
        self.waiting.values_mut().for_each(VecDeque::clear);
        while !self.waiting.is_empty() {
            let _given_up = self.next().await;
        }
    }

    /// Waits until something is done; for ever where nothing is under way.
    pub(super) async fn next(&mut self) -> (Task, Result<()>) {
        loop {
            match self.running.join_next_with_id().await {
                Some(Ok((id, done))) => {
                    self.go_on(id);
                    return done;
                }
                Some(Err(error)) => {
                    // It panicked: the lease takes over.
                    log::error!("{error}");
                    self.go_on(error.id());
                }
                None => std::future::pending().await,
            }
        }
    }

    fn go_on(&mut self, id: Id) {
        let Some(gate) = self.gates.remove(&id) else {
            return;
        };
        match self.waiting.get_mut(&gate).and_then(VecDeque::pop_front) {
            Some(next) => self.spawn(next),
            None => {
                self.waiting.remove(&gate);
            }
        }
    }

    fn spawn(&mut self, task: Task) {
        let (pins, spare, gate) = (self.pins.clone(), self.spare.clone(), task.gate.clone());
        let handle = self.running.spawn_blocking(move || {
            let result = carry_out(&pins, &spare, &task);
            (task, result)
        });
        self.gates.insert(handle.id(), gate);
    }
}

fn carry_out(pins: &Pins, spare: &Spare, task: &Task) -> Result<()> {
    let target = Target::Named(task.gate.clone());
    match task.action {
        Action::Close { mode, lease } => {
            if mode == Closed::Hold {
                // Holding what can't be released would be worse than dropping it.
                spare.fill(pins)?;
            }
            hold(pins, target, mode, lease, &task.allow)
        }
        Action::Flush => {
            flush::check()?;
            let endpoints = gates::meant(pins, &[target])?;
            flush::all(drain::connections(&endpoints)?).map(drop)
        }
        Action::Open { rate } => release(pins, spare, target, rate),
    }
}

fn hold(pins: &Pins, target: Target, mode: Closed, lease: Duration, allow: &[Cidr]) -> Result<()> {
    let request = close::Request {
        targets: vec![target],
        mode,
        lease,
        allow: allow.to_vec(),
        by: By::Health,
    };
    close::close(pins, &request).map(drop)
}

fn release(pins: &Pins, spare: &Spare, target: Target, rate: Option<Rate>) -> Result<()> {
    let request = open::Request {
        which: Which::These(vec![target]),
        rate,
        by: By::Health,
    };
    let (replayer, maps) = spare.take();
    let mut opening = match replayer {
        Some(replayer) => Opening::with(pins, &request, replayer)?,
        None => Opening::begin(pins, &request)?,
    };
    while let Some(pause) = opening.step()? {
        std::thread::sleep(pause);
    }
    let (_, replayer) = opening.finish_and_keep()?;
    spare.put(replayer, maps);
    Ok(())
}
