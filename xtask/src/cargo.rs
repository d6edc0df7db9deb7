//! The cargo that runs us, and the folders it works in.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{output, run};

/// Cargo, in the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Cargo without what the caller set for the build of this workspace: for other people's programs.
pub fn plain() -> Command {
    let mut cargo = cargo();
    for name in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    cargo
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package
        .parent()
        .map_or_else(|| package.clone(), Path::to_owned)
}

/// Builds packages or binaries, as `args` say, and nothing of the lock file changes.
pub fn build(args: &[&str]) -> Result<()> {
    run(cargo().args(["build", "--locked"]).args(args))
}

/// A binary that [`build`] made, in the folder `profile`.
pub fn binary(profile: &str, name: &str) -> Result<PathBuf> {
    // We are <target>/<profile>/xtask, wherever the caller wants the target folder.
    let this = env::current_exe().context("find this program's own path")?;
    let target = this
        .ancestors()
        .nth(2)
        .with_context(|| format!("find the target folder above {}", this.display()))?;
    Ok(target.join(profile).join(name))
}

/// The triple that cargo builds for by itself.
pub fn host() -> Result<String> {
    let version = output(cargo().arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("find the host in what cargo -vV prints")
}
