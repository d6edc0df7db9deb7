//! What a handover costs: connections, time, and throughput.

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::path::Path;
use pair::Kind;

pub mod connect;
pub mod connections;
pub mod endurance;
pub mod first;
pub mod pair;
pub mod throughput;

/// The command line of `gate-lab bench handover`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to measure; can be given more than once
    #[arg(long, value_enum, default_values = ["endurance", "first", "throughput", "connections", "connect"])]
    pub part: Vec<Part>,
    /// Where the traffic goes; can be given more than once
    #[arg(long, value_enum, default_values = ["veth", "loopback"])]
    pub path: Vec<Path>,
    /// endurance: what the backends are; can be given more than once
    #[arg(long, value_enum, default_values = ["lab", "nginx"])]
    pub backends: Vec<Kind>,
    /// endurance: how many handovers
    #[arg(long, default_value_t = 1_000)]
    pub handovers: u32,
    /// endurance: new connections a second
    #[arg(long, default_value_t = 500)]
    pub rate: u32,
    /// endurance: after each handover drain the backend before, stop it, and start it again
    #[arg(long)]
    pub stop: bool,
    /// first: how many switches of each kind
    #[arg(long, default_value_t = 200)]
    pub switches: u32,
    /// throughput, connections, connect: rounds, whose median counts [default: 16; connect: 40]
    #[arg(long)]
    pub rounds: Option<u32>,
    /// connect: connections in one measurement
    #[arg(long, default_value_t = 200)]
    pub connections: u32,
    /// throughput: how long iperf3 measures, in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Many handovers under a steady load of connections that last over several
    Endurance,
    /// From the command to the first connection at the new backend
    First,
    /// What an established connection gets through while its gate is handed over
    Throughput,
    /// New connections a second while another gate is handed over
    Connections,
    /// What connect(2) costs while a gate is handed over where connections are made
    Connect,
}

/// Rounds of a ratio where none are asked for.
const ROUNDS: u32 = 16;

impl Options {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(ROUNDS).max(1)
    }
}

/// Measures and prints.
pub fn handover(options: &Options) -> Result<()> {
    let mut answers = Vec::new();
    for &part in &options.part {
        if part == Part::Connect {
            answers.push(connect::print(options)?);
            continue;
        }
        for &path in &options.path {
            match part {
                Part::Endurance => {
                    for &kind in &options.backends {
                        answers.push(endurance::print(options, path, kind)?);
                    }
                }
                Part::First => answers.push(first::print(options, path)?),
                Part::Throughput => answers.push(throughput::print(options, path)?),
                Part::Connections => answers.push(connections::print(options, path)?),
                Part::Connect => {}
            }
        }
    }
    if options.json {
        println!("{}", json!({ "version": 1, "parts": answers }));
    }
    Ok(())
}
