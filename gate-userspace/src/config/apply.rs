//! Carries a plan out, all of it or nothing, under the one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gate_common::flow::GateId;

use super::change::{Awaited, Change};
use super::live::Live;
use super::plan::{Plan, plan};
use super::steps::Steps;
use super::{BackendConfig, Config};
use crate::endpoint::Endpoint;
use crate::error::{BackendError, Error, Result};
use crate::gates::{Gate, GateName};
use crate::handover::{self, HookChoice, Portion, Prepared};
use crate::pins::{Lock, Managed, Pins};
use crate::tables::Tables;
use crate::{clock, gates};

/// What [`apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// The changes, in order; none where all was so already.
    pub changes: Vec<Change>,
    /// What is not there yet: applying again does its part once it is.
    pub awaited: Vec<Awaited>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// What [`apply`] would do now. It takes no lock and changes nothing.
///
/// # Errors
/// Those of the maps and of the kernel.
pub fn planned(pins: &Pins, config: &Config) -> Result<Plan> {
    let live = Live::read(pins, config, clock::now())?;
    let mut plan = plan(config, &live);
    let prepared = prepare(&mut plan, config)?;
    drop(prepared);
    Ok(plan)
}

/// Makes what is live what the configuration says: all of it, or nothing.
///
/// # Errors
/// The first of the plan's obstacles, those of [`Pins::lock_or_create`], and those of the kernel.
/// Nothing is changed then.
pub fn apply(pins: &Pins, config: &Config) -> Result<Applied> {
    let lock = pins.lock_or_create()?;
    let was_up = pins.exist();
    let applied = apply_locked(pins, &lock, config);
    if applied.is_err() && !was_up {
        // The first failure counts.
        let _second = match pins.exist() {
            true => pins.remove(lock),
            false => {
                pins.remove_empty(lock);
                Ok(())
            }
        };
    }
    applied
}

fn apply_locked(pins: &Pins, lock: &Lock, config: &Config) -> Result<Applied> {
    let now = clock::now();
    pins.check_version()?;
    if pins.exist() {
        let mut tables = Tables::open(pins)?;
        tables.settle(lock, now)?;
        // Whoever applied last may have died before it was written.
        tables.mend_index(lock)?;
    }
    let live = Live::read(pins, config, now)?;
    let mut plan = plan(config, &live);
    let prepared = prepare(&mut plan, config)?;
    let obstacles = std::mem::take(&mut plan.obstacles);
    if let Some(first) = obstacles.into_iter().next() {
        return Err(first);
    }
    let ids = live
        .gates
        .iter()
        .map(|(name, it)| (name.clone(), it.gate.id));
    let ids: BTreeMap<GateName, GateId> = ids.collect();
    if plan.changes.is_empty() && plan.managed(&ids) == live.managed {
        return Ok(applied(plan));
    }
    let mut steps = Steps::new(pins, lock, now, ids);
    let done = carry_out(&mut steps, &plan, (config, &live), &prepared);
    match done {
        Ok(()) => {
            plan.notes.extend(steps.finish());
            Ok(applied(plan))
        }
        Err(error) => {
            steps.take_back();
            Err(error)
        }
    }
}

fn applied(plan: Plan) -> Applied {
    let mut awaited = plan.awaited;
    awaited.sort();
    awaited.dedup();
    Applied {
        changes: plan.changes,
        awaited,
        notes: plan.notes,
    }
}

/// The handovers whose backends are there. One whose backend does not listen yet is waited for, and is
/// no change.
fn prepare(plan: &mut Plan, config: &Config) -> Result<BTreeMap<GateName, Prepared>> {
    let mut prepared = BTreeMap::new();
    let mut changes = Vec::new();
    for change in std::mem::take(&mut plan.changes) {
        let Change::HandOver { gate, to, .. } = &change else {
            changes.push(change);
            continue;
        };
        let endpoints = config.gates.get(gate).map(|it| &it.endpoints);
        let endpoints: Vec<Endpoint> = endpoints.into_iter().flatten().copied().collect();
        let target = gates::Target::Named(gate.clone());
        match handover::ready(&wish(to), &target, &endpoints) {
            Ok(ready) => {
                prepared.insert(gate.clone(), ready);
                changes.push(change);
            }
            Err(Error::Backend(BackendError::NothingListens { address, .. })) => {
                plan.awaited.push(Awaited::Listener {
                    gate: gate.clone(),
                    at: address,
                });
                // It stays as it is, whoever made it so.
                if let Some(made) = plan.made.get_mut(gate) {
                    made.handover = matches!(change, Change::HandOver { again: true, .. });
                }
            }
            Err(error @ (Error::Handover(_) | Error::Backend(_))) => plan.obstacles.push(error),
            Err(error) => return Err(error),
        }
    }
    plan.changes = changes;
    Ok(prepared)
}

