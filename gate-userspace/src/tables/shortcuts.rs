//! The shortcuts past the hash of the endpoints. One is written after its endpoint is entered, and is gone
//! before that leads elsewhere or nowhere: a process that dies in between leaves one too few, which
//! costs a SYN some nanoseconds, and never one that is wrong.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use aya::maps::IterableMap as _;
use gate_common::flow::{EndpointKey, GateId, Shortcut};

use super::Tables;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::sys;

impl Tables {
    /// Takes away what shortcuts these endpoints have.
    pub(super) fn remove_shortcuts(
        &mut self,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Result<()> {
        let mut gone = BTreeMap::new();
        for key in exact(endpoints) {
            let slot = Shortcut::slot(&key);
            if self.shortcut(slot)?.gate_of(&key).is_some() {
                gone.insert(slot, Shortcut::NONE);
            }
        }
        self.write_shortcuts(gone)
    }

    /// Makes shortcuts to the gates of these endpoints, as far as their slots are free.
    pub(super) fn make_shortcuts(
        &mut self,
        leads: impl IntoIterator<Item = (Endpoint, GateId)>,
    ) -> Result<()> {
        let mut made = BTreeMap::new();
        for (endpoint, gate) in leads {
            for key in exact([endpoint]) {
                let slot = Shortcut::slot(&key);
                if self.shortcut(slot)? == Shortcut::NONE {
                    made.entry(slot).or_insert(Shortcut::new(key, gate));
                }
            }
        }
        self.write_shortcuts(made)
    }

    fn shortcut(&self, slot: u32) -> Result<Shortcut> {
        self.shortcuts
            .get(&slot, 0)
            .map_err(Error::aya("read in SHORTCUTS"))
    }

    fn write_shortcuts(&mut self, shortcuts: BTreeMap<u32, Shortcut>) -> Result<()> {
        let shortcuts: Vec<(u32, Shortcut)> = shortcuts.into_iter().collect();
        sys::update_all(self.shortcuts.map().fd().as_fd(), &shortcuts)
            .map_err(Error::call("bpf batch update in", "SHORTCUTS"))
    }
}

/// The keys of those that have an address: a wildcard is found by its port.
fn exact(endpoints: impl IntoIterator<Item = Endpoint>) -> impl Iterator<Item = EndpointKey> {
    let exact = |endpoint: &Endpoint| endpoint.address.is_some();
    endpoints.into_iter().filter(exact).map(EndpointKey::from)
}
