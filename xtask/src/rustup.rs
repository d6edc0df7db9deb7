//! A nightly of rustup's with the sources of `core`: the usual way to build for BPF.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::linker::LLVM_MAJOR;
use crate::process::{found, line, output};
use crate::rustc::{self, Rustc};

/// A nightly that is known to build the data path; later ones have a newer LLVM than bpf-linker
/// can load.
const NIGHTLY: &str = "nightly-2026-05-20";

const INSTALL: [&str; 8] = [
    "toolchain",
    "install",
    NIGHTLY,
    // rustup itself is not ours to change.
    "--no-self-update",
    "--profile",
    "minimal",
    "--component",
    "rust-src",
];

/// Where rustup's server can't be reached rustup waits without end. A component takes a second,
/// a whole toolchain 12 to 25.
const COMPONENT_SECONDS: u32 = 25;
const TOOLCHAIN_SECONDS: u32 = 60;

/// How timeout(1) exits when it had to end the program.
const TIMED_OUT: i32 = 124;

/// An installed nightly.
pub struct Nightly {
    name: String,
    /// Its folder.
    pub root: PathBuf,
    /// Its compiler.
    pub rustc: Rustc,
}

impl Nightly {
    /// Where its shared libraries are, LLVM among them.
    pub fn libraries(&self) -> PathBuf {
        self.root.join("lib")
    }

    /// Whether the sources of `core` are there.
    fn has_sources(&self) -> bool {
        self.has("rust-src")
    }

    /// Whether rustup has finished installing the component. It writes this list last.
    fn has(&self, component: &str) -> bool {
        fs::read_to_string(self.root.join("lib/rustlib/components"))
            .is_ok_and(|list| list.lines().any(|line| line.starts_with(component)))
    }
}

/// A nightly that can build for BPF as it is.
pub fn ready() -> Option<Nightly> {
    fitting().into_iter().find(Nightly::has_sources)
}

/// Lets rustup fetch what is missing. The error says what was tried, in a few words.
pub fn fetch() -> Result<Nightly> {
    if !found("rustup") {
        bail!("there is no rustup");
    }
    if let Some(nightly) = fitting().first() {
        eprintln!("Asking rustup for the sources of core (rust-src, 6 MB).");
        let args = ["component", "add", "rust-src", "--toolchain", &nightly.name];
        bounded(COMPONENT_SECONDS, &args)?;
    } else {
        // What is there under this name isn't whole: an install that was stopped.
        if names().iter().any(|name| name.starts_with(NIGHTLY)) {
            bounded(COMPONENT_SECONDS, &["toolchain", "uninstall", NIGHTLY])?;
        }
        eprintln!("Asking rustup for {NIGHTLY}, to build for BPF (about 130 MB).");
        bounded(TOOLCHAIN_SECONDS, &INSTALL)?;
    }
    ready().context("rustup fetched a nightly that can't be used")
}

/// What [`fetch`] runs, for one who can wait longer than we do.
pub fn by_hand() -> String {
    format!("rustup {}", INSTALL.join(" "))
}

/// The installed nightlies that are whole and whose LLVM fits, plain `nightly` first.
fn fitting() -> Vec<Nightly> {
    names()
        .into_iter()
        .filter_map(|name| {
            let root = output(rustup().args(["run", &name, "rustc", "--print", "sysroot"])).ok()?;
            let root = PathBuf::from(root.trim());
            let rustc = rustc::ask(&root.join("bin/rustc"), &[]).ok()?;
            let fits = rustc.llvm_major == LLVM_MAJOR;
            let nightly = Nightly { name, root, rustc };
            (fits && nightly.has("cargo-") && nightly.has("rust-std-")).then_some(nightly)
        })
        .collect()
}

fn names() -> Vec<String> {
    output(rustup().args(["toolchain", "list"]))
        .map_or_else(|_| Vec::new(), |list| nightlies(&list))
}

/// `nightly-2026-05-20-x86_64-unknown-linux-gnu (active)` a line.
fn nightlies(list: &str) -> Vec<String> {
    let mut names: Vec<String> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect();
    names.sort_by_key(|name| name.starts_with("nightly-2"));
    names
}

fn rustup() -> Command {
    let mut rustup = Command::new("rustup");
    // `rustup run` would else install what it doesn't find.
    rustup
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env("RUSTUP_MAX_RETRIES", "0");
    rustup
}

/// Runs rustup and kills it, with all it started, when it takes longer.
fn bounded(seconds: u32, args: &[&str]) -> Result<()> {
    let rustup = rustup();
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=2")
        .arg(seconds.to_string())
        .arg(rustup.get_program())
        .args(args);
    command.envs(
        rustup
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let status = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("run {}", line(&command)))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(TIMED_OUT) => bail!("rustup {} took more than {seconds} s", args.join(" ")),
        _ => bail!("rustup {} failed ({status})", args.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_nightly_comes_first() {
        let list =
            "stable-x (active, default)\nnightly-2026-05-20-x\nnightly-x (override)\n1.95.0-x\n";
        assert_eq!(nightlies(list), ["nightly-x", "nightly-2026-05-20-x"]);
    }
}
