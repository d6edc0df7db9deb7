//! Formatting, lints, documentation.

use anyhow::Result;

use crate::cargo::cargo;
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

    eprintln!("Checking the documentation.");
    process::run(
        cargo()
            .args(["doc", "--no-deps"])
            .args(ALL_BUT_BPF)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
