//! How long SYNs were held.

use std::time::Duration;

use gate_common::abi::Holds;
use gate_common::flow::GateId;

use super::Tables;
use crate::error::{Error, Result};
use crate::pins::Lock;

impl Tables {
    /// How long SYNs of a gate were held until they were injected.
    ///
    /// # Errors
    /// Those of the map.
    pub fn holds(&self, gate: GateId) -> Result<Holds> {
        let what = || format!("read hold times of gate {}", gate.0);
        self.holds.get(&gate.0, 0).map_err(Error::aya(what()))
    }

    /// Counts SYNs that were injected after they had been held for so long.
    ///
    /// # Errors
    /// Those of the map.
    pub fn count_holds(&mut self, _lock: &Lock, gate: GateId, held: &[Duration]) -> Result<()> {
        let mut holds = self.holds(gate)?;
        for held in held {
            holds.add(u64::try_from(held.as_nanos()).unwrap_or(u64::MAX));
        }
        self.store_holds(gate, holds)
    }

    pub(super) fn store_holds(&mut self, gate: GateId, holds: Holds) -> Result<()> {
        let what = || format!("store hold times of gate {}", gate.0);
        self.holds.set(gate.0, holds, 0).map_err(Error::aya(what()))
    }
}
