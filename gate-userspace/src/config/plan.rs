//! The difference between a configuration and what is live. Pure: what is read and what is carried
//! out are elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use gate_common::abi::{MAX_ENDPOINTS, MAX_GATES};
use gate_common::flow::GateId;
use gate_common::handover::Steered;

use super::change::{Awaited, Change};
use super::live::{Live, LiveGate, LiveHandover};
use super::wanted;
use super::{Config, DefaultMode, GateConfig};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::gates::{self, Gate, GateName};
use crate::handover::Refusal;
use crate::interfaces::Interface;
use crate::pins::{Made, Managed};
use crate::{alias, reach};

/// What would have to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// The changes, in the order in which they are carried out.
    pub changes: Vec<Change>,
    /// What is not there yet; applying again does its part once it is.
    pub awaited: Vec<Awaited>,
    /// What stands in the way: nothing is done then.
    pub obstacles: Vec<Error>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// What the configuration will have made of the gates; the slots of new ones are not known yet.
    pub(super) made: BTreeMap<GateName, Made>,
    /// The interfaces that the configuration will have attached to.
    pub(super) interfaces: BTreeSet<u32>,
}

/// Compares the configuration with what is live.
#[must_use]
pub fn plan(config: &Config, live: &Live) -> Plan {
    let mut plan = Plan::default();
    let waiting = attachments(&mut plan, config, live);
    let owners = owners(live);
    for (name, gate) in &config.gates {
        define(&mut plan, (name, gate), (config, live), &owners);
    }
    for (name, gate) in &config.gates {
        let now = live.gates.get(name);
        let made = made(live, name);
        let guard = guard(&mut plan, (name, gate), now, made);
        let is_early = waiting.contains(name);
        let handover = hand(&mut plan, (name, gate), (live, is_early), made);
        let made = Made { guard, handover };
        plan.made.insert(name.clone(), made);
    }
    others(&mut plan, config, live);
    room(&mut plan, config, live);
    detachments(&mut plan, live);
    if let (Some(actual), Some(asked)) = (live.held, config.daemon.held)
        && actual != asked
    {
        plan.notes.push(format!(
            "the table of held SYNs has room for {actual}: held = {asked} counts after `gate down`"
        ));
    }
    plan
}

fn made(live: &Live, name: &GateName) -> Made {
    let managed = live.managed.gates.get(name);
    managed.map(|(_, made)| *made).unwrap_or_default()
}

/// The interfaces that are wanted, and how much of the endpoints they see. Returns the gates that wait
/// for something.
fn attachments(plan: &mut Plan, config: &Config, live: &Live) -> BTreeSet<GateName> {
    let wanted = wanted::interfaces(config, live);
    for (index, need) in &wanted.needs {
        let Some(interface) = live.interface(*index) else {
            continue;
        };
        let hooks = live.attached.get(index).map_or(&[][..], Vec::as_slice);
        match wanted::missing(interface, &live.interfaces, *need, hooks) {
            Ok(missing) if missing.is_empty() => {
                if live.managed.interfaces.contains(index) {
                    plan.interfaces.insert(*index);
                }
            }
            Ok(missing) => {
                plan.changes.extend(missing.into_iter().map(Change::Attach));
                plan.interfaces.insert(*index);
            }
            Err(Error::OtherHook { .. }) if live.managed.interfaces.contains(index) => {
                again(plan, interface, *need, live);
            }
            Err(error) => plan.obstacles.push(error),
        }
    }
    if live.is_temporary && !wanted.needs.is_empty() {
        for index in live.attached.keys() {
            if let Some(interface) = live.interface(*index) {
                // What is not wanted goes with the next plan: until then the restart needs it.
                let interface = interface.name.clone();
                plan.interfaces.insert(*index);
                plan.changes.push(Change::Keep { interface });
            }
        }
    }
    let ways = wanted.ways(live);
    for (name, gate) in &config.gates {
        // What it will be when all is there can't be told yet.
        if !wanted.waiting.contains(name) {
            coverage(plan, (name, gate), live, &ways);
        }
    }
    plan.awaited.extend(wanted.awaited);
    wanted.waiting
}

/// An interface that the configuration attached to gets another hook: for a moment it has none.
fn again(plan: &mut Plan, interface: &Interface, need: wanted::Need, live: &Live) {
    match wanted::missing(interface, &live.interfaces, need, &[]) {
        Ok(missing) => {
            detach(plan, interface, live);
            plan.changes.extend(missing.into_iter().map(Change::Attach));
            plan.interfaces.insert(interface.index);
        }
        Err(error) => plan.obstacles.push(error),
    }
}

/// What the attachments see of a gate.
fn coverage(
    plan: &mut Plan,
    (name, gate): (&GateName, &GateConfig),
    live: &Live,
    ways: &wanted::Ways,
) {
    let mut elsewhere = Vec::new();
    for endpoint in &gate.endpoints {
        let Some(Some(place)) = live.places.get(endpoint) else {
            continue;
        };
        if !place.is_here() {
            elsewhere.push(*endpoint);
        }
        if reach::coverage(*place, ways) == reach::Coverage::None {
            plan.obstacles.push(Error::GateNotCovered {
                gate: name.clone(),
                endpoint: *endpoint,
            });
        }
    }
    if gate.mode == DefaultMode::Guard
        && let Some(first) = elsewhere.first()
    {
        let more = match elsewhere.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        plan.notes.push(format!(
            "{name}: {first}{more} is no address of this host now: the guard sees nothing of it until it is"
        ));
    }
}

