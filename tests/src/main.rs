//! `gate-lab`: the demo, the benchmarks, and the backend they restart.

use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use gate_tests::{backend, bench, bounce, clock, demo, dial, leftovers, listener, syscalls, text};
use nix::unistd::Uid;

/// How long `away` waits for the listener to close.
const AWAY_LIMIT: Duration = Duration::from_secs(10);

/// What needs root is only done by root.
const NOT_ROOT: u8 = 4;

/// Gate's laboratory: it makes namespaces of its own and leaves nothing behind
#[derive(Parser)]
#[command(name = "gate-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Restart a backend under load three times: without a gate, with drop, with hold
    Demo(demo::Options),
    /// Measure the data path
    #[command(subcommand)]
    Bench(Bench),
    /// Serve HTTP until SIGTERM
    Backend(backend::Options),
    /// Restart a backend: stop the old one, stay away for a while, start the new one
    Bounce(bounce::Options),
    /// Connect many clients at once, and print when the first and the last were connected
    Dial(dial::Options),
    /// Connect, and print with whom, as getpeername(2) tells it
    Peer {
        /// Where to
        #[arg(value_name = "ADDR:PORT")]
        address: SocketAddr,
    },
    /// Wait until nothing listens on an address, and until that has lasted for a while
    Away {
        /// The address that a listener is on
        #[arg(value_name = "ADDR:PORT")]
        address: SocketAddr,
        /// How long nothing should listen
        #[arg(long = "for", value_parser = text::parse_duration)]
        outage: Duration,
    },
    /// Note what there is of BPF objects, pins, processes, namespaces and mounts, or tell what is left
    Left(leftovers::Options),
    /// Set the machine's time of day until the input ends
    Clock(clock::Options),
    /// Trace a command call by call, and kill it or stop it at one of them
    Trace(syscalls::Options),
}

#[derive(Subcommand)]
enum Bench {
    /// All that stands side by side with what people use, into a folder named by the day
    All(bench::whole::Options),
    /// What it costs to be attached and open, against programs that do nothing and against firewalls
    Cost(bench::cost::Options),
    /// What the daemon costs, how soon it acts, and what its death does
    Daemon(bench::daemon::Options),
    /// What the data path costs a packet
    Datapath(bench::datapath::Options),
    /// What clients see of many restarts in a row
    Endurance(bench::endurance::Options),
    /// What a flood of SYNs at a closed gate costs, and who is served meanwhile
    Flood(bench::flood::Options),
    /// What a handover costs: connections, time, throughput, connect(2)
    Handover(bench::handover::Options),
    /// What a restart of nginx behind a holding gate adds to its outage
    Nginx(bench::nginx::Options),
    /// What each way to restart a backend adds to its outage, side by side
    Restart(bench::restart::Options),
    /// What clients of real software see, with a gate and without
    Recipes(bench::recipes::Options),
    /// How gate grows: endpoints, held connections, and how soon it opens and closes
    Scale(bench::scale::Options),
    /// The tables and plots of a run, made again from its figures
    Report(bench::whole::ReportOptions),
    /// What a gate leaves of the throughput and of new connections a second
    Throughput(bench::throughput::Options),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::Demo(_) | Command::Bench(_)) && !Uid::effective().is_root() {
        eprintln!("gate-lab: this needs root, for network namespaces; try sudo");
        return NOT_ROOT.into();
    }
    match run(&command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gate-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    let done = match command {
        Command::Trace(options) => return syscalls::trace(options),
        Command::Left(options) => leftovers::left(options),
        Command::Clock(options) => clock::keep(options),
        Command::Demo(options) => demo::demo(options),
        Command::Bench(Bench::Cost(options)) => bench::cost::cost(options),
        Command::Bench(Bench::All(options)) => bench::whole::all(options),
        Command::Bench(Bench::Report(options)) => bench::whole::report(&options.folder),
        Command::Bench(Bench::Daemon(options)) => bench::daemon::daemon(options),
        Command::Bench(Bench::Datapath(options)) => bench::datapath::datapath(options),
        Command::Bench(Bench::Endurance(options)) => bench::endurance::endurance(options),
        Command::Bench(Bench::Flood(options)) => bench::flood::flood(options),
        Command::Bench(Bench::Handover(options)) => bench::handover::handover(options),
        Command::Bench(Bench::Nginx(options)) => bench::nginx::nginx(options),
        Command::Bench(Bench::Restart(options)) => bench::restart::restart(options),
        Command::Bench(Bench::Recipes(options)) => bench::recipes::recipes(options),
        Command::Bench(Bench::Scale(options)) => bench::scale::scale(options),
        Command::Bench(Bench::Throughput(options)) => bench::throughput::throughput(options),
        Command::Backend(options) => backend::serve(options),
        Command::Bounce(options) => bounce::bounce(options),
        Command::Dial(options) => dial::dial(options),
        Command::Peer { address } => {
            println!("{}", TcpStream::connect(address)?.peer_addr()?);
            Ok(())
        }
        Command::Away { address, outage } => listener::sit_out(*address, *outage, AWAY_LIMIT),
    };
    done.map(|()| ExitCode::SUCCESS)
}
