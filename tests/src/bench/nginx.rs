//! A real nginx is restarted under load, and the latest request is compared with the outage.
//!
//! Over veth the clients ask it themselves. Over loopback they ask a second nginx on the same host,
//! a reverse proxy that makes a new connection for each request, and the gate is on `lo`.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use super::path::Path;
use crate::listener::Watch;
use crate::load::{Load, Request};
use crate::nginx::{Nginx, PORT, PROXY, UPSTREAM};
use crate::summary::Summary;
use crate::text::{duration, parse_duration};
use crate::topology::{Side, Topology, server_v4};

/// The command line of `gate-lab bench nginx`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What is between the clients and nginx: a cable, or loopback and a reverse proxy
    #[arg(long, value_enum, default_value_t = Path::Veth)]
    pub path: Path,
    /// How long nginx is away; can be given more than once
    #[arg(long, default_values = ["300ms", "2s"], value_parser = parse_duration)]
    pub outage: Vec<Duration>,
    /// New connections a second
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
    /// Restarts for each outage; the median counts
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// From the load's start to the restart.
const CALM: Duration = Duration::from_secs(1);
/// From the end of the outage to the load's end.
const REST: Duration = Duration::from_secs(1);
/// What a restart may take beyond the outage.
const LIMIT: Duration = Duration::from_secs(20);

/// Restarts nginx behind a holding gate and prints what that added to the outage.
pub fn nginx(options: &Options) -> Result<()> {
    let mut rows = Vec::new();
    for &outage in &options.outage {
        let mut runs = Vec::new();
        for _ in 0..options.rounds.max(1) {
            runs.push(once_over(options.path, outage, options.rate)?);
        }
        runs.sort_by_key(|run| run.summary.added());
        let calm = runs.iter().filter_map(|run| run.calm).max();
        let runs: Vec<Summary> = runs.into_iter().map(|run| run.summary).collect();
        let median = runs[runs.len() / 2].clone();
        let lost: usize = runs.iter().map(Summary::lost).sum();
        if !options.json {
            let ms = |time: Option<Duration>| time.map_or(f64::NAN, |t| t.as_secs_f64() * 1e3);
            let added: Vec<String> = runs
                .iter()
                .map(|run| format!("{:.1}", ms(run.added())))
                .collect();
            println!(
                "outage {}: {} requests a run, {lost} failed, latest {:.1} ms later than the \
                 outage (median; all: {} ms); before it, none took more than {:.1} ms",
                duration(outage),
                median.requests,
                ms(median.added()),
                added.join(", "),
                ms(calm),
            );
        }
        rows.push(json!({
            "outage": duration(outage),
            "failed": lost,
            "calm_max_ms": calm.map(|time| time.as_secs_f64() * 1e3),
            "median": median.to_json(),
            "runs": runs.iter().map(Summary::to_json).collect::<Vec<_>>(),
        }));
    }
    if options.json {
        let path = options.path.name();
        println!("{}", json!({ "version": 1, "path": path, "nginx": rows }));
    }
    Ok(())
}

/// One restart under load over veth, in a topology of its own.
pub fn once(outage: Duration, rate: u32) -> Result<Summary> {
    Ok(once_over(Path::Veth, outage, rate)?.summary)
}

/// One restart under load.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it came to.
    pub summary: Summary,
    /// The longest that a request took which was due well before the restart: what the machine
    /// does to any of them.
    pub calm: Option<Duration>,
}

/// One restart under load, in a topology of its own.
pub fn once_over(path: Path, outage: Duration, rate: u32) -> Result<Run> {
    let topology = Topology::new()?;
    let nginx = Nginx::start(&topology)?;
    let (target, endpoint) = match path {
        Path::Veth => (server_v4(PORT), server_v4(PORT)),
        Path::Loopback => {
            Nginx::start_proxy(&topology)?;
            (PROXY, UPSTREAM)
        }
    };
    topology.gate(["up", path.interface()])?.ok()?;
    let watch = Watch::start(&topology, endpoint)?;
    let load = Load::new(target, rate, CALM + outage + REST).start_at(&topology, path.client())?;
    sleep(CALM);
    let check = format!("http://{endpoint}/healthz");
    let words = nginx.restart_command(outage)?;
    let mut command = Command::new(crate::exe::gate()?);
    command
        .args(["restart", &endpoint.to_string(), "--check", &check, "--"])
        .args(words);
    topology
        .output(Side::Server, &mut command, outage + LIMIT)?
        .ok()?;
    let requests = load.finish()?;
    let gaps = watch.finish()?;
    let gap = gaps.first().context("nginx was never away")?;
    ensure!(gaps.len() == 1, "nginx was away {} times", gaps.len());
    Ok(Run {
        summary: Summary::new(&requests, gap.length()),
        calm: calm(&requests),
    })
}

fn calm(requests: &[Request]) -> Option<Duration> {
    let before = requests.iter().filter(|request| request.at < CALM / 2);
    before.map(|request| request.latency).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Outcome;

    #[test]
    fn what_is_due_before_the_restart_is_calm() {
        let ms = Duration::from_millis;
        let request = |(at, latency)| Request {
            at: ms(at),
            latency: ms(latency),
            outcome: Outcome::Ok,
        };
        let requests = [(0, 2), (100, 3), (499, 1), (990, 310)].map(request);
        assert_eq!(calm(&requests), Some(ms(3)));
        assert_eq!(calm(&[]), None);
    }
}
