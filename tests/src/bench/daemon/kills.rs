//! What clients see while the daemon is killed again and again, and gates close and open.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use gate_userspace::error::exit;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{LIMIT, Options, configure, gate, ms, spawn};
use crate::backend;
use crate::exe;
use crate::load::{Load, Outcome};
use crate::service::Service;
use crate::topology::{Side, Topology, server_v4};

const PORT: u16 = 8080;

/// The lease of what is closed here.
const LEASE: Duration = Duration::from_millis(400);

/// The daemon lives for so long at the most: it dies while it starts, and later.
const LIFE: Duration = Duration::from_millis(250);

/// Between two restarts of the backend, which only its guard covers.
const BACKEND: Duration = Duration::from_secs(3);

/// What a lease's end may be late by, with the two cores as busy as this keeps them.
const LATE: Duration = Duration::from_millis(100);

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options) -> Result<Value> {
    let topology = Arc::new(Topology::new()?);
    let at = server_v4(PORT);
    configure(
        &topology,
        &format!(
            "[gate.web]\nendpoints = [\"{at}\"]\ninterfaces = [\"eth0\"]\nmode = \"guard\"\nmax_hold = \"30s\"\n\
             [gate.web.on_down]\ndo = \"hold\"\n\
             [[gate.web.check]]\ntcp = \"{at}\"\ninterval = \"50ms\"\ntimeout = \"45ms\"\nrise = 1\nfall = 2\n"
        ),
    )?;
    let service = Service::start(&topology, backend::Options::new(at))?;
    // It applies the configuration, and is the first to be killed.
    let first = super::start(&topology)?;
    first.signal(Signal::SIGKILL)?;
    first.wait(LIMIT)?;
    let load = Load::new(at, options.rate, Duration::ZERO);
    let load = load.start_endless(&topology, Side::Client)?;
    let going = Arc::new(AtomicBool::new(true));
    let closing = std::thread::spawn({
        let (topology, going) = (topology.clone(), going.clone());
        move || close_and_open(&topology, &going)
    });
    let bouncing = std::thread::spawn({
        let (topology, going) = (topology.clone(), going.clone());
        let words = service.restart_command(Duration::from_millis(50))?;
        let restarts = options.restarts;
        move || match restarts {
            true => bounce(&topology, &words, &going),
            false => Ok(0),
        }
    });
    let began = Instant::now();
    for number in 0..options.kills {
        let daemon = spawn(&topology)?;
        // Spread over its life, and never in step with it.
        sleep(LIFE.mul_f64(f64::from(number * 7919 % 1000) / 1000.0));
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait(LIMIT)?;
    }
    let took = began.elapsed();
    going.store(false, Ordering::Relaxed);
    let joined = "a thread panicked";
    let closings = closing.join().map_err(|_| anyhow::anyhow!(joined))??;
    let bounces = bouncing.join().map_err(|_| anyhow::anyhow!(joined))??;
    let (_, requests) = load.finish()?;
    let failed = requests.iter().filter(|it| it.outcome != Outcome::Ok);
    let failed: Vec<String> = failed
        .map(|it| format!("{} at {:?}", it.outcome, it.at))
        .collect();
    let latest = requests
        .iter()
        .map(|it| it.latency)
        .max()
        .unwrap_or_default();
    let past = closings.iter().filter(|late| **late > LATE).count();
    let latest_end = closings.iter().max().copied().unwrap_or_default();
    if !options.json {
        println!(
            "kills: the daemon was killed {} times in {:.0} s, {} closings of the gate, {bounces} restarts \
             of the backend under its guard, {} new connections/s",
            options.kills,
            took.as_secs_f64(),
            closings.len(),
            options.rate,
        );
        println!(
            "{} requests, {} failed {}, the latest after {:.0} ms; a lease ended {:.1} ms late at the \
             most, {past} more than {LATE:?}",
            requests.len(),
            failed.len(),
            failed.join(", "),
            ms(latest),
            ms(latest_end),
        );
    }
    Ok(json!({
        "part": "kills",
        "kills": options.kills,
        "seconds": took.as_secs_f64(),
        "closings": closings.len(),
        "backend_restarts": bounces,
        "requests": requests.len(),
        "failed": failed,
        "latest_ms": ms(latest),
        "lease_latest_ms": ms(latest_end),
        "past_lease": past,
    }))
}

/// Closes the gate again and again, and opens it or leaves that to its lease. How late the leases
/// ended, by a connection that was tried all the time.
fn close_and_open(topology: &Topology, going: &AtomicBool) -> Result<Vec<Duration>> {
    let lease = format!("{}ms", LEASE.as_millis());
    let mut late = Vec::new();
    let mut round = 0_u64;
    while going.load(Ordering::Relaxed) {
        round += 1;
        let began = Instant::now();
        gate(topology, &["hold", "web", "--for", &lease])?;
        if round.is_multiple_of(2) {
            sleep(Duration::from_millis(round * 37 % 200));
            open(topology)?;
            continue;
        }
        // The command set the lease at some time before it ended.
        let ends = Instant::now() + LEASE;
        let open = loop {
            let status: Value = serde_json::from_str(&gate(topology, &["status", "--json"])?)?;
            let gates = status["gates"].as_array().context("no gates")?;
            let own = gates
                .iter()
                .find(|it| it["gate"] == "web")
                .context("no gate web")?;
            if own["mode"] == "open" || began.elapsed() > LIMIT {
                break Instant::now();
            }
        };
        late.push(open.saturating_duration_since(ends));
    }
    Ok(late)
}

/// Opens the gate; on a busy machine its lease may have been sooner.
fn open(topology: &Topology) -> Result<()> {
    let mut command = Command::new(exe::gate()?);
    let output = topology.output(Side::Server, command.args(["open", "web"]), LIMIT)?;
    match output.code() {
        code if code == i32::from(exit::LEASE) => Ok(()),
        _ => output.ok().map(drop),
    }
}

/// Restarts the backend again and again, with nothing but the guard between.
fn bounce(topology: &Topology, words: &[std::ffi::OsString], going: &AtomicBool) -> Result<u32> {
    let mut bounces = 0;
    while going.load(Ordering::Relaxed) {
        sleep(BACKEND);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        topology.output(Side::Server, &mut command, LIMIT)?.ok()?;
        bounces += 1;
    }
    Ok(bounces)
}
