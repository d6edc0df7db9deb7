//! The steps of applying a configuration, each with how it is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use gate_common::abi::MAX_GATES;
use gate_common::flow::GateId;
use gate_common::handover::Split;
use gate_common::state::{BootTime, Closed, Effective, StateWord};

use super::Target;
use crate::attach::{self, Attachment};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates::{self, Gate, GateName};
use crate::handover::{self, Prepared};
use crate::hooks::HookChoice;
use crate::interfaces::{self, Interface};
use crate::pins::{self, Lock, Managed, Pins};
use crate::release::{Replayer, release_at_once};
use crate::tables::Tables;
use crate::tables::batch::Leads;
use crate::tables::handovers::Handovers;
use crate::{alias, clock, datapath, steering};

/// The lease of a gate that is guarded no more, while what it holds is released.
const RELEASE: Duration = Duration::from_secs(15);

/// How a step is taken back.
enum Undo {
    /// Pins of attachments that were made, and the records of qdiscs that were there before.
    Detach(Vec<PathBuf>, Vec<PathBuf>),
    /// Attachments that were there.
    Attach(Vec<(Interface, HookChoice)>),
    /// The mark of what a restart attached.
    Temporary,
    /// Where endpoints led.
    Lead(Leads),
    /// A name that was given.
    Unname(GateId, GateName),
    /// A name that was taken away.
    Name(GateId, GateName),
    /// How gates were guarded.
    Guard(BTreeMap<GateId, Option<Duration>>),
    /// How a gate's new connections were shared.
    Share(GateId, Box<Option<Split>>),
    /// What was noted.
    Note(Managed),
}