/// Who has each endpoint.
fn owners(live: &Live) -> BTreeMap<Endpoint, &LiveGate> {
    let gates = live.gates.values().chain(live.singles.values());
    let each = gates.flat_map(|gate| gate.gate.endpoints.iter().map(move |it| (*it, gate)));
    each.collect()
}

fn define(
    plan: &mut Plan,
    (name, gate): (&GateName, &GateConfig),
    (config, live): (&Config, &Live),
    owners: &BTreeMap<Endpoint, &LiveGate>,
) {
    let now = live.gates.get(name);
    let before: Option<BTreeSet<Endpoint>> =
        now.map(|it| it.gate.endpoints.iter().copied().collect());
    if before.as_ref() == Some(&gate.endpoints) {
        if !live.managed.gates.contains_key(name) {
            plan.changes.push(Change::Adopt { gate: name.clone() });
        }
        return;
    }
    if let Some(now) = now {
        if now.is_closed {
            plan.obstacles.push(closed(now));
        }
        if let Err(error) = gates::check_answering(&now.gate, &gate.endpoints) {
            plan.obstacles.push(error);
        }
    }
    let all = live.gates.values().chain(live.singles.values());
    let with_ports: Vec<Gate> = all
        .filter(|it| !it.gate.aliases.is_empty())
        .map(|it| it.gate.clone())
        .collect();
    for endpoint in &gate.endpoints {
        if let Err(error) = alias::check_none(&with_ports, *endpoint) {
            plan.obstacles.push(error);
        }
        let Some(owner) = owners.get(endpoint) else {
            continue;
        };
        if owner.gate.name.as_ref() != Some(name)
            && let Some(error) = kept(owner, *endpoint, (config, live))
        {
            plan.obstacles.push(error);
        }
    }
    plan.changes.push(Change::Define {
        gate: name.clone(),
        endpoints: gate.endpoints.clone(),
        before,
    });
}

fn closed(gate: &LiveGate) -> Error {
    let gate = gate.gate.to_string();
    Error::Closed { gate }
}

/// Why a gate does not give an endpoint of its own away.
fn kept(owner: &LiveGate, endpoint: Endpoint, (config, live): (&Config, &Live)) -> Option<Error> {
    let gate = || owner.gate.to_string();
    if let Some(name) = &owner.gate.name {
        let is_ours = config.gates.contains_key(name) || live.managed.gates.contains_key(name);
        // Of a gate of its own the configuration asks the rest where that one changes.
        return (!is_ours).then(|| Error::Member {
            endpoint,
            name: name.clone(),
        });
    }
    if owner.is_closed {
        return Some(closed(owner));
    }
    if owner.guard.is_some() {
        return Some(Error::Guarded { gate: gate() });
    }
    if owner.handover.is_some() {
        return Some(Refusal::HandedOver(gate()).into());
    }
    gates::check_answering(&owner.gate, &BTreeSet::new()).err()
}

/// Plans the guard; whether it is the configuration's then.
fn guard(
    plan: &mut Plan,
    (name, gate): (&GateName, &GateConfig),
    now: Option<&LiveGate>,
    made: Made,
) -> bool {
    let before = now.and_then(|it| it.guard);
    match (gate.mode, before) {
        (DefaultMode::Guard, Some(lease)) if lease == gate.max_hold => true,
        (DefaultMode::Guard, before) => {
            plan.changes.push(Change::Guard {
                gate: name.clone(),
                lease: gate.max_hold,
                before,
            });
            true
        }
        (DefaultMode::Open, Some(before)) if made.guard => {
            let gate = name.clone();
            plan.changes.push(Change::Unguard { gate, before });
            false
        }
        (DefaultMode::Open, Some(_)) => {
            let note = format!("{name} is guarded by hand, and stays so");
            plan.notes.push(note);
            false
        }
        (DefaultMode::Open, None) => false,
    }
}

/// Plans the handover; whether it is the configuration's then.
fn hand(
    plan: &mut Plan,
    (name, gate): (&GateName, &GateConfig),
    (live, is_early): (&Live, bool),
    made: Made,
) -> bool {
    let now = live.gates.get(name);
    let before = now.and_then(|it| it.handover.as_ref());
    if gate.backends.is_empty() {
        if before.is_some() && made.handover {
            let gate = name.clone();
            plan.changes.push(Change::HandBack { gate });
        } else if before.is_some() {
            let note = format!("{name} is handed over by hand, and stays so");
            plan.notes.push(note);
        }
        return false;
    }
    let hook = match hook(gate, live) {
        // By which hook can't be told before the way to the endpoints is known.
        Err(endpoint) => {
            plan.awaited.push(Awaited::Route(endpoint));
            return before.is_some();
        }
        Ok(_) if is_early => return before.is_some(),
        Ok(hook) => hook,
    };
    let wanted = gate.backends.iter().map(|it| (it.address, it.weight));
    let wanted: BTreeSet<(Endpoint, u32)> = wanted.collect();
    let is_so = |it: &LiveHandover| it.to == wanted && hook.is_none_or(|hook| it.hook == hook);
    if !before.is_some_and(is_so) {
        plan.changes.push(Change::HandOver {
            gate: name.clone(),
            to: gate.backends.clone(),
            again: before.is_some(),
        });
    }
    true
}

