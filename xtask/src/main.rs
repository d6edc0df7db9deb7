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
    /// Build, then measure (as root)
    #[command(subcommand)]
    Bench(Bench),
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
        Task::Bench(Bench::Cost { args }) => {
            let programs = programs::cost(&Cache::open()?)?;
            return lab(&["bench", "cost"], args, programs);
        }
        Task::Bench(Bench::Daemon { args }) => {
            return lab(&["bench", "daemon"], args, Vec::new());
        }
        Task::Bench(Bench::Datapath { args }) => {
            return lab(&["bench", "datapath"], args, Vec::new());
        }
        Task::Bench(Bench::Endurance { args }) => {
            return lab(&["bench", "endurance"], args, Vec::new());
        }
        Task::Bench(Bench::Flood { args }) => {
            let programs = programs::flood(&Cache::open()?)?;
            return lab(&["bench", "flood"], args, programs);
        }
        Task::Bench(Bench::Handover { args }) => {
            let cache = Cache::open()?;
            let programs = [programs::nginx(&cache)?, programs::iperf3(&cache)?].concat();
            return lab(&["bench", "handover"], args, programs);
        }
        Task::Bench(Bench::Nginx { args }) => {
            let nginx = programs::nginx(&Cache::open()?)?;
            return lab(&["bench", "nginx"], args, nginx);
        }
        Task::Bench(Bench::Restart { args }) => {
            let programs = programs::restart(&Cache::open()?)?;
            return lab(&["bench", "restart"], args, programs);
        }
        Task::Bench(Bench::Recipes { args }) => {
            let programs = programs::recipes(&Cache::open()?)?;
            return lab(&["bench", "recipes"], args, programs);
        }
        Task::Bench(Bench::Scale { args }) => {
            return lab(&["bench", "scale"], args, Vec::new());
        }
        Task::Bench(Bench::Throughput { args }) => {
            let iperf3 = programs::iperf3(&Cache::open()?)?;
            return lab(&["bench", "throughput"], args, iperf3);
        }
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
