//! How gate grows: the cost of a verdict and the memory with many endpoints, the time of a release
//! with many held connections, and the time in which a gate opens and closes.

mod memory;
mod release;
mod report;
mod toggle;
mod verdict;

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

pub use self::memory::Memory;
pub use self::release::Release;
pub use self::toggle::Toggle;
pub use self::verdict::Verdict;
use super::record::Output;
use crate::exe;
use crate::topology::{Side, Topology};

/// The command line of `gate-lab bench scale`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to measure; can be given more than once
    #[arg(long, value_enum, default_values = ["verdict", "memory", "release", "toggle"])]
    pub part: Vec<Part>,
    /// Endpoints of a gate; can be given more than once
    #[arg(long, default_values_t = [1, 100, 10_000])]
    pub endpoints: Vec<usize>,
    /// Held connections; can be given more than once
    #[arg(long, default_values_t = [100, 1_000, 16_384, 65_536])]
    pub held: Vec<usize>,
    /// Rounds of verdicts
    #[arg(long, default_value_t = 15)]
    pub rounds: u32,
    /// Packets in one measurement of a verdict
    #[arg(long, default_value_t = 200_000)]
    pub repeat: u32,
    /// Releases for each number of held connections
    #[arg(long, default_value_t = 5)]
    pub releases: u32,
    /// How often a gate is closed and opened
    #[arg(long, default_value_t = 100)]
    pub toggles: u32,
    /// Where the figures go
    #[command(flatten)]
    pub output: Output,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Nanoseconds for a verdict, by the number of endpoints
    Verdict,
    /// Bytes of the maps and of the command, by the number of endpoints
    Memory,
    /// Time of a release, by the number of held connections
    Release,
    /// Time of `gate hold` and `gate open`, and from a store of the state to its effect
    Toggle,
}

/// The raw figures; a part that was not asked for is empty.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    /// Layout of this.
    pub version: u32,
    /// The cost of a verdict.
    pub verdicts: Vec<Verdict>,
    /// Memory.
    pub memory: Vec<Memory>,
    /// Releases.
    pub releases: Vec<Release>,
    /// Openings and closings.
    pub toggles: Vec<Toggle>,
}

/// Measures and prints.
pub fn scale(options: &Options) -> Result<()> {
    options.output.publish(&measure(options)?)
}

/// Measures.
pub fn measure(options: &Options) -> Result<Scale> {
    let mut raw = Scale {
        version: 1,
        verdicts: Vec::new(),
        memory: Vec::new(),
        releases: Vec::new(),
        toggles: Vec::new(),
    };
    for part in &options.part {
        match part {
            Part::Verdict => raw.verdicts = verdict::measure(options)?,
            Part::Memory => raw.memory = memory::measure(&options.endpoints)?,
            Part::Release => raw.releases = release::measure(options)?,
            Part::Toggle => raw.toggles = toggle::measure(options)?,
        }
    }
    Ok(raw)
}

/// What a command took.
struct Ran {
    /// Right before it was started.
    started: Instant,
    /// Until it had ended.
    took: Duration,
    /// The most memory that it had at a time, in KiB.
    memory: u64,
}

/// Runs `gate` in the server's namespace, and waits for it without a pause: it must exit with 0.
fn timed<S: AsRef<OsStr> + Sync>(topology: &Topology, args: &[S]) -> Result<Ran> {
    let program = exe::gate()?;
    topology.run(Side::Server, || {
        let started = Instant::now();
        let child = Command::new(&program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("start gate")?;
        let mut status = 0;
        // SAFETY: rusage is plain integers, for which zero is valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to values that outlive the call; nobody else waits for this
        // child, whose handle is only dropped.
        let waited =
            unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) };
        let took = started.elapsed();
        ensure!(waited > 0, "wait4: {}", std::io::Error::last_os_error());
        ensure!(status == 0, "gate ended with wait status {status}");
        Ok(Ran {
            started,
            took,
            memory: usage.ru_maxrss.unsigned_abs(),
        })
    })
}