/// What is being done, and how it is taken back.
pub(super) struct Steps<'a> {
    pins: &'a Pins,
    lock: &'a Lock,
    now: BootTime,
    ids: BTreeMap<GateName, GateId>,
    undo: Vec<Undo>,
    has_handed: bool,
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        pins: &'a Pins,
        lock: &'a Lock,
        now: BootTime,
        ids: BTreeMap<GateName, GateId>,
    ) -> Self {
        Self {
            pins,
            lock,
            now,
            ids,
            undo: Vec::new(),
            has_handed: false,
        }
    }

    /// The slots of the gates that have a name.
    pub(super) fn ids(&self) -> &BTreeMap<GateName, GateId> {
        &self.ids
    }

    fn id(&self, name: &GateName) -> Result<GateId> {
        let id = self.ids.get(name).copied();
        id.ok_or_else(|| Error::NoGate { name: name.clone() })
    }

    fn attached(&self) -> BTreeSet<PathBuf> {
        let all = [self.pins.links(), self.pins.filters()];
        all.iter().flat_map(|it| pins::entries(it)).collect()
    }

    /// Attaches, and makes the maps where there are none.
    pub(super) fn attach(
        &mut self,
        wanted: &[&Target],
        all: &[Interface],
        (held, is_up): (Option<u32>, bool),
    ) -> Result<()> {
        if wanted.is_empty() && is_up {
            return Ok(());
        }
        let mut targets = Vec::new();
        for target in wanted {
            let interface = interfaces::named(all, &target.interface)?;
            targets.push((interface.clone(), target.hook));
        }
        let before = self.attached();
        let qdiscs = pins::entries(&self.pins.qdiscs());
        datapath::attach_to(self.pins, self.lock, &targets, held)?;
        let made = self.attached().difference(&before).cloned().collect();
        self.undo.push(Undo::Detach(made, qdiscs));
        Ok(())
    }

    /// What a restart attached stays.
    pub(super) fn keep(&mut self) -> Result<()> {
        pins::remove(&self.pins.temporary())?;
        self.undo.push(Undo::Temporary);
        Ok(())
    }

    /// Guards gates, or guards them no more; what those held is released.
    pub(super) fn guards(
        &mut self,
        wanted: &BTreeMap<&&GateName, &Option<Duration>>,
    ) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut guards = BTreeMap::new();
        for (name, lease) in wanted {
            guards.insert(self.id(name)?, **lease);
        }
        let mut tables = Tables::open(self.pins)?;
        let mut before = BTreeMap::new();
        for gate in guards.keys() {
            let lease = match tables.state(*gate)?.is_guarded() {
                true => Some(Duration::from_nanos(tables.guard(*gate)?.lease)),
                false => None,
            };
            before.insert(*gate, lease);
        }
        let ended = guards.iter().filter(|(_, lease)| lease.is_none());
        let ended: BTreeSet<GateId> = ended.map(|(gate, _)| *gate).collect();
        let mut holding = BTreeMap::new();
        for (_, syn) in tables.held()? {
            if ended.contains(&syn.gate) {
                let held = StateWord::closed(Closed::Hold, clock::after(self.now, RELEASE));
                holding.insert(syn.gate, held);
            }
        }
        let mut replayer = None;
        if !holding.is_empty() {
            // Before anything closes.
            replayer = Some(Replayer::load(self.pins, self.lock)?);
        }
        let mut open = BTreeMap::new();
        for (gate, held) in holding {
            // Whoever closed one opens it.
            if !matches!(tables.state(gate)?.at(|| self.now), Effective::Closed(_)) {
                // Closed while it releases: no retransmission goes beside what is held.
                tables.set_state(self.lock, gate, held, self.now)?;
                open.insert(gate, held);
            }
        }
        self.undo.push(Undo::Guard(before));
        tables.set_guards(self.lock, &guards, self.now)?;
        match replayer {
            Some(mut replayer) if !open.is_empty() => {
                release_at_once(self.pins, self.lock, &mut tables, &mut replayer, open).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// How many slots are nobody's.
    pub(super) fn free_slots(&self) -> Result<usize> {
        let tables = Tables::open(self.pins)?;
        let mut used: BTreeSet<GateId> = tables.endpoints()?.into_values().collect();
        used.extend(gates::kept(self.pins)?);
        Ok((MAX_GATES as usize - 1).saturating_sub(used.len()))
    }

    /// Gives gates these endpoints and no others; makes those that are not there.
    pub(super) fn define(&mut self, wanted: &[(&GateName, &BTreeSet<Endpoint>)]) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut tables = Tables::open(self.pins)?;
        let new: Vec<&GateName> = wanted
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| !self.ids.contains_key(*name))
            .collect();
        let all: BTreeSet<Endpoint> = wanted.iter().flat_map(|(_, all)| *all).copied().collect();
        let kept = gates::kept(self.pins)?;
        let slots = tables.free_gates(self.lock, new.len(), (&all, &kept), self.now)?;
        for (name, id) in new.into_iter().zip(slots) {
            // The name first: whoever dies here leaves a gate without endpoints, which the next
            // definition fills.
            self.undo.push(Undo::Unname(id, name.clone()));
            self.pins.make_name(self.lock, id, name)?;
            self.ids.insert(name.clone(), id);
        }
        let lead = tables.endpoints()?;
        let mut leads = Leads::new();
        let mut owned = BTreeMap::<GateId, Vec<Endpoint>>::new();
        let aliases = alias::all(self.pins)?;
        let aliases: BTreeSet<Endpoint> = aliases.values().flatten().map(|it| it.at).collect();
        for (endpoint, gate) in &lead {
            if !aliases.contains(endpoint) {
                owned.entry(*gate).or_default().push(*endpoint);
            }
        }
        for (name, _) in wanted {
            let before = owned.get(&self.id(name)?).map_or(&[][..], Vec::as_slice);
            leads.extend(before.iter().map(|endpoint| (*endpoint, None)));
        }
        for (name, endpoints) in wanted {
            let id = self.id(name)?;
            leads.extend(endpoints.iter().map(|endpoint| (*endpoint, Some(id))));
        }
        self.lead(&mut tables, &lead, &leads)
    }

    fn lead(
        &mut self,
        tables: &mut Tables,
        before: &BTreeMap<Endpoint, GateId>,
        leads: &Leads,
    ) -> Result<()> {
        let back = leads.keys().map(|it| (*it, before.get(it).copied()));
        self.undo.push(Undo::Lead(back.collect()));
        tables.lead_all(self.lock, leads)
    }

    /// Forgets gates, with the endpoints that still are theirs.
    pub(super) fn forget(&mut self, going: &[&Gate]) -> Result<()> {
        if going.is_empty() {
            return Ok(());
        }
        let mut tables = Tables::open(self.pins)?;
        for gate in going.iter().filter(|it| !it.aliases.is_empty()) {
            alias::forget(self.pins, self.lock, &mut tables, gate)?;
        }
        let lead = tables.endpoints()?;
        let ids: BTreeSet<GateId> = going.iter().map(|it| it.id).collect();
        let own = lead.iter().filter(|(_, gate)| ids.contains(gate));
        let leads: Leads = own.map(|(endpoint, _)| (*endpoint, None)).collect();
        self.lead(&mut tables, &lead, &leads)?;
        for gate in going {
            let Some(name) = &gate.name else {
                continue;
            };
            // The name last: as long as it is there, its slot is nobody else's.
            self.undo.push(Undo::Name(gate.id, name.clone()));
            pins::remove(&self.pins.name(gate.id, name))?;
            self.ids.remove(name);
        }
        Ok(())
    }

    /// Gives a gate's new connections to backends, or to its own listener again.
    pub(super) fn hand(
        &mut self,
        name: &GateName,
        to: Option<(&Prepared, &handover::Plan)>,
    ) -> Result<()> {
        let id = self.id(name)?;
        self.has_handed = true;
        let before = match (to, Handovers::open(self.pins)?) {
            (Some((prepared, plan)), _) => {
                let tables = Tables::open(self.pins)?;
                let it = (id, prepared);
                let (before, _) = handover::switch_to(self.pins, self.lock, &tables, it, plan)?;
                before
            }
            (None, Some(mut handovers)) => {
                let before = handovers.split(id)?;
                handovers.switch(self.lock, id, None)?;
                before
            }
            (None, None) => None,
        };
        self.undo.push(Undo::Share(id, Box::new(before)));
        Ok(())
    }

    /// Detaches from interfaces.
    pub(super) fn detach(&mut self, interfaces: &[(u32, &str)]) -> Result<()> {
        if interfaces.is_empty() {
            return Ok(());
        }
        let indexes: Vec<u32> = interfaces.iter().map(|(index, _)| *index).collect();
        let all = interfaces::list()?;
        let attachments = attach::attachments(self.pins)?;
        let is_going = |it: &&Attachment| indexes.contains(&it.ifindex);
        let mut back = Vec::new();
        for attachment in attachments.iter().filter(is_going) {
            let interface = all.iter().find(|it| it.index == attachment.ifindex);
            if let (Some(interface), Some(hook)) = (interface, attachment.hook) {
                back.push((interface.clone(), hook.choice()));
            }
        }
        self.undo.push(Undo::Attach(back));
        let of_others = pins::entries(&self.pins.qdiscs()).into_iter().filter(|it| {
            let name = it.file_name().and_then(|name| name.to_str());
            !indexes.iter().any(|index| name == Some(&index.to_string()))
        });
        let of_others: Vec<PathBuf> = of_others.collect();
        for attachment in attachments.iter().filter(is_going) {
            attach::detach(attachment.pin())?;
        }
        attach::remove_qdiscs(&self.pins.folder(), &of_others)?;
        let stay = attachments.iter().filter(|it| !is_going(it));
        let stay = stay.map(|it| it.ifindex).collect();
        Tables::open(self.pins)?.forget_elsewhere(self.lock, &stay)
    }

    /// Notes what the configuration made.
    pub(super) fn note(&mut self, managed: &Managed) -> Result<()> {
        self.undo.push(Undo::Note(self.pins.managed()));
        self.pins.note_managed(self.lock, managed)
    }

    /// Clears up after all is done; what to tell the operator.
    pub(super) fn finish(&self) -> Vec<String> {
        let note = |error: Error| format!("what is no longer needed could not be cleared: {error}");
        self.tidy().err().map(note).into_iter().collect()
    }

    fn tidy(&self) -> Result<()> {
        if !self.has_handed {
            return Ok(());
        }
        match Handovers::open(self.pins)? {
            Some(mut handovers) => {
                let tables = Tables::open(self.pins)?;
                handover::clear_up(self.pins, self.lock, &tables, &mut handovers)
            }
            None => steering::detach_if_idle(self.pins, self.lock),
        }
    }

    /// Takes back what was done, the last first, as far as that can be done: the first failure is the
    /// one that counts.
    pub(super) fn take_back(mut self) {
        while let Some(undo) = self.undo.pop() {
            let _second = self.undo_one(undo);
        }
        let _second = self.tidy();
    }

    fn undo_one(&self, undo: Undo) -> Result<()> {
        match undo {
            Undo::Detach(made, qdiscs) => {
                for path in made {
                    attach::detach(&path)?;
                }
                attach::remove_qdiscs(&self.pins.folder(), &qdiscs)
            }
            Undo::Attach(targets) => {
                datapath::attach_to(self.pins, self.lock, &targets, None).map(drop)
            }
            Undo::Temporary => pins::make_folder(&self.pins.temporary()),
            Undo::Lead(leads) => Tables::open(self.pins)?.lead_all(self.lock, &leads),
            Undo::Unname(id, name) => pins::remove(&self.pins.name(id, &name)),
            Undo::Name(id, name) => self.pins.make_name(self.lock, id, &name),
            Undo::Guard(guards) => {
                Tables::open(self.pins)?.set_guards(self.lock, &guards, self.now)
            }
            Undo::Share(id, split) => match Handovers::open(self.pins)? {
                Some(mut handovers) => handovers.switch(self.lock, id, Option::as_ref(&split)),
                None => Ok(()),
            },
            Undo::Note(managed) => self.pins.note_managed(self.lock, &managed),
        }
    }
}
