//! Where the binaries under test are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The environment variable that names the `gate` to test.
pub const GATE_BIN: &str = "GATE_BIN";

/// The `gate` binary: what `GATE_BIN` names, else the one built beside this program.
pub fn gate() -> Result<PathBuf> {
    match std::env::var_os(GATE_BIN) {
        Some(path) => std::fs::canonicalize(&path)
            .with_context(|| format!("find {GATE_BIN}={}", path.display())),
        None => sibling("gate").with_context(|| format!("no gate; build it or set {GATE_BIN}")),
    }
}

/// The `gate-lab` binary: this program or the one built beside it.
pub fn lab() -> Result<PathBuf> {
    sibling("gate-lab").context("no gate-lab; build it: cargo build -p gate-tests")
}

/// A program that is not Gate's: what `variable` names, else the system's.
pub fn foreign(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return std::fs::canonicalize(&path)
            .with_context(|| format!("find {variable}={}", path.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("no {name}; install the package {name} or set {variable}"))
}

/// A program that is not Gate's, with the libraries of the folders that `variable` with `_LIBS` names; what
/// it loads itself is in a folder `data.0` of one of those, which the variable `data.1` tells it.
pub fn foreign_command(name: &str, variable: &str, data: Option<(&str, &str)>) -> Result<Command> {
    let mut command = Command::new(foreign(name, variable)?);
    let Some(folders) = std::env::var_os(format!("{variable}_LIBS")) else {
        return Ok(command);
    };
    if let Some((folder, variable)) = data {
        let found = std::env::split_paths(&folders)
            .map(|parent| parent.join(folder))
            .find(|path| path.is_dir());
        command.env(variable, found.unwrap_or_default());
    }
    command.env("LD_LIBRARY_PATH", folders);
    Ok(command)
}

/// The shell words that run a program that is not Gate's: its path, and before it what the loader
/// must know where `variable` with `_LIBS` says so.
pub fn foreign_words(name: &str, variable: &str) -> Result<String> {
    let program = foreign(name, variable)?;
    let libraries = std::env::var(format!("{variable}_LIBS"))
        .map(|folders| format!("LD_LIBRARY_PATH='{folders}' "))
        .unwrap_or_default();
    Ok(format!("{libraries}'{}'", program.display()))
}

/// A program in the folder of this one, or in the folder above: cargo puts tests into `deps`.
fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    beside(&own, name, Path::is_file)
        .with_context(|| format!("{name} is not beside {}", own.display()))
}

fn beside(own: &Path, name: &str, exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| exists(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_and_the_one_above_are_searched() {
        let found = |own: &str, there: &str| {
            beside(Path::new(own), "gate", |path| path == Path::new(there)).is_some()
        };
        assert!(found("/t/debug/gate-lab", "/t/debug/gate"));
        assert!(found("/t/debug/deps/lab-1f", "/t/debug/gate"));
        assert!(!found("/t/debug/deps/lab-1f", "/t/gate"));
    }
}
