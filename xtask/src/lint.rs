//! Formatting, lints, the fuzz targets, documentation.

use anyhow::Result;

use crate::cargo::{self, cargo};
use crate::process;

const ALL_BUT_BPF: [&str; 3] = ["--workspace", "--exclude=gate-ebpf", "--locked"];
const STRICT: [&str; 3] = ["--", "-D", "warnings"];

/// Runs the checks, until one fails.
pub fn run() -> Result<()> {
    eprintln!("Checking the formatting.");
    process::run(cargo().args(["fmt", "--all", "--check"]))?;

    eprintln!("Checking with clippy.");
    process::run(
        cargo()
            .arg("clippy")
            .args(ALL_BUT_BPF)
            .arg("--all-targets")
            .args(STRICT),
    )?;
    // On the host: nothing is linked, so it needs no BPF target; but there a binary with its own
    // panic handler must not unwind.
    process::run(
        cargo()
            .args(["clippy", "--package=gate-ebpf", "--locked"])
            .args(STRICT)
            .env("CARGO_PROFILE_DEV_PANIC", "abort"),
    )?;

    fuzz()?;

    eprintln!("Checking the documentation.");
    process::run(
        cargo()
            .args(["doc", "--no-deps"])
            .args(ALL_BUT_BPF)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// Checks the fuzz targets, a workspace of their own, where what they need can be had: they alone need
/// libFuzzer's crate, and who works offline may not have it.
fn fuzz() -> Result<()> {
    eprintln!("Checking the fuzz targets.");
    let manifest = cargo::workspace().join("fuzz/Cargo.toml");
    let with = |verb: &str| {
        let mut cargo = cargo();
        cargo
            .args([verb, "--locked", "--manifest-path"])
            .arg(&manifest);
        cargo
    };
    if process::output(with("fetch").arg("--offline")).is_err()
        && let Err(error) = process::run(&mut with("fetch"))
    {
        eprintln!(
            "The fuzz targets are not checked, because what they need can't be had: {error:#}"
        );
        return Ok(());
    }
    let mut format = cargo();
    format
        .args(["fmt", "--check", "--manifest-path"])
        .arg(&manifest);
    process::run(&mut format)?;
    process::run(
        with("check")
            .arg("--offline")
            .arg("--target-dir")
            .arg(cargo::target()?)
            // Nothing is linked, so libFuzzer itself need not be built: any file will do for it.
            .env("CUSTOM_LIBFUZZER_PATH", &manifest),
    )
}
