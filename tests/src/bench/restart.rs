//! A real nginx is restarted under load, and the latest request is compared with the outage.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use crate::listener::Watch;
use crate::load::Load;
use crate::nginx::{Nginx, PORT};
use crate::summary::Summary;
use crate::text::{duration, parse_duration};
use crate::topology::{INTERFACE, Side, Topology, server_v4};

/// The command line of `gate-lab bench restart`.
#[derive(Args, Clone, Debug)]
pub struct Options {
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
pub fn restart(options: &Options) -> Result<()> {
    let mut rows = Vec::new();
    for &outage in &options.outage {
        let mut runs = Vec::new();
        for _ in 0..options.rounds.max(1) {
            runs.push(once(outage, options.rate)?);
        }
        runs.sort_by_key(Summary::added);
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
                 outage (median; all: {} ms)",
                duration(outage),
                median.requests,
                ms(median.added()),
                added.join(", "),
            );
        }
        rows.push(json!({
            "outage": duration(outage),
            "failed": lost,
            "median": median.to_json(),
            "runs": runs.iter().map(Summary::to_json).collect::<Vec<_>>(),
        }));
    }
    if options.json {
        println!("{}", json!({ "version": 1, "restart": rows }));
    }
    Ok(())
}

/// One restart under load, in a topology of its own.
pub fn once(outage: Duration, rate: u32) -> Result<Summary> {
    let topology = Topology::new()?;
    let nginx = Nginx::start(&topology)?;
    topology.gate(["up", INTERFACE])?.ok()?;
    let target = server_v4(PORT);
    let watch = Watch::start(&topology, target)?;
    let load = Load::new(target, rate, CALM + outage + REST).start(&topology)?;
    sleep(CALM);
    let endpoint = target.to_string();
    let check = format!("http://{target}/healthz");
    let words = nginx.restart_command(outage)?;
    let mut command = Command::new(crate::exe::gate()?);
    command
        .args(["restart", &endpoint, "--check", &check, "--"])
        .args(words);
    topology
        .output(Side::Server, &mut command, outage + LIMIT)?
        .ok()?;
    let requests = load.finish()?;
    let gaps = watch.finish()?;
    let gap = gaps.first().context("nginx was never away")?;
    ensure!(gaps.len() == 1, "nginx was away {} times", gaps.len());
    Ok(Summary::new(&requests, gap.length()))
}
