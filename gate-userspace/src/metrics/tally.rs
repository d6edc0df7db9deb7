//! What the daemon counts as it happens: no map has it.

use std::collections::BTreeMap;

use crate::events::{self, Event, What};
use crate::health::HealthEvent;
use crate::status::GateStatus;

/// Counts since it was made.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    expiries: BTreeMap<String, u64>,
    checks: BTreeMap<(String, usize), Results>,
    events: BTreeMap<&'static str, u64>,
}

/// Of one check.
#[derive(Clone, Copy, Debug, Default)]
struct Results {
    ok: u64,
    failed: u64,
    unmade: u64,
}

impl Tally {
    /// Counts an event.
    pub fn event(&mut self, event: &Event) {
        *self.events.entry(events::name(&event.what)).or_default() += 1;
        match (&event.what, &event.gate) {
            (What::Expired, Some(gate)) => {
                *self.expiries.entry(gate.clone()).or_default() += 1;
            }
            // What had that name is gone, and so is its series.
            (What::Forgotten, Some(gate)) => {
                self.expiries.remove(gate);
                self.checks.retain(|(of, _), _| of != gate);
            }
            _ => {}
        }
    }

    /// Counts what the monitor tells.
    pub fn health(&mut self, event: &HealthEvent) {
        let (gate, index) = match event {
            HealthEvent::Checked { gate, index, .. } | HealthEvent::Unmade { gate, index, .. } => {
                (gate, index)
            }
            HealthEvent::Changed { .. } => return,
        };
        let results = self.checks.entry((gate.to_string(), *index)).or_default();
        match event {
            HealthEvent::Checked { result: Ok(()), .. } => results.ok += 1,
            HealthEvent::Checked { result: Err(_), .. } => results.failed += 1,
            HealthEvent::Unmade { .. } => results.unmade += 1,
            HealthEvent::Changed { .. } => {}
        }
    }

    /// The leases that ran out, of these gates and of those that are gone: 0 is told, too, so that
    /// the first one shows as a rise.
    pub(super) fn expiries<'a>(
        &self,
        gates: impl Iterator<Item = &'a GateStatus>,
    ) -> BTreeMap<String, u64> {
        let mut expiries: BTreeMap<String, u64> =
            gates.map(|gate| (gate.gate.to_string(), 0)).collect();
        expiries.extend(self.expiries.clone());
        expiries
    }

    pub(super) fn checks(&self) -> impl Iterator<Item = (String, usize, &'static str, u64)> {
        let of = |((gate, index), results): (&(String, usize), &Results)| {
            [("ok", results.ok), ("failed", results.failed)]
                .map(|(result, count)| (gate.clone(), *index, result, count))
        };
        self.checks.iter().flat_map(of)
    }

    pub(super) fn unmade(&self) -> impl Iterator<Item = (String, usize, u64)> {
        let of = |((gate, index), results): (&(String, usize), &Results)| {
            (gate.clone(), *index, results.unmade)
        };
        self.checks.iter().map(of)
    }

    pub(super) fn events(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.events.iter().map(|(event, count)| (*event, *count))
    }
}
