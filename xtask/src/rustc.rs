//! What a compiler says of itself.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::output;

/// A compiler that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rustc {
    /// Its path.
    pub path: PathBuf,
    /// Its first line: `rustc 1.96.0 (…)`.
    pub title: String,
    /// LLVM's version.
    pub llvm: String,
    /// The first number of that.
    pub llvm_major: u32,
}

/// Runs `path -vV`, with `libraries` before the system's.
pub fn ask(path: &Path, libraries: &[PathBuf]) -> Result<Rustc> {
    let mut rustc = Command::new(path);
    if !libraries.is_empty() {
        rustc.env("LD_LIBRARY_PATH", join(libraries)?);
    }
    parse(path, &output(rustc.arg("-vV"))?)
}

/// The folders as one value for LD_LIBRARY_PATH.
pub fn join(libraries: &[PathBuf]) -> Result<OsString> {
    env::join_paths(libraries).context("a path with a colon can't be in LD_LIBRARY_PATH")
}

fn parse(path: &Path, text: &str) -> Result<Rustc> {
    let llvm = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .with_context(|| format!("find the LLVM version of {}", path.display()))?;
    let llvm_major = llvm
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("read the LLVM version {llvm:?} of {}", path.display()))?;
    Ok(Rustc {
        path: path.to_owned(),
        title: text.lines().next().unwrap_or_default().to_owned(),
        llvm: llvm.to_owned(),
        llvm_major,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_found() {
        let text = "rustc 1.96.0 (abc)\nbinary: rustc\nhost: x\nLLVM version: 22.1.8\n";
        let rustc = parse(Path::new("/r"), text).unwrap();
        assert_eq!(rustc.llvm_major, 22);
        assert_eq!(rustc.title, "rustc 1.96.0 (abc)");
        assert!(parse(Path::new("/r"), "rustc 1.96.0\n").is_err());
    }
}
