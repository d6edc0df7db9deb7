//! A real firewall in a topology: nftables, and what its counters say.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::topology::{Place, Topology};

/// The environment variable that names the nft to use.
pub const NFT: &str = "GATE_TEST_NFT";
/// The environment variable with the folders of its libraries, if they are not where they belong.
pub const NFT_LIBS: &str = "GATE_TEST_NFT_LIBS";

/// How long nft may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Adds what `rules` say, in nft's own language, in one transaction.
pub fn load(topology: &Topology, place: impl Into<Place>, rules: &str) -> Result<()> {
    run(topology, place, &[rules]).map(drop)
}

/// The packets that each named counter has counted.
pub fn counters(topology: &Topology, place: impl Into<Place>) -> Result<BTreeMap<String, u64>> {
    let text = run(topology, place, &["-j", "list", "counters"])?;
    let value: Value = serde_json::from_str(&text).context("read nft's counters")?;
    let objects = value["nftables"].as_array().into_iter().flatten();
    Ok(objects
        .filter_map(|object| {
            let counter = object.get("counter")?;
            let name = counter["name"].as_str()?.to_owned();
            Some((name, counter["packets"].as_u64()?))
        })
        .collect())
}

fn run(topology: &Topology, place: impl Into<Place>, words: &[&str]) -> Result<String> {
    let mut command = program()?;
    let output = topology.output(place, command.args(words), LIMIT)?.ok()?;
    Ok(output.stdout)
}

/// The program, without words.
pub(crate) fn program() -> Result<Command> {
    let mut command = Command::new(path()?);
    if let Some(folders) = std::env::var_os(NFT_LIBS) {
        command.env("LD_LIBRARY_PATH", folders);
    }
    Ok(command)
}

fn path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(NFT) {
        return std::fs::canonicalize(&path)
            .with_context(|| format!("find {NFT}={}", path.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("nft"))
        .chain([PathBuf::from("/usr/sbin/nft")])
        .find(|file| file.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("no nft; install nftables or set {NFT}"),
    }
}
