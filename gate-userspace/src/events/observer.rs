//! What happened between two looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gate_common::flow::GateId;
use gate_common::state::{BootTime, Closed, Effective, StateWord};

use super::source::{Outage, Snapshot};
use super::{Event, INTERVAL, Moment, What};
use crate::clock;
use crate::endpoint::Endpoint;

/// Compares each snapshot with the one before, whoever changed what is live.
#[derive(Debug, Default)]
pub struct Observer {
    before: Option<(Snapshot, BootTime)>,
    /// What had been released of a gate when it was last told of.
    told: BTreeMap<GateId, u64>,
    /// Listeners that were back by the last look: what is held for them goes now.
    back: Vec<Back>,
}

#[derive(Debug)]
struct Back {
    at: SystemTime,
    label: String,
    endpoint: Endpoint,
    outage: Outage,
    until: BootTime,
}

/// Two snapshots of one `gate up`, and the events between them.
struct Diff<'a> {
    old: &'a Snapshot,
    new: &'a Snapshot,
    last: BootTime,
    now: Moment,
    events: Vec<Event>,
}

impl Observer {
    /// One that has seen nothing yet: what its first snapshot shows is how things are, and nothing
    /// that happened.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What happened since the snapshot before. A listener that is back is told of one look later, with
    /// what was released for it by then.
    pub fn step(&mut self, snapshot: Snapshot, now: Moment) -> Vec<Event> {
        let mut events = Vec::new();
        match self.before.take() {
            Some((old, last)) if old.epoch == snapshot.epoch => {
                events.extend(self.compare(&old, &snapshot, last, now));
            }
            Some((old, last)) => {
                // As `gate down` and `gate up` do: first nothing is there.
                let nothing = Snapshot::default();
                events.extend(self.compare(&old, &nothing, last, now));
                events.extend(self.compare(&nothing, &snapshot, last, now));
            }
            None => {}
        }
        for outage in snapshot.missing.values() {
            let released = snapshot.released.get(&outage.gate).copied();
            self.told
                .entry(outage.gate)
                .or_insert(released.unwrap_or_default());
        }
        self.before = Some((snapshot, now.boot));
        // By its time; what belongs together stays in order.
        events.sort_by_key(|event| event.at);
        events
    }

    fn compare(
        &mut self,
        old: &Snapshot,
        new: &Snapshot,
        last: BootTime,
        now: Moment,
    ) -> Vec<Event> {
        let mut diff = Diff {
            old,
            new,
            last,
            now,
            events: Vec::new(),
        };
        diff.interfaces(false);
        diff.defined();
        diff.words();
        diff.handed();
        diff.interfaces(true);
        diff.events.extend(self.backs(new));
        let gone = diff.missing();
        self.back = gone;
        if self.back.is_empty() && new.missing.is_empty() {
            self.told.clear();
        }
        diff.forgotten();
        diff.events
    }

    /// The listeners that were back by the last look, with what was released since.
    fn backs(&mut self, new: &Snapshot) -> Vec<Event> {
        let mut events = Vec::new();
        for back in self.back.drain(..) {
            let gate = back.outage.gate;
            let told = self.told.get(&gate).copied();
            let released = new.released.get(&gate).copied().or(told);
            let released = released.unwrap_or_default();
            let count = released.saturating_sub(told.unwrap_or(released));
            // Of several endpoints of a gate the first is told what went: the counter is the gate's.
            self.told.insert(gate, released);
            events.push(Event {
                at: back.at,
                gate: Some(back.label),
                what: What::ListenerBack {
                    endpoint: back.endpoint,
                    after: clock::between(back.outage.since, back.until),
                    released: usize::try_from(count).unwrap_or(usize::MAX),
                },
            });
        }
        events
    }
}

