//! What the daemon costs, how soon it acts, and what its death does.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::exe;
use crate::topology::{Process, Side, Topology};

mod down;
mod idle;
mod kills;
mod listen;
mod reload;

/// The command line of `gate-lab bench daemon`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to measure; can be given more than once
    #[arg(long, value_enum, default_values = ["idle", "listen", "down", "reload", "kills"])]
    pub part: Vec<Part>,
    /// idle: how long, in seconds
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// listen: how many times a backend comes back
    #[arg(long, default_value_t = 200)]
    pub times: u32,
    /// down: how many times a backend is killed
    #[arg(long, default_value_t = 20)]
    pub crashes: u32,
    /// kills: how many times the daemon is killed
    #[arg(long, default_value_t = 1_000)]
    pub kills: u32,
    /// kills: restart the backend as well, with nothing but the guard between; one that stops resets what
    /// it has not accepted yet
    #[arg(long)]
    pub restarts: bool,
    /// down, kills: new connections a second
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
    /// reload: gates, with ten endpoints each
    #[arg(long, default_value_t = 1_000)]
    pub gates: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The daemon's CPU and memory with 100 checks a second
    Idle,
    /// From listen(2) of a guarded backend until a held connection is made
    Listen,
    /// What is refused when a checked backend is killed under load
    Down,
    /// How long a reload takes, with many gates
    Reload,
    /// What clients see while the daemon is killed again and again
    Kills,
}

/// The daemon's socket.
const SOCKET: &str = "/run/gate/gate.sock";
/// The daemon's configuration.
const CONFIG: &str = "/run/gate.toml";
/// For whatever must come.
const LIMIT: Duration = Duration::from_secs(60);

/// Measures and prints.
pub fn daemon(options: &Options) -> Result<()> {
    let mut answers = Vec::new();
    for &part in &options.part {
        answers.push(match part {
            Part::Idle => idle::print(options)?,
            Part::Listen => listen::print(options)?,
            Part::Down => down::print(options)?,
            Part::Reload => reload::print(options)?,
            Part::Kills => kills::print(options)?,
        });
    }
    if options.json {
        println!("{}", json!({ "version": 1, "parts": answers }));
    }
    Ok(())
}

/// Writes a configuration.
fn configure(topology: &Topology, config: &str) -> Result<()> {
    topology.run(Side::Server, || Ok(std::fs::write(CONFIG, config)?))
}

/// Starts a daemon with the configuration that is there.
fn spawn(topology: &Topology) -> Result<Process> {
    let mut command = Command::new(exe::gate()?);
    command.args(["daemon", "--config", CONFIG, "--log", "warn"]);
    topology.spawn(Side::Server, &mut command)
}

/// As [`spawn`], and waits until it answers.
fn start(topology: &Topology) -> Result<Process> {
    let daemon = spawn(topology)?;
    wait_for("the daemon to answer", || {
        ensure!(
            !daemon.has_ended()?,
            "the daemon ended: {}",
            daemon.stderr()?
        );
        topology.run(Side::Server, || Ok(answers().is_ok()))
    })?;
    Ok(daemon)
}

/// Asks the daemon. It takes connections before it has applied its configuration, and answers after.
fn answers() -> std::io::Result<()> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.write_all(b"GET /v1 HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n")?;
    stream.read_exact(&mut [0; 12])
}

/// Waits until something is so.
fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let late = Instant::now() + LIMIT;
    while !is_so()? {
        ensure!(Instant::now() < late, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Milliseconds, to the microsecond.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Runs `gate` in the server's namespace, which must do it.
fn gate(topology: &Topology, args: &[&str]) -> Result<String> {
    let mut command = Command::new(exe::gate()?);
    let output = topology.output(Side::Server, command.args(args), LIMIT)?;
    let output = output
        .ok()
        .with_context(|| format!("gate {}", args.join(" ")))?;
    Ok(output.stdout)
}