/// By which hook a gate is handed over; none where its endpoints are partly here. Fails with an endpoint
/// that no route leads to.
fn hook(gate: &GateConfig, live: &Live) -> Result<Option<Steered>, Endpoint> {
    let (mut here, mut there) = (false, false);
    for endpoint in &gate.endpoints {
        match live.places.get(endpoint) {
            Some(None) => return Err(*endpoint),
            Some(Some(place)) if place.is_here() => here = true,
            Some(Some(_)) => there = true,
            None => {}
        }
    }
    Ok(match (here, there) {
        (true, false) => Some(Steered::Lookup),
        (false, true) => Some(Steered::Connect),
        _ => None,
    })
}

/// The gates that the configuration doesn't have.
fn others(plan: &mut Plan, config: &Config, live: &Live) {
    let mut left = Vec::new();
    for (name, now) in &live.gates {
        if config.gates.contains_key(name) {
            continue;
        }
        if !live.managed.gates.contains_key(name) {
            left.push(name.to_string());
            continue;
        }
        if now.is_closed {
            plan.obstacles.push(closed(now));
        }
        if let Some(before) = now.guard {
            let gate = name.clone();
            plan.changes.push(Change::Unguard { gate, before });
        }
        if now.handover.is_some() {
            let gate = name.clone();
            plan.changes.push(Change::HandBack { gate });
        }
        let gate = now.gate.clone();
        plan.changes.push(Change::Forget { gate });
    }
    if !left.is_empty() {
        let are = if left.len() == 1 { "is" } else { "are" };
        plan.notes.push(format!(
            "{} {are} no gate of the configuration, and left alone",
            left.join(", ")
        ));
    }
}

/// Whether the tables have room for all.
fn room(plan: &mut Plan, config: &Config, live: &Live) {
    let is_other = |name: &GateName| {
        !config.gates.contains_key(name) && !live.managed.gates.contains_key(name)
    };
    let named = live.gates.iter().filter(|(name, _)| is_other(name));
    // An open gate of one endpoint makes room.
    let singles = live.singles.values();
    let busy = singles.filter(|it| it.is_closed || it.guard.is_some() || it.handover.is_some());
    let others: Vec<&LiveGate> = named.map(|(_, gate)| gate).chain(busy).collect();
    let gates = config.gates.len() + others.len();
    if gates >= MAX_GATES as usize {
        plan.obstacles.push(Error::Full {
            what: "the table of gates",
            max: MAX_GATES - 1,
        });
    }
    let wanted: BTreeSet<Endpoint> = config
        .gates
        .values()
        .flat_map(|it| it.endpoints.iter().copied())
        .collect();
    let named = live.gates.iter().filter(|(name, _)| is_other(name));
    let kept = named.map(|(_, gate)| gate).chain(live.singles.values());
    let kept = kept.flat_map(|it| &it.gate.endpoints);
    let kept = kept.filter(|it| !wanted.contains(it)).count();
    let all = live.gates.values().chain(live.singles.values());
    let aliases: usize = all.map(|it| it.gate.aliases.len()).sum();
    if wanted.len() + kept + aliases > MAX_ENDPOINTS as usize {
        plan.obstacles.push(Error::Full {
            what: "the table of endpoints",
            max: MAX_ENDPOINTS,
        });
    }
}

/// The interfaces that the configuration attached to and wants no more.
fn detachments(plan: &mut Plan, live: &Live) {
    let kept = plan.interfaces.clone();
    for index in live.managed.interfaces.difference(&kept) {
        let Some(interface) = live.interface(*index) else {
            continue;
        };
        if !live.attached.contains_key(index) {
            continue;
        }
        detach(plan, interface, live);
    }
}

fn detach(plan: &mut Plan, interface: &Interface, live: &Live) {
    let mut gates = live.gates.values().chain(live.singles.values());
    if let Some(gate) = gates.find(|it| it.is_closed) {
        // What it holds from there would have no way back, and what comes meanwhile would pass.
        plan.obstacles.push(closed(gate));
    }
    plan.changes.push(Change::Detach {
        index: interface.index,
        interface: interface.name.clone(),
    });
}

impl Plan {
    /// What the configuration will have made, with the slots that the gates have by then.
    pub(super) fn managed(&self, ids: &BTreeMap<GateName, GateId>) -> Managed {
        let slot =
            |(name, made): (&GateName, &Made)| Some((name.clone(), (*ids.get(name)?, *made)));
        Managed {
            gates: self.made.iter().filter_map(slot).collect(),
            interfaces: self.interfaces.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
