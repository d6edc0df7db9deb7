//! What the maps and the command take with more and more endpoints.

use std::fs;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use gate_userspace::pins::{Pins, entries};
use gate_userspace::sys;
use serde::{Deserialize, Serialize};

use super::timed;
use crate::bench::rig::{GATE, Hook, Rig};
use crate::topology::{INTERFACE, Side, Topology};

/// What was there with so many endpoints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Endpoints of the gate.
    pub endpoints: usize,
    /// The pinned maps: name, and the bytes that the kernel counts for it.
    pub maps: Vec<(String, u64)>,
    /// The most that each command had at a time, in KiB.
    pub commands_kib: Vec<(String, u64)>,
}

/// Measures.
pub fn measure(endpoints: &[usize]) -> Result<Vec<Memory>> {
    endpoints.iter().map(|count| with(*count)).collect()
}

fn with(endpoints: usize) -> Result<Memory> {
    let topology = Topology::new()?;
    let rig = Rig::Gate {
        hook: Hook::Tc,
        endpoints,
        held: gate_common::abi::DEFAULT_HELD,
        close: "",
    };
    let _standing = rig.set_up(&topology, INTERFACE)?;
    let maps = topology.run(Side::Server, maps)?;
    ensure!(
        maps.iter()
            .any(|(name, bytes)| name == "ENDPOINTS" && *bytes > 0),
        "no map of endpoints"
    );
    let mut commands_kib = Vec::new();
    for words in [&["hold", GATE][..], &["status"], &["open", GATE]] {
        let ran = timed(&topology, words)?;
        commands_kib.push((format!("gate {}", words.join(" ")), ran.memory));
    }
    Ok(Memory {
        endpoints,
        maps,
        commands_kib,
    })
}

/// The pinned maps of this namespace, and what the kernel counts for each.
fn maps() -> Result<Vec<(String, u64)>> {
    let mut maps = Vec::new();
    for path in entries(&Pins::here()?.folder()) {
        if path.is_dir() {
            continue;
        }
        let fd = sys::open_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let info = format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd());
        let text = fs::read_to_string(&info).with_context(|| format!("read {info}"))?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        if let (Some(bytes), Some(name)) = (bytes, path.file_name()) {
            let bytes = bytes.trim().parse().context("read memlock")?;
            maps.push((name.to_string_lossy().into_owned(), bytes));
        }
    }
    maps.sort();
    Ok(maps)
}
