//! What is refused when a checked backend is killed under load.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{LIMIT, Options, configure, gate, ms, start, wait_for};
use crate::backend;
use crate::load::{Load, Outcome, Request};
use crate::service::Service;
use crate::topology::{Topology, server_v4};

const PORT: u16 = 8080;

/// From one check to the next.
const INTERVAL: Duration = Duration::from_millis(100);
/// What one check may take.
const TIMEOUT: Duration = Duration::from_millis(90);
/// Failures until it is down.
const FALL: u32 = 2;
/// How long nothing listens.
const OUTAGE: Duration = Duration::from_millis(800);

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options) -> Result<Value> {
    let mut rows = Vec::new();
    for mode in ["open", "guard"] {
        let row = measure(options, mode)?;
        if !options.json {
            println!(
                "down, mode {mode}: {} kills under {} new connections/s: {} requests, {} refused (the \
                 longest run of them {:.0} ms; one detection takes {:.0} ms at the most), {} reset, {} \
                 timed out or other",
                options.crashes,
                options.rate,
                row["requests"],
                row["refused"],
                row["longest_refusing_ms"].as_f64().unwrap_or(f64::NAN),
                row["detection_ms"].as_f64().unwrap_or(f64::NAN),
                row["reset"],
                row["other"],
            );
        }
        rows.push(row);
    }
    Ok(json!({ "part": "down", "rows": rows }))
}

fn measure(options: &Options, mode: &str) -> Result<Value> {
    let topology = Topology::new()?;
    let at = server_v4(PORT);
    configure(
        &topology,
        &format!(
            "[gate.web]\nendpoints = [\"{at}\"]\ninterfaces = [\"eth0\"]\nmode = \"{mode}\"\nmax_hold = \"30s\"\n\
             [gate.web.on_down]\ndo = \"hold\"\n\
             [[gate.web.check]]\ntcp = \"{at}\"\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\nrise = 1\nfall = {FALL}\n",
            INTERVAL.as_millis(),
            TIMEOUT.as_millis(),
        ),
    )?;
    let mut service = Service::start(&topology, backend::Options::new(at))?;
    let _daemon = start(&topology)?;
    let load = Load::new(at, options.rate, Duration::ZERO);
    let load = load.start_endless(&topology, crate::topology::Side::Client)?;
    sleep(OUTAGE);
    for _ in 0..options.crashes {
        service.process().signal(Signal::SIGKILL)?;
        service.process().wait(LIMIT)?;
        sleep(OUTAGE);
        service = Service::start(&topology, backend::Options::new(at))?;
        wait_for("the gate to be open", || {
            let status: Value = serde_json::from_str(&gate(&topology, &["status", "--json"])?)?;
            Ok(status["gates"][0]["mode"] == "open")
        })?;
        sleep(OUTAGE);
    }
    let (_, requests) = load.finish()?;
    let count = |wanted: &[Outcome]| {
        let is_it = |request: &&Request| wanted.contains(&request.outcome);
        requests.iter().filter(is_it).count()
    };
    // The first check after the kill is up to an interval away and a tenth late, as each is.
    let detection = (INTERVAL * FALL).mul_f64(1.1) + TIMEOUT;
    Ok(json!({
        "mode": mode,
        "requests": requests.len(),
        "refused": count(&[Outcome::Refused]),
        "reset": count(&[Outcome::Reset]),
        "other": count(&[Outcome::TimedOut, Outcome::BadStatus, Outcome::Other]),
        "longest_refusing_ms": ms(longest(&requests)),
        "detection_ms": ms(detection),
    }))
}

/// The longest time within one outage in which requests were refused.
fn longest(requests: &[Request]) -> Duration {
    let mut longest = Duration::ZERO;
    let mut run: Option<(Duration, Duration)> = None;
    for request in requests.iter().filter(|it| it.outcome == Outcome::Refused) {
        run = match run {
            Some((from, last)) if request.at - last < OUTAGE => Some((from, request.at)),
            _ => Some((request.at, request.at)),
        };
        if let Some((from, to)) = run {
            longest = longest.max(to - from);
        }
    }
    longest
}
