//! `cargo xtask test`: all tests, and one line that sums them up. `cargo xtask faults`: the faults
//! among them, each of them to its full extent.

use std::fs;
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cargo::{self, cargo};
use crate::process::{self, Root, line};
use crate::tally::{Tally, skipped};
use crate::{deb, programs, toolchain};

/// The package whose tests drive real traffic.
const LIVE: &str = "--package=gate-tests";

/// The variable that names the `gate` under test.
const GATE: &str = "GATE_BIN";

/// The variable that names the file into which a test writes that it can't run, and why.
pub const SKIPS: &str = "GATE_SKIPS";

/// The variable that names the package under test.
const PACKAGE: &str = "GATE_TEST_DEB";

/// The variable that tells why there is none: the host is not Debian's, say.
const NO_PACKAGE: &str = "GATE_TEST_NO_DEB";

/// All but the documentation's examples, which cargo runs by themselves.
const TARGETS: &[&str] = &["--lib", "--bins", "--tests"];

/// The tests of faults.
const FAULTS: &[&str] = &["--test=faults_*"];

/// The variable that tells how much of a fault is tried.
const EXTENT: &str = "GATE_TEST_EXTENT";

/// The variable by which the processes of a run are known.
const RUN: &str = "GATE_TEST_RUN";

/// What the tests are told by their environment.
type Variables = Vec<(&'static str, PathBuf)>;

/// Runs the tests whose names contain one of `filters`, or all.
pub fn run(filters: &[String]) -> Result<ExitCode> {
    let mut total = Tally::default();
    match prepare().and_then(with_package) {
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
            total += live(TARGETS, filters, &variables)?;
            total += package(filters, &variables);
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            total += Tally::broken();
        }
    }
    println!("{total}");
    Ok(total.code())
}

/// Tries the faults whose names contain one of `filters`, or all, to their full extent, and looks
/// whether anything is left then.
pub fn faults(filters: &[String]) -> Result<ExitCode> {
    let mut total = Tally::default();
    match prepare() {
        Ok(mut variables) => {
            let run = format!("faults-{}", std::process::id());
            variables.push((EXTENT, "full".into()));
            variables.push((RUN, run.clone().into()));
            let note = cargo::binary("debug", "left-before")?;
            let root = Root::find()?;
            left(&root, "--note", &note, &run)?;
            total += live(FAULTS, filters, &variables)?;
            total += one(
                "nothing is left of the faults",
                &left(&root, "--since", &note, &run),
            );
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            total += Tally::broken();
        }
    }
    println!("{total}");
    Ok(total.code())
}

/// Runs `gate-lab left`.
fn left(root: &Root, what: &str, note: &Path, run: &str) -> Result<()> {
    let lab = cargo::binary("debug", "gate-lab")?;
    process::run(
        root.command(&lab, &[])
            .args(["left", "--run", run, what])
            .arg(note),
    )
}

/// Something that is looked at outside a test, as one test.
fn one(name: &str, result: &Result<()>) -> Tally {
    if let Err(error) = result {
        eprintln!("error: {error:#}");
    }
    let passed = result.is_ok();
    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    Tally {
        passed: u64::from(passed),
        failed: u64::from(!passed),
        ..Tally::default()
    }
}

/// Builds what the tests run, and tells where it is.
fn prepare() -> Result<Variables> {
    let cache = Cache::open()?;
    toolchain::ensure(&cache)?;
    let mut variables = programs::ensure(&cache)?;
    variables.extend(programs::host(&cache)?);
    drop(cache);
    cargo::build(&["--package=gate-userspace", LIVE])?;
    variables.push((GATE, cargo::binary("debug", "gate")?));
    variables.push((SKIPS, cargo::binary("debug", "skipped-tests")?));
    Ok(variables)
}

/// Packs the package as well, where that can be done.
fn with_package(mut variables: Variables) -> Result<Variables> {
    match deb::missing() {
        None => {
            let gate = cargo::binary("debug", "gate")?;
            let package = deb::build(&gate, &cargo::binary("debian-test", "")?)?;
            variables.push((PACKAGE, package));
        }
        Some(missing) => variables.push((NO_PACKAGE, format!("needs {missing}").into())),
    }
    Ok(variables)
}

/// What lintian says of the package, as one test.
fn package(filters: &[String], variables: &[(&str, PathBuf)]) -> Tally {
    let name = "lintian finds no error in the package";
    let wanted = filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let package = variables.iter().find(|(name, _)| *name == PACKAGE);
    let Some((_, package)) = package.filter(|_| wanted) else {
        return Tally::default();
    };
    one(name, &deb::lint(package))
}

/// The live tests of these targets, two at a time: more would make each other's timings worse.
fn live(targets: &[&str], filters: &[String], variables: &[(&str, PathBuf)]) -> Result<Tally> {
    let mut test = cargo_test();
    with_filters(test.arg(LIVE).args(targets), filters).arg("--test-threads=2");
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
    let skips = variables.iter().find(|(name, _)| *name == SKIPS);
    if let Some((_, file)) = skips {
        fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
    }
    let mut tally = suite("live", &mut test)?;
    if let Some((_, file)) = skips {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        print!("{text}");
        tally.skip(skipped(&text));
    }
    Ok(tally)
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