impl Diff<'_> {
    fn push(&mut self, at: SystemTime, gate: Option<String>, what: What) {
        self.events.push(Event { at, gate, what });
    }

    /// What a slot is called, and whether the snapshot before knew it by that, too.
    fn label(&self, gate: GateId) -> (String, bool) {
        let old = self.old.gates.get(&gate).map(|known| &known.label);
        let new = self.new.gates.get(&gate).map(|known| &known.label);
        let label = new.or(old).cloned();
        let label = label.unwrap_or_else(|| format!("gate {}", gate.0));
        (label, old.is_none() || new.is_none() || old == new)
    }

    fn interfaces(&mut self, detached: bool) {
        if Arc::ptr_eq(&self.old.interfaces, &self.new.interfaces) {
            return;
        }
        let (these, those) = match detached {
            true => (&self.old.interfaces, &self.new.interfaces),
            false => (&self.new.interfaces, &self.old.interfaces),
        };
        for interface in these.difference(those).cloned().collect::<Vec<_>>() {
            let what = match detached {
                true => What::Detached { interface },
                false => What::Attached { interface },
            };
            self.push(self.now.wall, None, what);
        }
    }

    /// Names that are new, or stand for other endpoints.
    fn defined(&mut self) {
        if Arc::ptr_eq(&self.old.gates, &self.new.gates) {
            return;
        }
        let named = self.new.gates.iter().filter(|(_, known)| known.is_named);
        // A definition under way has a name first, and its endpoints then.
        let whole = named.filter(|(_, known)| !known.endpoints.is_empty());
        let is_new = |(gate, known): &(&GateId, _)| self.old.gates.get(gate) != Some(*known);
        let labels: Vec<String> = whole
            .filter(is_new)
            .map(|(_, known)| known.label.clone())
            .collect();
        for label in labels {
            self.push(self.now.wall, Some(label), What::Defined);
        }
    }

    fn forgotten(&mut self) {
        if Arc::ptr_eq(&self.old.gates, &self.new.gates) {
            return;
        }
        let named = self.old.gates.iter().filter(|(_, known)| known.is_named);
        let is_gone = |(gate, known): &(&GateId, &super::Known)| {
            let new = self.new.gates.get(gate);
            new.is_none_or(|new| new.label != known.label)
        };
        let labels: Vec<String> = named
            .filter(is_gone)
            .map(|(_, known)| known.label.clone())
            .collect();
        for label in labels {
            self.push(self.now.wall, Some(label), What::Forgotten);
        }
    }

    fn words(&mut self) {
        let slots = self.old.words.len().max(self.new.words.len());
        for slot in 0..slots {
            let gate = GateId(slot as u32);
            let of = |words: &[StateWord]| words.get(slot).copied().unwrap_or(StateWord::OPEN);
            let (old, new) = (of(&self.old.words), of(&self.new.words));
            let is_over = |word: StateWord, at| word.at(|| at) == Effective::Expired;
            if old == new && is_over(old, self.last) == is_over(new, self.now.boot) {
                continue;
            }
            let (label, is_same) = self.label(gate);
            let old = match is_same {
                true => old,
                // Another gate has the slot.
                false => StateWord::OPEN,
            };
            for (at, what) in happened(old, new, self.last, self.now) {
                self.push(at, Some(label.clone()), what);
            }
            self.guards(gate, &label, old, new);
        }
    }

    fn guards(&mut self, gate: GateId, label: &str, old: StateWord, new: StateWord) {
        let lease = self.new.guards.get(&gate).copied().unwrap_or_default();
        let what = match (old.is_guarded(), new.is_guarded()) {
            (false, true) => What::Guarded { lease },
            (true, false) => What::Unguarded,
            (true, true) | (false, false) => return,
        };
        self.push(self.now.wall, Some(label.to_owned()), what);
    }

    fn handed(&mut self) {
        if Arc::ptr_eq(&self.old.handed, &self.new.handed) {
            return;
        }
        let gates = self.old.handed.keys().chain(self.new.handed.keys());
        for gate in gates.copied().collect::<BTreeSet<_>>() {
            let to = self.new.handed.get(&gate);
            if self.old.handed.get(&gate) == to {
                continue;
            }
            let to = to.cloned().unwrap_or_default();
            let (label, _) = self.label(gate);
            self.push(self.now.wall, Some(label), What::HandedOver { to });
        }
    }

    /// Tells where a listener is missing, and returns where one is back.
    fn missing(&mut self) -> Vec<Back> {
        let mut back = Vec::new();
        let now = self.now;
        for (endpoint, outage) in &self.old.missing {
            let is_on = self.new.missing.get(endpoint) == Some(outage);
            let word = self.new.words.get(outage.gate.0 as usize).copied();
            let word = word.unwrap_or(StateWord::OPEN);
            // One that was closed, or is not guarded any more, is asked about no more.
            let is_closed = matches!(word.at(|| now.boot), Effective::Closed(_));
            if is_on || is_closed || !word.is_guarded() {
                continue;
            }
            back.push(Back {
                at: now.wall,
                label: self.label(outage.gate).0,
                endpoint: *endpoint,
                outage: *outage,
                until: now.boot,
            });
        }
        let missing: Vec<(Endpoint, Outage)> = self
            .new
            .missing
            .iter()
            .filter(|(endpoint, outage)| self.old.missing.get(endpoint) != Some(*outage))
            .map(|(endpoint, outage)| (*endpoint, *outage))
            .collect();
        for (endpoint, outage) in missing {
            let (label, _) = self.label(outage.gate);
            let at = now.wall_at(outage.since);
            self.push(at, Some(label), What::ListenerMissing { endpoint });
        }
        back
    }
}

/// What became of a gate's mode and lease between the last look and now.
fn happened(
    old: StateWord,
    new: StateWord,
    last: BootTime,
    now: Moment,
) -> Vec<(SystemTime, What)> {
    use Effective::{Closed as Shut, Expired, Open};
    let closed = |mode: Closed, from: BootTime| {
        // It ran for a part of an interval already.
        let left = clock::between(from, new.deadline()).as_millis();
        let whole = left.next_multiple_of(INTERVAL.as_millis());
        let lease = Duration::from_millis(u64::try_from(whole).unwrap_or(u64::MAX));
        let mode = mode.into();
        (now.wall_at(from), What::Closed { mode, lease })
    };
    let expired = |word: StateWord| (now.wall_at(word.deadline()), What::Expired);
    let is_same = old.guarded(false) == new.guarded(false);
    match (is_same, old.at(|| last), new.at(|| now.boot)) {
        (true, Shut(_), Expired) => vec![expired(new)],
        // It was closed and its lease ran out before it was looked at again.
        (false, Open | Expired, Expired) => match stored(new) {
            Some(mode) => vec![closed(mode, last), expired(new)],
            None => Vec::new(),
        },
        (false, Shut(_), Expired) => vec![expired(new)],
        (false, Open | Expired, Shut(mode)) => vec![closed(mode, now.boot)],
        // With another lease only, it just goes on.
        (false, Shut(before), Shut(mode)) if before != mode => vec![closed(mode, now.boot)],
        // Whoever waits for the end of the lease opens right after it.
        (false, Shut(_), Open) if old.deadline() <= now.boot => vec![expired(old)],
        (false, Shut(_), Open) => vec![(now.wall, What::Opened)],
        (true, _, _) | (false, Shut(_), Shut(_)) | (false, Open | Expired, Open) => Vec::new(),
    }
}

/// The mode that a word was closed with.
fn stored(word: StateWord) -> Option<Closed> {
    match word.at(|| BootTime(0)) {
        Effective::Closed(mode) => Some(mode),
        Effective::Open | Effective::Expired => None,
    }
}

#[cfg(test)]
mod tests;
