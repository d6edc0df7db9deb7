//! Which endpoints lead to which gates.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{MapError, PerCpuValues};
use gate_common::abi::{GateStats, Holds, MAX_ENDPOINTS, MAX_GATES};
use gate_common::flow::{EndpointKey, GateId, PortEntry};
use gate_common::state::{BootTime, StateWord};

use super::{Tables, is_active, is_full};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::pins::Lock;

impl Tables {
    /// Finds the endpoint's gate, or makes one, open. It may take the slot of another that is
    /// open, but not of one in `kept`: endpoints, and gates.
    ///
    /// # Errors
    /// [`Error::Full`], and those of the maps.
    pub fn define(
        &mut self,
        lock: &Lock,
        endpoint: Endpoint,
        kept: (&BTreeSet<Endpoint>, &BTreeSet<GateId>),
        now: BootTime,
    ) -> Result<GateId> {
        if let Some(gate) = self.gate_of(endpoint)? {
            // Whoever entered it may have died before the index was written.
            self.index(endpoint.port, None)?;
            self.make_shortcuts([(endpoint, gate)])?;
            return Ok(gate);
        }
        let gate = self.free_gate(lock, kept, now)?;
        self.lead(lock, endpoint, gate)?;
        Ok(gate)
    }

    /// A slot that no endpoint leads to, open, its counters at zero; that of another gate, as
    /// [`define`](Self::define) does, where none is free.
    ///
    /// # Errors
    /// [`Error::Full`], and those of the maps.
    pub fn free_gate(
        &mut self,
        lock: &Lock,
        kept: (&BTreeSet<Endpoint>, &BTreeSet<GateId>),
        now: BootTime,
    ) -> Result<GateId> {
        let endpoints = self.endpoints()?;
        let used: BTreeSet<GateId> = endpoints.values().chain(kept.1).copied().collect();
        let free = (1..MAX_GATES).map(GateId).find(|slot| !used.contains(slot));
        let gate = match free {
            Some(slot) => slot,
            None => self.retire(lock, &endpoints, kept, now)?,
        };
        self.clear_counters(gate)?;
        // The slot may have been another's, allowed sources and all.
        self.store(gate, StateWord::OPEN, now)?;
        self.set_allowed(lock, gate, &[])?;
        Ok(gate)
    }

    pub(super) fn clear_counters(&mut self, gate: GateId) -> Result<()> {
        let zero = PerCpuValues::try_from(vec![
            GateStats::default();
            aya::util::nr_cpus().map_err(|(path, error)| {
                Error::call("read", path)(error)
            })?
        ])
        .map_err(Error::call("make counters of gate", gate.0.to_string()))?;
        self.stats
            .set(gate.0, zero, 0)
            .map_err(Error::aya(format!("clear counters of gate {}", gate.0)))?;
        self.store_holds(gate, Holds::default())
    }

    /// Lets an endpoint lead to this gate, and to no other any more.
    ///
    /// # Errors
    /// [`Error::Full`], and those of the maps.
    pub fn lead(&mut self, lock: &Lock, endpoint: Endpoint, gate: GateId) -> Result<()> {
        let before = self.gate_of(endpoint)?.filter(|before| *before != gate);
        if before.is_some() {
            self.remove_shortcuts([endpoint])?;
        }
        match self.endpoints.insert(EndpointKey::from(endpoint), gate, 0) {
            Ok(()) => {}
            Err(MapError::SyscallError(error)) if is_full(&error.io_error) => {
                return Err(Error::Full {
                    what: "the table of endpoints",
                    max: MAX_ENDPOINTS,
                });
            }
            Err(error) => return Err(Error::aya(format!("enter {endpoint}"))(error)),
        }
        self.index(endpoint.port, None)?;
        self.make_shortcuts([(endpoint, gate)])?;
        match before {
            Some(before) => self.discard(lock, &BTreeSet::from([before])),
            None => Ok(()),
        }
    }

    /// Lets an endpoint lead to no gate any more.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn forget_endpoint(&mut self, lock: &Lock, endpoint: Endpoint) -> Result<()> {
        let Some(gate) = self.gate_of(endpoint)? else {
            return Ok(());
        };
        self.discard(lock, &BTreeSet::from([gate]))?;
        // The index and the shortcut first: they must never lead to a slot that another endpoint has.
        self.index(endpoint.port, Some(endpoint))?;
        self.remove_shortcuts([endpoint])?;
        self.endpoints
            .remove(&EndpointKey::from(endpoint))
            .map_err(Error::aya(format!("forget {endpoint}")))
    }

    /// Lets an alias lead to no gate any more. What is held for it is forgotten; what else its gate
    /// holds stays.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn forget_alias(&mut self, lock: &Lock, alias: Endpoint) -> Result<()> {
        let Some(gate) = self.gate_of(alias)? else {
            return Ok(());
        };
        self.index(alias.port, Some(alias))?;
        self.remove_shortcuts([alias])?;
        self.endpoints
            .remove(&EndpointKey::from(alias))
            .map_err(Error::aya(format!("forget {alias}")))?;
        let goes_there =
            |to: &EndpointKey, of: GateId| of == gate && alias.meets(Endpoint::from(*to));
        self.forget_held(lock, |flow, syn| goes_there(&flow.endpoint, syn.gate))?;
        self.forget_missing(lock, |to, missing| goes_there(to, missing.gate))
    }

    /// Takes the slot of a gate that is open and not guarded, and forgets its endpoint.
    pub(super) fn retire(
        &mut self,
        lock: &Lock,
        endpoints: &BTreeMap<Endpoint, GateId>,
        (kept, named): (&BTreeSet<Endpoint>, &BTreeSet<GateId>),
        now: BootTime,
    ) -> Result<GateId> {
        for (endpoint, gate) in endpoints {
            if !is_active(self.state(*gate)?, now)
                && !kept.contains(endpoint)
                && !named.contains(gate)
            {
                self.forget_endpoint(lock, *endpoint)?;
                return Ok(*gate);
            }
        }
        Err(Error::Full {
            what: "the table of gates",
            max: MAX_GATES - 1,
        })
    }

    /// Writes the port's entry anew from the endpoints, without the one that is to go.
    fn index(&mut self, port: u16, going: Option<Endpoint>) -> Result<()> {
        let endpoints = self.endpoints()?;
        let of_port = || {
            endpoints
                .iter()
                .filter(|(endpoint, _)| endpoint.port == port && Some(**endpoint) != going)
        };
        let wildcard = of_port()
            .find(|(endpoint, _)| endpoint.address.is_none())
            .map(|(_, gate)| *gate);
        let exact = of_port().any(|(endpoint, _)| endpoint.address.is_some());
        self.ports
            .set(u32::from(port), PortEntry::new(wildcard, exact), 0)
            .map_err(Error::aya(format!("store the index of port {port}")))
    }
}
