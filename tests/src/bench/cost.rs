//! The price of being attached and open: what a packet costs in the programs, and what traffic loses
//! and costs with each way to be there, against programs that do nothing and against firewalls.
//!
//! Each rig has a namespace of its own, and all of them stand at once; they take turns. Ratios are
//! taken within a round. After the rounds each of them is to prove that it was in the traffic's way.

mod packets;
mod proof;
mod report;
mod traffic;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

pub use self::packets::Packets;
pub use self::traffic::Traffic;
use super::path::Path;
use super::record::Output;

/// The command line of `gate-lab bench cost`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to measure; can be given more than once
    #[arg(long, value_enum, default_values = ["packets", "thread", "iperf3"])]
    pub part: Vec<Part>,
    /// Where the traffic goes; can be given more than once
    #[arg(long, value_enum, default_values = ["veth", "loopback"])]
    pub path: Vec<Path>,
    /// Only traffic with rigs whose names contain this, beside nothing; can be given more than once
    #[arg(long, value_name = "TEXT")]
    pub rig: Vec<String>,
    /// Rounds of packets and of the thread; a round of iperf3 comes with every fourth
    #[arg(long, default_value_t = 32)]
    pub rounds: u32,
    /// Packets in one measurement
    #[arg(long, default_value_t = 200_000)]
    pub repeat: u32,
    /// How many times 10 ms the thread measures each rig in a round
    #[arg(long, default_value_t = 4)]
    pub turns: u32,
    /// Where the figures go
    #[command(flatten)]
    pub output: Output,
}

impl Options {
    /// Whether a rig of this name is measured. Ratios need the rig that is nothing.
    fn wants(&self, name: &str) -> bool {
        let is_asked_for = self.rig.iter().any(|text| name.contains(text));
        self.rig.is_empty() || name == traffic::NOTHING || is_asked_for
    }
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Nanoseconds per packet in the programs
    Packets,
    /// Bytes and connections by one thread that has both ends
    Thread,
    /// Bytes by iperf3, and what they cost the whole machine
    Iperf3,
}

/// The raw figures; a part that was not asked for is empty.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// Layout of this.
    pub version: u32,
    /// What packets cost in the programs.
    pub packets: Vec<Packets>,
    /// What traffic gets and costs.
    pub traffic: Vec<Traffic>,
}

/// Measures and prints.
pub fn cost(options: &Options) -> Result<()> {
    options.output.publish(&measure(options)?)
}

/// Measures.
pub fn measure(options: &Options) -> Result<Cost> {
    let mut raw = Cost {
        version: 1,
        packets: Vec::new(),
        traffic: Vec::new(),
    };
    for &part in &options.part {
        match part {
            Part::Packets => raw.packets = packets::measure(options)?,
            Part::Thread | Part::Iperf3 => {
                for &path in &options.path {
                    raw.traffic.extend(traffic::measure(options, path, part)?);
                }
            }
        }
    }
    Ok(raw)
}
