//! What is held, and what was released.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use aya::maps::{IterableMap as _, MapError};
use gate_common::abi::{Guard, HeldSyn};
use gate_common::flow::{AttemptKey, FlowKey, GateId};
use gate_common::state::BootTime;

use super::Tables;
use crate::error::{Error, Result};
use crate::pins::Lock;
use crate::sys;

impl Tables {
    /// The SYNs that are held now, those of all gates.
    ///
    /// # Errors
    /// Those of the map.
    pub fn held(&self) -> Result<Vec<(FlowKey, HeldSyn)>> {
        sys::lookup_all(self.held.map().fd().as_fd())
            .map_err(Error::call("bpf batch look-up in", "HELD"))
    }

    /// The SYN that is held for a flow.
    ///
    /// # Errors
    /// Those of the map.
    pub fn held_for(&self, flow: &FlowKey) -> Result<Option<HeldSyn>> {
        match self.held.get(flow, 0) {
            Ok(syn) => Ok(Some(syn)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::aya("look up in HELD")(error)),
        }
    }

    /// The attempts that were injected, or passed after a lease.
    ///
    /// # Errors
    /// Those of the map.
    pub fn released(&self) -> Result<Vec<(AttemptKey, GateId)>> {
        sys::lookup_all(self.released.map().fd().as_fd())
            .map_err(Error::call("bpf batch look-up in", "RELEASED"))
    }

    /// Forgets what is held at these gates, what was released from them, and where they miss a
    /// listener.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn discard(&mut self, lock: &Lock, gates: &BTreeSet<GateId>) -> Result<()> {
        self.forget_held(lock, |_, syn| gates.contains(&syn.gate))?;
        self.forget_released(lock, |_, gate| gates.contains(&gate))?;
        self.forget_missing(lock, |_, missing| gates.contains(&missing.gate))
    }

    /// Forgets what is held from other interfaces than these.
    ///
    /// # Errors
    /// Those of the map.
    pub fn forget_elsewhere(&mut self, lock: &Lock, interfaces: &BTreeSet<u32>) -> Result<()> {
        self.forget_held(lock, |_, syn| !interfaces.contains(&syn.ifindex))
    }

    /// Also puts right who has how much of the table.
    pub(super) fn forget_held(
        &mut self,
        lock: &Lock,
        which: impl Fn(&FlowKey, &HeldSyn) -> bool,
    ) -> Result<()> {
        let before = self.shares.look()?;
        let held = self.held()?;
        let after = self.shares.look()?;
        let flows: Vec<FlowKey> = held.iter().map(|(flow, _)| *flow).collect();
        self.shares.correct(&flows, &before, &after)?;
        let forgotten = held.iter().filter(|(flow, syn)| which(flow, syn));
        let forgotten: Vec<FlowKey> = forgotten.map(|(flow, _)| *flow).collect();
        self.forget_flows(lock, &forgotten)
    }

    /// Forgets what is held for these flows, whose attempts were injected.
    ///
    /// # Errors
    /// Those of the map.
    pub fn forget_flows(&mut self, _lock: &Lock, flows: &[FlowKey]) -> Result<()> {
        sys::delete_all(self.held.map().fd().as_fd(), flows)
            .map_err(Error::call("bpf batch delete in", "HELD"))?;
        self.shares.give_back(flows)
    }

    /// Forgets that these attempts were injected. One that comes again is as good as new.
    ///
    /// # Errors
    /// Those of the map.
    pub fn forget_attempts(&mut self, _lock: &Lock, attempts: &[AttemptKey]) -> Result<()> {
        sys::delete_all(self.released.map().fd().as_fd(), attempts)
            .map_err(Error::call("bpf batch delete in", "RELEASED"))
    }

    pub(super) fn forget_released(
        &mut self,
        _lock: &Lock,
        which: impl Fn(&AttemptKey, GateId) -> bool,
    ) -> Result<()> {
        let released: Vec<AttemptKey> = self
            .released()?
            .into_iter()
            .filter(|(attempt, gate)| which(attempt, *gate))
            .map(|(attempt, _)| attempt)
            .collect();
        sys::delete_all(self.released.map().fd().as_fd(), &released)
            .map_err(Error::call("bpf batch delete in", "RELEASED"))
    }
}

/// Whether a guarded gate's held SYN is one that may still be waited for: longer than the lease runs
/// from its last retransmission on, nothing holds it.
#[must_use]
pub fn waits(syn: &HeldSyn, guard: Guard, now: BootTime) -> bool {
    now.0.saturating_sub(syn.refreshed) < guard.lease
}

/// The connection attempt that a held SYN belongs to.
#[must_use]
pub fn attempt(flow: &FlowKey, syn: &HeldSyn) -> AttemptKey {
    AttemptKey {
        flow: *flow,
        isn: syn.isn,
    }
}
