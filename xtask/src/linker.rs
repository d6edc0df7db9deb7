//! bpf-linker, built from source once.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::cargo;
use crate::process::{output, run};

const VERSION: &str = "0.10.3";

/// The LLVM that this bpf-linker loads: rustc's own, which must be of the same major version.
pub const LLVM_MAJOR: u32 = 22;

/// The linker's path; builds it when it isn't there or doesn't run.
pub fn ensure(cache: &Cache) -> Result<PathBuf> {
    let name = format!("bpf-linker-{VERSION}");
    let program = program(&cache.path(&name));
    if check(&program).is_ok() {
        return Ok(program);
    }
    eprintln!("Building bpf-linker {VERSION} from source, once (7 MB, a minute or two).");
    cache.install(&name, |scratch| {
        let root = scratch.join("root");
        let mut install = cargo::plain();
        install
            .args([
                "install",
                "bpf-linker",
                "--version",
                VERSION,
                "--locked",
                "--root",
            ])
            .arg(&root)
            .arg("--target-dir")
            .arg(scratch.join("target"));
        // In PATH, so that cargo doesn't advise to put this passing folder there.
        install.env("PATH", with_path(&root.join("bin"))?);
        run(&mut install).context("build bpf-linker")?;
        check(&self::program(&root))?;
        Ok(root)
    })?;
    Ok(program)
}

/// A name for messages and the recipe.
pub fn title() -> String {
    format!("bpf-linker {VERSION}")
}

fn with_path(first: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [first.to_owned()]
        .into_iter()
        .chain(env::split_paths(&path));
    env::join_paths(folders).with_context(|| format!("put {} in PATH", first.display()))
}

fn program(root: &Path) -> PathBuf {
    root.join("bin/bpf-linker")
}

fn check(program: &Path) -> Result<()> {
    let version = output(Command::new(program).arg("--version"))?;
    if version.split_whitespace().nth(1) != Some(VERSION) {
        bail!("{} is {}, not {VERSION}", program.display(), version.trim());
    }
    Ok(())
}
