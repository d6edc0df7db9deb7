//! `cargo xtask vm`: the tests on Debian's kernels, each in a virtual machine.
//!
//! All is built here, once; the machine has a kernel, the tests, and the programs that they run.

mod cpio;
mod image;
mod machine;
mod matrix;
mod packages;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cache::Cache;
use crate::cargo::{self, TestProgram};
use crate::process::output;
use crate::tally::{Tally, skipped};
use crate::{programs, toolchain};
use image::Image;
use machine::{Event, Setup};
use matrix::{Kernel, Machine, Matrix};
use packages::{Qemu, Unpacked};

/// What is built for the machines: optimised, because emulated processors are slow.
const PACKAGES: [&str; 4] = [
    "--release",
    "--package=gate-common",
    "--package=gate-userspace",
    "--package=gate-tests",
];

/// Programs of tests that are no matter of the kernel's, and need what the machines lack: the sources,
/// groff, dpkg and systemd.
const NOT_THE_KERNELS: [&str; 4] = [
    "tests book",
    "tests faults_input",
    "tests manual",
    "tests package",
];

/// Which kernels, and how.
#[derive(Args)]
pub struct Options {
    /// Kernels of tests/kernels.toml, as 5.10; all when none is named
    kernels: Vec<String>,
    /// Start a shell in the machine instead of the tests
    #[arg(long)]
    shell: bool,
    /// Fetch the kernels anew, though they are cached
    #[arg(long)]
    fresh: bool,
    /// How long one kernel may take, in seconds
    #[arg(long, default_value_t = 1200, value_name = "SECONDS")]
    timeout: u64,
    /// Run only the tests whose names contain one of these
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// What all machines are made of.
struct Parts {
    matrix: Matrix,
    qemu: Qemu,
    busybox: PathBuf,
    /// Environment variables that tell tests where something is.
    variables: Vec<(&'static str, PathBuf)>,
    tests: Vec<Tests>,
}

/// A program of tests, and what is to be run of it.
struct Tests {
    program: TestProgram,
    names: Vec<String>,
}

/// How it went on one kernel.
#[derive(Default)]
struct Row {
    kernel: String,
    release: String,
    machine: String,
    booted: Option<Duration>,
    tally: Tally,
    took: Duration,
}

/// Runs the tests on the kernels that the options name.
pub fn run(options: &Options) -> Result<ExitCode> {
    let matrix = Matrix::read()?;
    let kernels = matrix.select(&options.kernels)?;
    let cache = Cache::open()?;
    let parts = Parts::prepare(matrix, &cache, options)?;
    let package = &parts.matrix.vm.package;
    let fetched: Vec<(Kernel, Result<Unpacked>)> = kernels
        .into_iter()
        .map(|kernel| {
            let unpacked =
                packages::kernel(&cache, &kernel, package, &parts.busybox, options.fresh);
            (kernel, unpacked)
        })
        .collect();
    drop(cache);
    let Some(first) = fetched
        .iter()
        .find_map(|(_, unpacked)| unpacked.as_ref().ok())
    else {
        let errors = fetched
            .into_iter()
            .filter_map(|(_, unpacked)| unpacked.err());
        return Err(errors.last().context("no kernels to boot")?);
    };
    let machine = parts.choose(first)?;
    if options.shell {
        parts.shell(&machine, first)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for (kernel, unpacked) in &fetched {
        let mut row = Row {
            kernel: kernel.name.clone(),
            machine: machine.name.clone(),
            ..Row::default()
        };
        let start = Instant::now();
        let run = match unpacked {
            Ok(unpacked) => parts.test(&machine, unpacked, options, &mut row),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        if let Err(error) = run {
            eprintln!("error: Linux {}: {error:#}", kernel.name);
            row.tally += Tally::broken();
        }
        row.took = start.elapsed();
        eprintln!(
            "Linux {}: {} in {}.",
            kernel.name,
            row.tally,
            seconds(row.took)
        );
        rows.push(row);
    }
    println!("{}", table(&rows));
    let mut total = Tally::default();
    for row in &rows {
        total += row.tally;
    }
    println!("{total}");
    Ok(total.code())
}

impl Parts {
    fn prepare(matrix: Matrix, cache: &Cache, options: &Options) -> Result<Self> {
        toolchain::ensure(cache)?;
        let mut variables = programs::ensure(cache)?;
        let (qemu, busybox) = (Qemu::ensure(cache)?, packages::busybox(cache)?);
        cargo::build(&PACKAGES)?;
        let gate = cargo::binary("release", "gate")?;
        variables.push(("GATE_BIN", gate));
        let tests = cargo::build_tests(&[&PACKAGES[..], &["--tests"]].concat())?
            .into_iter()
            .filter(|program| !NOT_THE_KERNELS.contains(&&*program.name))
            .map(|program| {
                let names = names(&program, &options.filters)?;
                Ok(Tests { program, names })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            matrix,
            qemu,
            busybox,
            variables,
            tests,
        })
    }

    /// The first way to run a machine that boots this kernel.
    fn choose(&self, kernel: &Unpacked) -> Result<Machine> {
        let initramfs = file("probe.cpio")?;
        Image::new(&self.busybox).write(&initramfs)?;
        let mut hung = None;
        for machine in &self.matrix.machines {
            // Another processor would hang as well.
            if hung == Some(&machine.accel) {
                continue;
            }
            let setup = self.setup(machine, kernel, initramfs.clone(), "probe")?;
            let mut booted = false;
            let start = Instant::now();
            let run = setup.run(machine.limit(), |event| {
                booted |= matches!(event, Event::Booted(_));
            });
            match run {
                Ok(()) if booted => return Ok(machine.clone()),
                Ok(()) => {}
                Err(error) => {
                    if start.elapsed() >= machine.limit() {
                        hung = Some(&machine.accel);
                    }
                    eprintln!(
                        "{} (cpu {}) can't be used: {error:#}.",
                        machine.name, machine.cpu
                    );
                }
            }
        }
        bail!("QEMU boots no kernel here, not even by emulation")
    }

    fn setup<'a>(
        &'a self,
        machine: &'a Machine,
        kernel: &'a Unpacked,
        initramfs: PathBuf,
        name: &str,
    ) -> Result<Setup<'a>> {
        let console = file(&format!("{name}.console"))?;
        fs::write(&console, "").with_context(|| format!("write {}", console.display()))?;
        Ok(Setup {
            qemu: &self.qemu,
            machine,
            vm: &self.matrix.vm,
            kernel,
            initramfs,
            console,
        })
    }

    /// A machine's files, but for what it is to do.
    fn image(&self, kernel: &Unpacked) -> Result<Image> {
        let vm = &self.matrix.vm;
        let mut image = Image::new(&self.busybox);
        image.kernel(kernel, &vm.modules)?;
        let missing = image.host(vm)?;
        if !missing.is_empty() {
            eprintln!(
                "This machine lacks programs that tests may run: {}.",
                missing.join(", ")
            );
        }
        let value = |wanted: &str| {
            let mut variables = self.variables.iter();
            variables.find_map(|(name, path)| (*name == wanted).then_some(path.as_path()))
        };
        for (name, path) in &self.variables {
            image.variable(name, &path.to_string_lossy());
        }
        for (program, libraries) in [
            ("GATE_BIN", "GATE_BIN_LIBS"),
            ("GATE_TEST_NGINX", "GATE_TEST_NGINX_LIBS"),
            ("GATE_TEST_NFT", "GATE_TEST_NFT_LIBS"),
            ("GATE_TEST_APACHE", "GATE_TEST_APACHE_LIBS"),
            ("GATE_TEST_HAPROXY", "GATE_TEST_HAPROXY_LIBS"),
            ("GATE_TEST_HAPROXY_3", "GATE_TEST_HAPROXY_3_LIBS"),
            ("GATE_TEST_IPTABLES", "GATE_TEST_IPTABLES_LIBS"),
            ("GATE_TEST_GUNICORN", "GATE_TEST_GUNICORN_LIBS"),
        ] {
            if let Some(program) = value(program) {
                image.program(program, value(libraries))?;
            }
        }
        for (folder, libraries) in [
            ("GATE_TEST_APACHE_MODULES", "GATE_TEST_APACHE_LIBS"),
            ("GATE_TEST_GUNICORN_PYTHON", "GATE_TEST_GUNICORN_LIBS"),
        ] {
            if let Some(folder) = value(folder) {
                image.tree(folder, value(libraries))?;
            }
        }
        // By a loader of its own, ldd does not see its libraries; and extensions are no program's.
        for libraries in ["GATE_TEST_HAPROXY_3_LIBS", "GATE_TEST_IPTABLES_LIBS"] {
            if let Some(folder) = value(libraries) {
                image.tree(folder, Some(folder))?;
            }
        }
        for folder in &vm.sources {
            image.tree(&cargo::workspace().join(folder), None)?;
        }
        image.program(&cargo::binary("release", "gate-lab")?, None)?;
        Ok(image)
    }

    fn test(
        &self,
        machine: &Machine,
        kernel: &Unpacked,
        options: &Options,
        row: &mut Row,
    ) -> Result<()> {
        let mut image = self.image(kernel)?;
        for Tests { program, names } in self.tests.iter().filter(|tests| !tests.names.is_empty()) {
            let mut args = options.filters.clone();
            // Two at a time, as without a machine.
            args.extend(["--test-threads=2", "--color=never"].map(str::to_owned));
            if machine.is_emulated() {
                for slow in &self.matrix.too_slow {
                    if names.contains(&slow.test) {
                        println!("SKIPPED {}: emulated, {}", slow.test, slow.why);
                        row.tally.skipped += 1;
                        args.extend(["--skip".to_owned(), slow.test.clone()]);
                    }
                }
            }
            image.task(&program.name, &program.folder, &program.path, &args)?;
        }
        let initramfs = file(&format!("{}.cpio", row.kernel))?;
        image.write(&initramfs)?;
        let setup = self.setup(machine, kernel, initramfs, &row.kernel)?;
        eprintln!(
            "Booting Linux {} ({}) by {}.",
            row.kernel, kernel.release, machine.name
        );
        let start = Instant::now();
        let mut current = None;
        let run = setup.run(Duration::from_secs(options.timeout), |event| match event {
            Event::Booted(release) => {
                row.booted = Some(start.elapsed());
                release.clone_into(&mut row.release);
            }
            Event::Begins(name) => {
                eprintln!("Running {name} on Linux {}.", row.kernel);
                current = Some(Tally::default());
            }
            Event::Ended(code) => {
                let mut tally = current.take().unwrap_or_default();
                if code != 0 && tally.failed == 0 {
                    eprintln!("It ended badly (exit code {code}).");
                    tally += Tally::broken();
                }
                row.tally += tally;
            }
            Event::Line(line) => {
                println!("{line}");
                if let Some(tally) = &mut current {
                    tally.skip(skipped(line));
                    if let Some(counted) = Tally::parse(line) {
                        *tally += counted;
                    }
                }
            }
            Event::Done => {}
        });
        // What the machine was at when it stopped counts as far as it got.
        row.tally += current.unwrap_or_default();
        if run.is_err() {
            eprintln!(
                "The last lines of the kernel's console, {}:",
                setup.console.display()
            );
            eprintln!("{}", setup.last_words());
        }
        run
    }

    fn shell(&self, machine: &Machine, kernel: &Unpacked) -> Result<()> {
        let mut image = self.image(kernel)?;
        for Tests { program, .. } in &self.tests {
            image.task(&program.name, &program.folder, &program.path, &[])?;
        }
        image.shell();
        let initramfs = file("shell.cpio")?;
        image.write(&initramfs)?;
        self.setup(machine, kernel, initramfs, "shell")?.interact()
    }
}

/// The tests of a program that would run.
fn names(program: &TestProgram, filters: &[String]) -> Result<Vec<String>> {
    let mut list = Command::new(&program.path);
    list.args(["--list", "--format=terse"]).args(filters);
    let text = output(&mut list)?;
    let name = |line: &str| Some(line.strip_suffix(": test")?.to_owned());
    Ok(text.lines().filter_map(name).collect())
}

/// A file of ours in the target folder.
fn file(name: &str) -> Result<PathBuf> {
    let folder = cargo::binary("vm", "")?;
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder.join(name))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<8} {:<28} {:<4} {:>8} {:>7} {:>7} {:>8} {:>9}\n",
        "kernel", "release", "by", "booted", "passed", "failed", "skipped", "time"
    );
    for row in rows {
        text += &format!(
            "{:<8} {:<28} {:<4} {:>8} {:>7} {:>7} {:>8} {:>9}\n",
            row.kernel,
            row.release,
            row.machine,
            row.booted.map_or_else(|| "never".to_owned(), seconds),
            row.tally.passed,
            row.tally.failed,
            row.tally.skipped,
            seconds(row.took)
        );
    }
    text
}
