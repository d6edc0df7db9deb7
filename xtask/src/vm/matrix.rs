//! The matrix: what `tests/kernels.toml` says.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cargo::workspace;

const FILE: &str = "tests/kernels.toml";

/// All of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// The kernels, in the order in which they are booted.
    #[serde(rename = "kernel")]
    pub kernels: Vec<Kernel>,
    /// What every machine has.
    pub vm: Vm,
    /// What to run it by, the best first.
    #[serde(rename = "machine")]
    pub machines: Vec<Machine>,
    /// Tests that say nothing where instructions are emulated.
    #[serde(rename = "too-slow", default)]
    pub too_slow: Vec<TooSlow>,
}

/// One kernel of Debian's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What it is called here.
    pub name: String,
    /// The suite of the archive that it comes from.
    pub suite: String,
}

/// What every machine has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// The package that depends on a suite's newest kernel.
    pub package: String,
    /// Folders of the kernel's modules.
    pub modules: Vec<String>,
    /// Names of the host's programs.
    pub programs: Vec<String>,
    /// More of the host's files.
    pub files: Vec<String>,
    /// Files of the workspace that tests read, and folders of them.
    pub sources: Vec<String>,
    /// As QEMU reads it.
    pub memory: String,
    /// How many processors.
    pub cpus: u32,
}

/// A way to run a machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// For people.
    pub name: String,
    /// QEMU's `-accel`.
    pub accel: String,
    /// QEMU's `-cpu`.
    pub cpu: String,
    /// More for the kernel's command line.
    #[serde(default)]
    pub append: String,
    /// Within how many seconds it has to boot.
    pub seconds: u64,
}

/// A test that is left out where instructions are emulated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TooSlow {
    /// Its name.
    pub test: String,
    /// What it can't do.
    pub why: String,
}

impl Matrix {
    /// Reads the file.
    pub fn read() -> Result<Self> {
        let path = workspace().join(FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("read {FILE}"))
    }

    /// The kernels of these names, or all.
    pub fn select(&self, names: &[String]) -> Result<Vec<Kernel>> {
        for name in names {
            if !self.kernels.iter().any(|kernel| kernel.name == *name) {
                let known: Vec<&str> = self.kernels.iter().map(|one| one.name.as_str()).collect();
                bail!(
                    "no kernel {name} in {FILE}: take one of {}",
                    known.join(", ")
                );
            }
        }
        let wanted = |kernel: &&Kernel| names.is_empty() || names.contains(&kernel.name);
        Ok(self.kernels.iter().filter(wanted).cloned().collect())
    }
}

impl Machine {
    /// Within which time it has to boot.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Does it emulate instructions?
    pub fn is_emulated(&self) -> bool {
        self.accel.starts_with("tcg")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_can_be_read_and_ends_with_what_works_everywhere() {
        let matrix = Matrix::read().unwrap();
        assert!(matrix.machines.last().unwrap().is_emulated());
        let all = matrix.select(&[]).unwrap();
        assert_eq!(all.len(), matrix.kernels.len());
    }

    #[test]
    fn kernels_are_selected_by_name_in_the_order_of_the_file() {
        let matrix = Matrix::read().unwrap();
        let names = ["6.1", "5.10"].map(str::to_owned);
        let chosen = matrix.select(&names).unwrap();
        let chosen: Vec<&str> = chosen.iter().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(chosen, ["5.10", "6.1"]);
        let error = matrix.select(&["4.4".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("no kernel 4.4") && error.contains("5.10"),
            "{error}"
        );
    }
}
