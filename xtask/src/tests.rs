//! `cargo xtask test`: all tests, and one line that sums them up.

use std::fmt;
use std::io::{BufRead, BufReader, Write, stdout};
use std::ops::AddAssign;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cargo::{self, cargo};
use crate::process::{Root, line};
use crate::{nginx, toolchain};

/// The package whose tests drive real traffic.
const LIVE: &str = "--package=gate-tests";

/// All but the documentation's examples, which cargo runs by themselves.
const TARGETS: [&str; 3] = ["--lib", "--bins", "--tests"];

/// How tests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs the tests whose names contain one of `filters`, or all.
pub fn run(filters: &[String]) -> Result<ExitCode> {
    let mut total = Tally::default();
    match prepare() {
        Ok(variables) => {
            let all_but_live = ["--workspace", "--exclude=gate-ebpf", "--exclude=gate-tests"];
            let units = &mut cargo_test();
            total += suite(
                "unit",
                with_filters(units.args(all_but_live).args(TARGETS), filters),
            )?;
            let documented = ["--workspace", "--exclude=gate-ebpf", "--doc"];
            total += suite(
                "documentation",
                with_filters(cargo_test().args(documented), filters),
            )?;
            total += live(filters, &variables)?;
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            total += Tally::broken();
        }
    }
    println!("{total}");
    Ok(total.code())
}

/// Builds what the tests run, and tells where it is.
fn prepare() -> Result<Vec<(&'static str, PathBuf)>> {
    let cache = Cache::open()?;
    toolchain::ensure(&cache)?;
    let mut variables = nginx::ensure(&cache)?;
    drop(cache);
    cargo::build(&["--package=gate-userspace", LIVE])?;
    variables.push(("GATE_BIN", cargo::binary("debug", "gate")?));
    Ok(variables)
}

/// Two at a time: more would make each other's timings worse.
fn live(filters: &[String], variables: &[(&str, PathBuf)]) -> Result<Tally> {
    let mut test = cargo_test();
    with_filters(test.arg(LIVE).args(TARGETS), filters).arg("--test-threads=2");
    test.envs(variables.iter().map(|(name, value)| (name, value)));
    match Root::find() {
        Ok(Root::Already) => {}
        Ok(Root::Sudo) => {
            let triple = cargo::host()?.replace(['-', '.'], "_").to_uppercase();
            // Through `env`, because sudo may be set to keep no variable, -E or not.
            let variables = variables
                .iter()
                .map(|(name, value)| format!(" {name}={}", value.display()));
            let runner = format!("sudo -E env{}", variables.collect::<String>());
            test.env(format!("CARGO_TARGET_{triple}_RUNNER"), runner);
        }
        Err(error) => {
            eprintln!("The live tests (package gate-tests) did not run: {error:#}.");
            return Ok(Tally::broken());
        }
    }
    suite("live", &mut test)
}

fn cargo_test() -> Command {
    let mut cargo = cargo();
    cargo.args(["test", "--locked", "--no-fail-fast"]);
    cargo
}

fn with_filters<'a>(test: &'a mut Command, filters: &[String]) -> &'a mut Command {
    test.arg("--").args(filters)
}

/// Runs one `cargo test`, passing on what it prints as it comes.
fn suite(name: &str, test: &mut Command) -> Result<Tally> {
    eprintln!("Running the {name} tests.");
    let mut child = test
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", line(test)))?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        for text in BufReader::new(output).split(b'\n') {
            let text = text.with_context(|| format!("read what {} prints", line(test)))?;
            let mut out = stdout().lock();
            out.write_all(&text)
                .and_then(|()| out.write_all(b"\n"))
                .context("write to stdout")?;
            if let Some(counted) = Tally::parse(&String::from_utf8_lossy(&text)) {
                tally += counted;
            }
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for {}", line(test)))?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or crashed before it could count.
        eprintln!("The {name} tests ended badly ({status}).");
        tally += Tally::broken();
    }
    Ok(tally)
}

impl Tally {
    /// A whole run that came to nothing counts as one failure.
    const fn broken() -> Self {
        Self {
            passed: 0,
            failed: 1,
            skipped: 0,
        }
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut tally = Self::default();
        for count in counts.split("; ") {
            let Some((number, word)) = count.split_once(' ') else {
                continue;
            };
            match word {
                "passed" => tally.passed = number.parse().ok()?,
                "failed" => tally.failed = number.parse().ok()?,
                "ignored" => tally.skipped = number.parse().ok()?,
                _ => {}
            }
        }
        Some(tally)
    }

    /// Nothing run is no success either.
    fn code(self) -> ExitCode {
        if self.failed == 0 && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(out, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
#[expect(
    clippy::module_inception,
    reason = "the module under test is called tests"
)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 5 filtered out; finished in 0.01s";
        let tally = Tally::parse(line).unwrap();
        assert_eq!(tally.to_string(), "12 passed, 3 failed, 4 skipped");
        assert_eq!(Tally::parse("test a::b ... ok"), None);
        assert_eq!(Tally::parse("     test result: ok. 1 passed"), None);
    }

    #[test]
    fn sums_add_up() {
        let mut total = Tally::parse("test result: ok. 2 passed; 0 failed; 0 ignored").unwrap();
        total += Tally::broken();
        assert_eq!(total.to_string(), "2 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn only_passing_tests_make_a_success() {
        let code = |passed, failed| {
            format!(
                "{:?}",
                Tally {
                    passed,
                    failed,
                    skipped: 1
                }
                .code()
            )
        };
        let success = format!("{:?}", ExitCode::SUCCESS);
        assert_eq!(code(1, 0), success);
        assert_ne!(code(0, 0), success);
        assert_ne!(code(1, 1), success);
    }
}
