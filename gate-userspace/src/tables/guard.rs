//! Which gates are guarded, and where they miss a listener.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::IterableMap as _;
use gate_common::abi::{Guard, Missing};
use gate_common::flow::{EndpointKey, GateId};
use gate_common::state::{BootTime, Effective};

use super::{Tables, mapped, slots};
use crate::error::{Error, Result};
use crate::pins::Lock;
use crate::sys;

impl Tables {
    /// How a gate is guarded; meaningless where its word says that it isn't.
    ///
    /// # Errors
    /// Those of the map.
    pub fn guard(&self, gate: GateId) -> Result<Guard> {
        self.guards
            .get(&gate.0, 0)
            .map_err(Error::aya(format!("read the guard of gate {}", gate.0)))
    }

    /// The guards of all slots, used or not, in order. They are mapped, so it takes no call.
    ///
    /// # Errors
    /// The kernel's, the first time.
    pub fn guards(&self) -> Result<Vec<(GateId, Guard)>> {
        let guards = mapped(&self.guarding, self.guards.map(), "GUARDS")?;
        Ok(slots().zip(guards.iter()).collect())
    }

    /// The guarded destinations where nothing listens, those of all gates.
    ///
    /// # Errors
    /// Those of the map.
    pub fn missing(&self) -> Result<Vec<(EndpointKey, Missing)>> {
        sys::lookup_all(self.missing.map().fd().as_fd())
            .map_err(Error::call("bpf batch look-up in", "MISSING"))
    }

    /// Guards a gate, open or closed. A lease that runs is measured anew.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn set_guard(
        &mut self,
        lock: &Lock,
        gate: GateId,
        lease: Duration,
        now: BootTime,
    ) -> Result<()> {
        let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        // Whether it is dirty is looked at below: the data path may be just marking it.
        self.write_guard(gate, Guard { lease, dirty: 1 })?;
        let word = self.state(gate)?;
        if !word.is_guarded() {
            self.forget_missing(lock, |_, missing| missing.gate == gate)?;
            self.store(gate, word.guarded(true), now)?;
        }
        self.calm(lock, &BTreeSet::from([gate]))
    }

    /// Guards a gate no more. What it holds stays held, for a release.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn unguard(&mut self, lock: &Lock, gate: GateId, now: BootTime) -> Result<()> {
        let word = self.state(gate)?;
        self.store(gate, word.guarded(false), now)?;
        self.forget_missing(lock, |_, missing| missing.gate == gate)
    }

    /// Notes that a socket listens at a destination again.
    ///
    /// # Errors
    /// Those of the map.
    pub fn found(&mut self, lock: &Lock, endpoint: &EndpointKey) -> Result<()> {
        self.forget_missing(lock, |missing, _| missing == endpoint)
    }

    /// Lets the data path take the short way again at those of the guarded gates where a listener was
    /// missing, and where nothing is missing or held any more.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn calm(&mut self, lock: &Lock, gates: &BTreeSet<GateId>) -> Result<()> {
        let mut dirty = BTreeSet::new();
        for gate in gates {
            if self.guard(*gate)?.dirty != 0 {
                dirty.insert(*gate);
            }
        }
        let busy = match dirty.is_empty() {
            true => return Ok(()),
            false => self.busy()?,
        };
        dirty.retain(|gate| !busy.contains(gate));
        if dirty.is_empty() {
            return Ok(());
        }
        self.mark(&dirty, 0)?;
        // A SYN that was being judged when the mark went may have been entered meanwhile.
        sys::rcu_barrier();
        let busy = self.busy()?;
        let (again, calm): (BTreeSet<_>, _) = dirty.iter().partition(|gate| busy.contains(gate));
        self.mark(&again, 1)?;
        let mut open = BTreeSet::new();
        for gate in calm {
            // Times are no matter: a lease that just ran out leaves nothing to be claimed either.
            if !matches!(self.state(gate)?.at(|| BootTime(0)), Effective::Closed(_)) {
                open.insert(gate);
            }
        }
        self.forget_released(lock, |_, gate| open.contains(&gate))
    }

    /// Tells the data path that a guarded gate holds SYNs that were not held by the guard.
    ///
    /// # Errors
    /// Those of the map.
    pub fn mark_dirty(&mut self, _lock: &Lock, gate: GateId) -> Result<()> {
        self.mark(&BTreeSet::from([gate]), 1)
    }

    /// The gates that miss a listener or hold SYNs.
    fn busy(&self) -> Result<BTreeSet<GateId>> {
        let missing = self.missing()?.into_iter().map(|(_, missing)| missing.gate);
        let held = self.held()?.into_iter().map(|(_, syn)| syn.gate);
        Ok(missing.chain(held).collect())
    }

    fn mark(&mut self, gates: &BTreeSet<GateId>, dirty: u64) -> Result<()> {
        for gate in gates {
            let guard = self.guard(*gate)?;
            self.write_guard(*gate, Guard { dirty, ..guard })?;
        }
        Ok(())
    }

    fn write_guard(&mut self, gate: GateId, guard: Guard) -> Result<()> {
        self.guards
            .set(gate.0, guard, 0)
            .map_err(Error::aya(format!("store the guard of gate {}", gate.0)))
    }

    /// Forgets where a listener is missing, as far as `which` says so.
    pub(super) fn forget_missing(
        &mut self,
        _lock: &Lock,
        which: impl Fn(&EndpointKey, &Missing) -> bool,
    ) -> Result<()> {
        let gone: Vec<EndpointKey> = self
            .missing()?
            .into_iter()
            .filter(|(endpoint, missing)| which(endpoint, missing))
            .map(|(endpoint, _)| endpoint)
            .collect();
        sys::delete_all(self.missing.map().fd().as_fd(), &gone)
            .map_err(Error::call("bpf batch delete in", "MISSING"))
    }
}
