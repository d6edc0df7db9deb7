//! The daemon's CPU and memory while it checks.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Options, configure, start};
use crate::backend;
use crate::service::Service;
use crate::topology::{Topology, server_v4};

/// Gates, each checked ten times a second.
const GATES: u16 = 10;

/// The first one's port.
const PORT: u16 = 8080;

/// Until all is as it goes on.
const CALM: Duration = Duration::from_secs(3);

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options) -> Result<Value> {
    let mut rows = Vec::new();
    for kind in ["tcp", "http"] {
        let row = measure(options, kind)?;
        if !options.json {
            println!(
                "idle, 100 {kind} checks/s for {} s: {:.2} % of a core (promised 1), {:.1} MB (promised 50)",
                options.seconds,
                row["cpu_percent"].as_f64().unwrap_or(f64::NAN),
                row["memory_mb"].as_f64().unwrap_or(f64::NAN),
            );
        }
        rows.push(row);
    }
    Ok(json!({ "part": "idle", "rows": rows }))
}

fn measure(options: &Options, kind: &str) -> Result<Value> {
    let topology = Topology::new()?;
    let listen = (0..GATES).map(|i| server_v4(PORT + i)).collect();
    let all = backend::Options {
        listen,
        ..backend::Options::new(server_v4(PORT))
    };
    let _service = Service::start(&topology, all)?;
    let mut config = String::new();
    for i in 0..GATES {
        let at = server_v4(PORT + i);
        let url = match kind {
            "http" => format!("http://{at}/"),
            _ => at.to_string(),
        };
        write!(
            config,
            "[gate.g{i}]\nendpoints = [\"{at}\"]\ninterfaces = [\"eth0\"]\n\
             [gate.g{i}.on_down]\ndo = \"hold\"\n\
             [[gate.g{i}.check]]\n{kind} = \"{url}\"\ninterval = \"100ms\"\ntimeout = \"90ms\"\n"
        )?;
    }
    configure(&topology, &config)?;
    let daemon = start(&topology)?;
    sleep(CALM);
    let (before, began) = (used(daemon.id())?, Instant::now());
    sleep(Duration::from_secs(options.seconds.into()));
    let (after, took) = (used(daemon.id())?, began.elapsed());
    Ok(json!({
        "kind": kind,
        "seconds": took.as_secs_f64(),
        "cpu_percent": (after.cpu - before.cpu) / took.as_secs_f64() * 100.0,
        "memory_mb": after.memory,
        "peak_memory_mb": after.peak,
    }))
}

struct Used {
    /// CPU time of its own, in seconds.
    cpu: f64,
    /// What is resident, in MB.
    memory: f64,
    /// The most that was.
    peak: f64,
}

/// What a process has used (proc_pid_stat(5), proc_pid_status(5)).
fn used(pid: u32) -> Result<Used> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read stat")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read status")?;
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let size = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("no such line")?.parse::<f64>()? * 1024.0 / 1e6)
    };
    Ok(Used {
        // The kernel counts in hundredths for user space (USER_HZ).
        cpu: ticks as f64 / 100.0,
        memory: size("VmRSS:")?,
        peak: size("VmHWM:")?,
    })
}