fn wish(to: &[BackendConfig]) -> handover::Plan {
    let portion = |it: &BackendConfig| Portion {
        at: it.address,
        also: None,
        weight: it.weight,
    };
    handover::Plan {
        to: to.iter().map(portion).collect(),
        pid: None,
        hook: HookChoice::Auto,
        cgroup: None,
    }
}

/// The changes by what they are, because those of one kind are made at once.
#[derive(Default)]
struct Sorted<'a> {
    attach: Vec<&'a super::Target>,
    keep: bool,
    define: Vec<(&'a GateName, &'a BTreeSet<Endpoint>)>,
    guard: BTreeMap<&'a GateName, Option<Duration>>,
    over: Vec<&'a GateName>,
    back: Vec<&'a GateName>,
    forget: Vec<&'a Gate>,
    detach: Vec<(u32, &'a str)>,
}

impl<'a> Sorted<'a> {
    fn new(changes: &'a [Change]) -> Self {
        let mut sorted = Self::default();
        for change in changes {
            match change {
                Change::Attach(target) => sorted.attach.push(target),
                Change::Keep { .. } => sorted.keep = true,
                Change::Define {
                    gate, endpoints, ..
                } => sorted.define.push((gate, endpoints)),
                Change::Adopt { .. } => {}
                Change::Guard { gate, lease, .. } => {
                    sorted.guard.insert(gate, Some(*lease));
                }
                Change::Unguard { gate, .. } => {
                    sorted.guard.insert(gate, None);
                }
                Change::HandOver { gate, .. } => sorted.over.push(gate),
                Change::HandBack { gate } => sorted.back.push(gate),
                Change::Forget { gate } => sorted.forget.push(gate),
                Change::Detach { index, interface } => sorted.detach.push((*index, interface)),
            }
        }
        sorted
    }
}

fn carry_out(
    steps: &mut Steps<'_>,
    plan: &Plan,
    (config, live): (&Config, &Live),
    prepared: &BTreeMap<GateName, Prepared>,
) -> Result<()> {
    let sorted = Sorted::new(&plan.changes);
    let held = config.daemon.held.filter(|_| !live.is_up);
    // What gets another hook is detached right before; the rest goes last.
    let comes_back = |(_, name): &(u32, &str)| sorted.attach.iter().any(|it| it.interface == *name);
    let (again, gone): (Vec<_>, Vec<_>) = sorted.detach.iter().partition(|it| comes_back(it));
    steps.detach(&again)?;
    steps.attach(&sorted.attach, &live.interfaces, (held, live.is_up))?;
    if sorted.keep {
        steps.keep()?;
    }
    let (going, coming): (BTreeMap<_, _>, BTreeMap<_, _>) =
        sorted.guard.iter().partition(|(_, lease)| lease.is_none());
    steps.guards(&going)?;
    for gate in &sorted.back {
        steps.hand(gate, None)?;
    }
    // A slot is free for another once its gate is forgotten.
    let new = sorted
        .define
        .iter()
        .filter(|(name, _)| !live.gates.contains_key(name));
    let is_short = new.count() > steps.free_slots()?;
    if is_short {
        steps.forget(&sorted.forget)?;
    }
    steps.define(&sorted.define)?;
    if !is_short {
        steps.forget(&sorted.forget)?;
    }
    steps.guards(&coming)?;
    for gate in &sorted.over {
        if let Some(ready) = prepared.get(*gate) {
            let to = config.gates.get(*gate).map(|it| wish(&it.backends));
            steps.hand(gate, to.as_ref().map(|to| (ready, to)))?;
        }
    }
    steps.detach(&gone)?;
    let managed: Managed = plan.managed(steps.ids());
    steps.note(&managed)
}
