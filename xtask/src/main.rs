//! Gate's build, test, demo and benchmark commands.

mod cache;
mod cargo;
mod deb;
mod debian;
mod docs;
mod linker;
mod lint;
mod process;
mod programs;
#[allow(dead_code, reason = "gate-userspace/build.rs reads what this writes")]
mod recipe;
mod rustc;
mod rustup;
mod tally;
mod tests;
mod toolchain;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cache::Cache;
use crate::process::Root;

#[derive(Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the gate command, fetching a BPF toolchain if there is none
    Build,
    /// Build, then load the data path on an interface (as root)
    Load {
        /// The network interface
        interface: String,
        /// More arguments for `gate up`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Build, then show a restart under load, with and without Gate (as root)
    Demo {
        /// Arguments for the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build, then measure (as root): side by side with what people use today, into bench/runs, or one
    /// benchmark
    Bench {
        #[command(subcommand)]
        which: Option<Bench>,
    },
    /// Build Debian's package, and let lintian look at it
    Deb(deb::Options),
    /// Write the pages of the book that are made from the program
    Docs,
    /// Run all tests; the live ones as root
    Test {
        /// Run only the tests whose names contain one of these
        filters: Vec<String>,
    },
    /// Try all faults to their full extent (as root), and look whether anything is left; every test run
    /// tries a little of each
    Faults {
        /// Try only those whose names contain one of these
        filters: Vec<String>,
    },
    /// Run the tests on other kernels, in virtual machines
    Vm(vm::Options),
    /// Check formatting, lints and documentation
    Lint,
}

#[derive(Subcommand)]
enum Bench {
    /// What it costs to be attached and open, against programs that do nothing and against firewalls
    Cost {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What the daemon costs, how soon it acts, and what its death does
    Daemon {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What a packet costs in the data path
    Datapath {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What clients see of many restarts in a row
    Endurance {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What a flood of SYNs at a closed gate costs, and who is served meanwhile
    Flood {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What a handover costs: connections, time, throughput, connect(2)
    Handover {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// How much later than its outage the latest request is when nginx restarts
    Nginx {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What a restart adds to the backend's outage: gate and other ways, side by side
    Restart {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What clients of real software see, with a gate and without, in the scenarios of docs/recipes
    Recipes {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// How gate grows: endpoints, held connections, and how soon it opens and closes
    Scale {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What a gate leaves of the throughput and of new connections a second
    Throughput {
        /// Arguments for the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build => {
            let gate = build_gate()?;
            eprintln!("Built {}.", gate.display());
        }
        Task::Load { interface, args } => {
            let root = Root::find()?;
            let gate = build_gate()?;
            let args = [vec!["up".to_owned(), interface], args].concat();
            return Err(root.exec(&gate, &args, &[]));
        }
        Task::Demo { args } => return lab(&["demo"], args, Vec::new()),
        Task::Bench { which } => return bench(which),
        Task::Deb(options) => deb::run_task(&options, build_gate)?,
        Task::Docs => {
            toolchain::ensure(&Cache::open()?)?;
            cargo::build(&["--package=gate-userspace"])?;
            docs::run(&cargo::binary("debug", "gate")?)?;
        }
        Task::Test { filters } => return tests::run(&filters),
        Task::Faults { filters } => return tests::faults(&filters),
        Task::Vm(options) => return vm::run(&options),
        Task::Lint => {
            toolchain::ensure(&Cache::open()?)?;
            lint::run()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn bench(which: Option<Bench>) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let (name, args, programs) = match which {
        None => {
            let runs = cargo::workspace().join("bench/runs");
            let args = vec!["--runs".to_owned(), runs.display().to_string()];
            ("all", args, programs::compared(&cache)?)
        }
        Some(Bench::Cost { args }) => ("cost", args, programs::cost(&cache)?),
        Some(Bench::Daemon { args }) => ("daemon", args, Vec::new()),
        Some(Bench::Datapath { args }) => ("datapath", args, Vec::new()),
        Some(Bench::Endurance { args }) => ("endurance", args, Vec::new()),
        Some(Bench::Flood { args }) => ("flood", args, programs::flood(&cache)?),
        Some(Bench::Handover { args }) => {
            let programs = [programs::nginx(&cache)?, programs::iperf3(&cache)?].concat();
            ("handover", args, programs)
        }
        Some(Bench::Nginx { args }) => ("nginx", args, programs::nginx(&cache)?),
        Some(Bench::Restart { args }) => ("restart", args, programs::restart(&cache)?),
        Some(Bench::Recipes { args }) => ("recipes", args, programs::recipes(&cache)?),
        Some(Bench::Scale { args }) => ("scale", args, Vec::new()),
        Some(Bench::Throughput { args }) => ("throughput", args, programs::iperf3(&cache)?),
    };
    drop(cache);
    lab(&["bench", name], args, programs)
}

/// The gate command, optimised.
fn build_gate() -> Result<PathBuf> {
    toolchain::ensure(&Cache::open()?)?;
    cargo::build(&["--release", "--package=gate-userspace"])?;
    cargo::binary("release", "gate")
}

/// Becomes gate-lab, which brings its own network namespaces, backends and load.
fn lab(words: &[&str], args: Vec<String>, mut variables: Vec<(&str, PathBuf)>) -> Result<ExitCode> {
    let root = Root::find()?;
    let gate = build_gate()?;
    cargo::build(&["--release", "--package=gate-tests", "--bin=gate-lab"])?;
    let lab = cargo::binary("release", "gate-lab")?;
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let args = [words, args].concat();
    variables.push(("GATE_BIN", gate));
    Err(root.exec(&lab, &args, &variables))
}
