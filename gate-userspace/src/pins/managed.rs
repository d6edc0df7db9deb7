//! What the configuration made, so that another process knows it: what it made it may take back, and
//! what people made it leaves alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use gate_common::flow::GateId;

use super::{Lock, Pins, entries, make_folder, remove};
use crate::error::Result;
use crate::gates::GateName;

/// What the configuration made of one gate, besides the gate itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Its guard.
    pub guard: bool,
    /// Its handover.
    pub handover: bool,
}

const GUARD: &str = "guard";
const HANDOVER: &str = "handover";

/// What the configuration made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    /// The gates.
    pub gates: BTreeMap<GateName, (GateId, Made)>,
    /// The attached interfaces, by index.
    pub interfaces: BTreeSet<u32>,
}

impl Pins {
    fn managed_folder(&self) -> PathBuf {
        self.folder().join("managed")
    }

    fn managed_gates(&self) -> PathBuf {
        self.managed_folder().join("gates")
    }

    fn managed_interfaces(&self) -> PathBuf {
        self.managed_folder().join("interfaces")
    }

    fn managed_gate(&self, gate: GateId, name: &GateName) -> PathBuf {
        self.managed_gates().join(format!("{}-{name}", gate.0))
    }

    /// What the configuration made.
    #[must_use]
    pub fn managed(&self) -> Managed {
        let gate = |path: PathBuf| {
            let (gate, name) = path.file_name()?.to_str()?.split_once('-')?;
            let made = Made {
                guard: path.join(GUARD).is_dir(),
                handover: path.join(HANDOVER).is_dir(),
            };
            Some((name.parse().ok()?, (GateId(gate.parse().ok()?), made)))
        };
        let interface = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
        let gates = entries(&self.managed_gates()).into_iter();
        let interfaces = entries(&self.managed_interfaces()).into_iter();
        Managed {
            gates: gates.filter_map(gate).collect(),
            interfaces: interfaces.filter_map(interface).collect(),
        }
    }

    /// Notes what the configuration made, as far as that is noted otherwise now.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn note_managed(&self, lock: &Lock, wanted: &Managed) -> Result<()> {
        let now = self.managed();
        if now == *wanted {
            return Ok(());
        }
        for folder in [
            self.managed_folder(),
            self.managed_gates(),
            self.managed_interfaces(),
        ] {
            make_folder(&folder)?;
        }
        for (name, (gate, made)) in &wanted.gates {
            if now.gates.get(name) != Some(&(*gate, *made)) {
                let folder = self.managed_gate(*gate, name);
                make_folder(&folder)?;
                for (is_made, word) in [(made.guard, GUARD), (made.handover, HANDOVER)] {
                    match is_made {
                        true => make_folder(&folder.join(word))?,
                        false => remove(&folder.join(word))?,
                    }
                }
            }
        }
        for (name, (gate, _)) in &now.gates {
            if wanted.gates.get(name).is_none_or(|(it, _)| it != gate) {
                self.forget_managed(lock, *gate, name)?;
            }
        }
        for index in wanted.interfaces.difference(&now.interfaces) {
            make_folder(&self.managed_interfaces().join(index.to_string()))?;
        }
        for index in now.interfaces.difference(&wanted.interfaces) {
            remove(&self.managed_interfaces().join(index.to_string()))?;
        }
        Ok(())
    }

    /// Forgets that the configuration made a gate.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forget_managed(&self, _lock: &Lock, gate: GateId, name: &GateName) -> Result<()> {
        remove(&self.managed_gate(gate, name))
    }
}
