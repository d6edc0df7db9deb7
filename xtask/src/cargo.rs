//! The cargo that runs us, and the folders it works in.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{line, output, run};

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

/// A program of tests.
#[derive(Debug, PartialEq, Eq)]
pub struct TestProgram {
    /// Its package and target, for people.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// The folder of its package, in which cargo runs it.
    pub folder: PathBuf,
}

/// Builds the programs of tests that `args` select, without running them.
pub fn build_tests(args: &[&str]) -> Result<Vec<TestProgram>> {
    let messages = ["--no-run", "--message-format=json-render-diagnostics"];
    let mut test = cargo();
    test.args(["test", "--locked"]).args(messages).args(args);
    let printed = test
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {}", line(&test)))?;
    if !printed.status.success() {
        bail!("{} failed ({})", line(&test), printed.status);
    }
    test_programs(&String::from_utf8_lossy(&printed.stdout))
}

/// Reads cargo's messages.
fn test_programs(messages: &str) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for message in messages.lines() {
        let message: Value =
            serde_json::from_str(message).context("read what cargo says of its builds")?;
        if message["profile"]["test"] != true {
            continue;
        }
        if let (Some(path), Some(manifest), Some(target)) = (
            message["executable"].as_str(),
            message["manifest_path"].as_str(),
            message["target"]["name"].as_str(),
        ) {
            let folder = Path::new(manifest).parent().unwrap_or(Path::new("/"));
            let package = folder.file_name().unwrap_or_default().to_string_lossy();
            programs.push(TestProgram {
                name: format!("{package} {target}"),
                path: path.into(),
                folder: folder.to_owned(),
            });
        }
    }
    Ok(programs)
}

/// A binary that [`build`] made, in the folder `profile`.
pub fn binary(profile: &str, name: &str) -> Result<PathBuf> {
    Ok(target()?.join(profile).join(name))
}

/// The target folder.
pub fn target() -> Result<PathBuf> {
    // We are <target>/<profile>/xtask, wherever the caller wants the target folder.
    let this = env::current_exe().context("find this program's own path")?;
    let target = this
        .ancestors()
        .nth(2)
        .with_context(|| format!("find the target folder above {}", this.display()))?;
    Ok(target.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_of_tests_are_taken() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","target":{"name":"x"},"profile":{"test":false},"executable":"/t/x"}
{"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","target":{"name":"y"},"profile":{"test":true},"executable":"/t/y-1"}
{"reason":"build-finished","success":true}"#;
        let expected = TestProgram {
            name: "a y".to_owned(),
            path: "/t/y-1".into(),
            folder: "/w/a".into(),
        };
        assert_eq!(test_programs(messages).unwrap(), [expected]);
    }
}
