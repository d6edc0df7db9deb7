//! Many gates at once: each map is listed once and written by batches, whatever their number; of the
//! shortcuts only the slots in question are read. The order of the writes is that of one gate.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use aya::maps::IterableMap as _;
use std::time::Duration;

use gate_common::abi::{Guard, MAX_ENDPOINTS, MAX_GATES};
use gate_common::flow::{EndpointKey, GateId, PortEntry};
use gate_common::state::{BootTime, StateWord};

use super::{Tables, is_full};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::pins::Lock;
use crate::sys;

/// Where endpoints are to lead; none for nowhere.
pub type Leads = BTreeMap<Endpoint, Option<GateId>>;

impl Tables {
    /// As many slots as asked for that no endpoint leads to, open, their counters at zero; those of
    /// gates that are open and not in `kept`, endpoints and gates, where too few are free.
    ///
    /// # Errors
    /// [`Error::Full`], and those of the maps.
    pub fn free_gates(
        &mut self,
        lock: &Lock,
        count: usize,
        kept: (&BTreeSet<Endpoint>, &BTreeSet<GateId>),
        now: BootTime,
    ) -> Result<Vec<GateId>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let endpoints = self.endpoints()?;
        let used: BTreeSet<GateId> = endpoints.values().chain(kept.1).copied().collect();
        let slots = (1..MAX_GATES).map(GateId);
        let mut free: Vec<GateId> = slots
            .filter(|slot| !used.contains(slot))
            .take(count)
            .collect();
        while free.len() < count {
            let endpoints = self.endpoints()?;
            free.push(self.retire(lock, &endpoints, kept, now)?);
        }
        for gate in &free {
            self.clear_counters(*gate)?;
        }
        // They may have been others', allowed sources and all.
        let words: Vec<(u32, StateWord)> = free.iter().map(|it| (it.0, StateWord::OPEN)).collect();
        self.store_all(&words)?;
        self.forget_allowed_of(&free.iter().copied().collect())?;
        Ok(free)
    }

    /// Lets endpoints lead to gates, or to none any more, and writes the index of their ports. What gates
    /// held whose endpoint leads elsewhere is forgotten. Those that lead there already are not touched.
    ///
    /// # Errors
    /// [`Error::Full`], and those of the maps; some may be done then.
    pub fn lead_all(&mut self, lock: &Lock, leads: &Leads) -> Result<()> {
        let before = self.endpoints()?;
        let changed: Leads = leads
            .iter()
            .filter(|(endpoint, gate)| before.get(endpoint) != gate.as_ref())
            .map(|(endpoint, gate)| (*endpoint, *gate))
            .collect();
        let entered = changed
            .iter()
            .filter_map(|(endpoint, gate)| Some((EndpointKey::from(*endpoint), (*gate)?)));
        let entered: Vec<(EndpointKey, GateId)> = entered.collect();
        self.remove_shortcuts(changed.keys().copied())?;
        sys::update_all(self.endpoints.map().fd().as_fd(), &entered).map_err(
            |error| match is_full(&error) {
                true => Error::Full {
                    what: "the table of endpoints",
                    max: MAX_ENDPOINTS,
                },
                false => Error::call("bpf batch update in", "ENDPOINTS")(error),
            },
        )?;
        let mut after = before.clone();
        for (endpoint, gate) in &changed {
            match gate {
                Some(gate) => after.insert(*endpoint, *gate),
                None => after.remove(endpoint),
            };
        }
        // After what is entered and before what goes: it never leads to a slot that is another's.
        self.index_all(&after)?;
        let led = changed
            .iter()
            .filter_map(|(it, gate)| Some((*it, (*gate)?)));
        self.make_shortcuts(led)?;
        let gone = changed.iter().filter(|(_, gate)| gate.is_none());
        let gone: Vec<EndpointKey> = gone.map(|(it, _)| EndpointKey::from(*it)).collect();
        sys::delete_all(self.endpoints.map().fd().as_fd(), &gone)
            .map_err(Error::call("bpf batch delete in", "ENDPOINTS"))?;
        let losers = changed.keys().filter_map(|it| before.get(it).copied());
        let losers: BTreeSet<GateId> = losers.collect();
        match losers.is_empty() {
            true => Ok(()),
            false => self.discard(lock, &losers),
        }
    }

    /// Writes what the index of the ports should say of these endpoints, which are all, as far as it
    /// says otherwise: whoever entered some may have died before it was written.
    fn index_all(&mut self, endpoints: &BTreeMap<Endpoint, GateId>) -> Result<()> {
        let mut wanted = BTreeMap::<u16, (Option<GateId>, bool)>::new();
        for (endpoint, gate) in endpoints {
            let (wildcard, exact) = wanted.entry(endpoint.port).or_default();
            match endpoint.address {
                None => *wildcard = Some(*gate),
                Some(_) => *exact = true,
            }
        }
        let there = sys::lookup_all::<u32, PortEntry>(self.ports.map().fd().as_fd())
            .map_err(Error::call("bpf batch look-up in", "PORTS"))?;
        let entry = |port: u32| {
            let port = u16::try_from(port).ok()?;
            let (wildcard, exact) = wanted.get(&port).copied().unwrap_or_default();
            Some(PortEntry::new(wildcard, exact))
        };
        let wrong = there.into_iter().filter_map(|(port, is)| {
            let should = entry(port)?;
            (is != should).then_some((port, should))
        });
        let wrong: Vec<(u32, PortEntry)> = wrong.collect();
        sys::update_all(self.ports.map().fd().as_fd(), &wrong)
            .map_err(Error::call("bpf batch update in", "PORTS"))
    }

    /// Writes the index of the ports anew where it does not fit the endpoints, and the shortcuts that are
    /// missing.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn mend_index(&mut self, _lock: &Lock) -> Result<()> {
        let endpoints = self.endpoints()?;
        self.index_all(&endpoints)?;
        self.make_shortcuts(endpoints)
    }

    /// Guards gates, each with its lease, or guards them no more.
    ///
    /// # Errors
    /// Those of the maps; some may be done then.
    pub fn set_guards(
        &mut self,
        lock: &Lock,
        guards: &BTreeMap<GateId, Option<Duration>>,
        now: BootTime,
    ) -> Result<()> {
        let mut words = Vec::new();
        let mut leases = Vec::new();
        let mut fresh = BTreeSet::new();
        for (gate, lease) in guards {
            let word = self.state(*gate)?;
            if let Some(lease) = lease {
                let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
                // Whether it is dirty is looked at below: the data path may be just marking it.
                leases.push((gate.0, Guard { lease, dirty: 1 }));
            }
            if word.is_guarded() != lease.is_some() {
                fresh.insert(*gate);
                words.push((gate.0, word.guarded(lease.is_some())));
            }
        }
        sys::update_all(self.guards.map().fd().as_fd(), &leases)
            .map_err(Error::call("bpf batch update in", "GUARDS"))?;
        if !leases.is_empty() {
            self.set_armed(true)?;
        }
        let is_fresh = |gate: GateId| fresh.contains(&gate);
        self.forget_missing(lock, |_, missing| is_fresh(missing.gate))?;
        self.store_all(&words)?;
        self.forget_missing(lock, |_, missing| {
            is_fresh(missing.gate) && guards.get(&missing.gate).is_some_and(Option::is_none)
        })?;
        let guarded = leases.iter().map(|(gate, _)| GateId(*gate)).collect();
        self.calm(lock, &guarded)?;
        self.disarm_if_idle(now)
    }

    /// Words that neither close nor open anything: the caller arms and disarms.
    fn store_all(&mut self, words: &[(u32, StateWord)]) -> Result<()> {
        sys::update_all(self.gates.map().fd().as_fd(), words)
            .map_err(Error::call("bpf batch update in", "GATES"))
    }
}
