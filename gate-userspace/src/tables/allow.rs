//! The sources that pass a closed gate.

use std::collections::BTreeSet;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use gate_common::abi::{ALLOWED, AllowKey, MAX_ALLOWED};
use gate_common::flow::GateId;

use super::{Tables, is_full};
use crate::allow::{self, Cidr};
use crate::error::{Error, Result};
use crate::pins::Lock;

impl Tables {
    /// Lets these sources, and no others, pass the gate while it is closed by a word
    /// [`with_allows`](gate_common::state::StateWord::with_allows). Do it before the gate is closed.
    ///
    /// # Errors
    /// [`Error::Full`], and those of the map.
    pub fn set_allowed(&mut self, _lock: &Lock, gate: GateId, sources: &[Cidr]) -> Result<()> {
        for entry in self.entries(gate)? {
            self.allow
                .remove(&entry)
                .map_err(Error::aya("remove an allowed source"))?;
        }
        for (bits, key, value) in allow::entries(gate, sources) {
            match self.allow.insert(&Key::new(bits, key), value, 0) {
                Ok(()) => {}
                Err(MapError::SyscallError(error)) if is_full(&error.io_error) => {
                    return Err(Error::Full {
                        what: "the table of allowed sources",
                        max: MAX_ALLOWED,
                    });
                }
                Err(error) => return Err(Error::aya("enter an allowed source")(error)),
            }
        }
        Ok(())
    }

    /// The sources that are allowed at a gate, in order.
    ///
    /// # Errors
    /// Those of the map.
    pub fn allowed(&self, gate: GateId) -> Result<Vec<Cidr>> {
        let mut sources = Vec::new();
        for entry in self.entries(gate)? {
            let value = self
                .allow
                .get(&entry, 0)
                .map_err(Error::aya("read an allowed source"))?;
            if value == ALLOWED {
                let bits = entry.prefix_len() - AllowKey::GATE_BITS;
                sources.push(Cidr::from_mapped(&entry.data().address, bits));
            }
        }
        sources.sort_unstable();
        Ok(sources)
    }

    /// Forgets the sources of all gates but these.
    ///
    /// # Errors
    /// Those of the map.
    pub(super) fn forget_allowed(&mut self, kept: &BTreeSet<GateId>) -> Result<()> {
        self.forget_where(|gate| !kept.contains(&gate))
    }

    /// Forgets the sources of these gates.
    ///
    /// # Errors
    /// Those of the map.
    pub(super) fn forget_allowed_of(&mut self, gates: &BTreeSet<GateId>) -> Result<()> {
        self.forget_where(|gate| gates.contains(&gate))
    }

    fn forget_where(&mut self, which: impl Fn(GateId) -> bool) -> Result<()> {
        for entry in self.entries_of(which)? {
            self.allow
                .remove(&entry)
                .map_err(Error::aya("remove an allowed source"))?;
        }
        Ok(())
    }

    fn entries(&self, gate: GateId) -> Result<Vec<Key<AllowKey>>> {
        self.entries_of(|other| other == gate)
    }

    fn entries_of(&self, which: impl Fn(GateId) -> bool) -> Result<Vec<Key<AllowKey>>> {
        let mut entries = Vec::new();
        for entry in self.allow.keys() {
            let entry = entry.map_err(Error::aya("list the allowed sources"))?;
            if which(entry.data().gate) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}
