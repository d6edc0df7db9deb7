//! `cargo xtask deb`: Debian's package, made from a staged tree.

mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cache::Cache;
use crate::cargo;
use crate::process::{found, output, run};
use crate::programs;

/// What to make, and where.
#[derive(Args)]
pub struct Options {
    /// The folder for the package [default: target/debian]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The gate to pack [default: one that is built for it, optimised]
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Leave lintian out
    #[arg(long)]
    no_lint: bool,
}

/// Makes the package, of what `make` builds unless a gate is given, and lets lintian look at it.
pub fn run_task(options: &Options, make: impl FnOnce() -> Result<PathBuf>) -> Result<()> {
    let gate = options.gate.clone().map_or_else(make, Ok)?;
    let folder = match &options.out {
        Some(folder) => folder.clone(),
        None => cargo::binary("debian", "")?,
    };
    let package = build(&gate, &folder)?;
    if !options.no_lint {
        lint(&package)?;
    }
    println!("{}", package.display());
    Ok(())
}

/// What a package is made and tried with, and this host lacks.
pub fn missing() -> Option<&'static str> {
    [
        "dpkg-deb",
        "dpkg-shlibdeps",
        "dpkg-parsechangelog",
        "strip",
        "systemd-analyze",
    ]
    .into_iter()
    .find(|program| !found(program))
}

/// Makes the package of this gate in a folder; returns its path.
pub fn build(gate: &Path, folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    let version = version()?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))
        .context("packages are made on Debian")?;
    let architecture = architecture.trim();
    let libraries = stage::program(gate, &tree)?;
    stage::files(&tree)?;
    stage::control(&tree, &version, architecture, &libraries)?;
    let package = folder.join(format!("gate_{version}_{architecture}.deb"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .arg(&tree)
        .arg(&package)
        .env("SOURCE_DATE_EPOCH", changed()?))?;
    Ok(package)
}

/// The version at the head of the changelog.
fn version() -> Result<String> {
    let text = stage::read("packaging/debian/changelog")?;
    let version = text
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(version, _)| version.to_owned())
        .context("find the version in packaging/debian/changelog")?;
    let of_crate = env!("CARGO_PKG_VERSION");
    if version.split('-').next() != Some(of_crate) {
        bail!("packaging/debian/changelog has version {version}, and the workspace {of_crate}");
    }
    Ok(version)
}

/// The time of the last entry of the changelog: what is older in the package keeps its own.
fn changed() -> Result<String> {
    let changelog = cargo::workspace().join("packaging/debian/changelog");
    let text = output(
        Command::new("dpkg-parsechangelog")
            .args(["-STimestamp", "-l"])
            .arg(changelog),
    )?;
    Ok(text.trim().to_owned())
}

/// Fails where lintian finds an error. What it says goes to stderr.
pub fn lint(package: &Path) -> Result<()> {
    let cache = Cache::open()?;
    let mut lintian = programs::lintian(&cache)?;
    // Our own user may be root, who unpacks nothing but this package.
    lintian
        .args(["--allow-root", "--fail-on", "error", "--info"])
        .arg(package);
    run(&mut lintian)
}
