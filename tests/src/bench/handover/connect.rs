//! What connect(2) costs its caller while a gate is handed over where connections are made.
//!
//! Round after round the same addresses are connected to with the programs attached and without, one
//! thread having both ends, so that nothing waits for a scheduler. Each system call is timed by
//! itself, and what counts of a round is the median. The difference is taken within a round.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result};
use gate_userspace::gates::Target;
use gate_userspace::handover::{HookChoice, Plan, back, hand_over};
use gate_userspace::pins::Pins;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::Options;
use crate::bench::spread::Spread;
use crate::iperf3::processors;
use crate::topology::{Side, Topology};

/// The most that the programs may add to a connect(2), in ns.
const PROMISE: f64 = 1_000.0;

/// Rounds where none are asked for.
const ROUNDS: u32 = 40;

/// One thing to measure.
struct Case {
    name: &'static str,
    /// The gate's endpoint, where it is one.
    gate: Option<SocketAddr>,
    /// Where connections really go; what is connected to without the programs.
    real: TcpListener,
    at: SocketAddr,
    without: Vec<f64>,
    with: Vec<f64>,
}

impl Case {
    fn new(
        topology: &Topology,
        name: &'static str,
        gate: Option<&str>,
        (side, at): (Side, &str),
    ) -> Result<Self> {
        let at = at.parse()?;
        let listen = || TcpListener::bind(at).with_context(|| format!("listen on {at}"));
        Ok(Self {
            name,
            gate: gate.map(str::parse).transpose()?,
            real: topology.run(side, listen)?,
            at,
            without: Vec::new(),
            with: Vec::new(),
        })
    }

    fn hand_over(&self, pins: &Pins) -> Result<()> {
        if let Some(gate) = self.gate {
            let plan = Plan {
                to: vec![self.at.to_string().parse()?],
                pid: None,
                hook: HookChoice::CgroupConnect,
                cgroup: None,
            };
            hand_over(pins, &target(gate)?, &plan)?;
        }
        Ok(())
    }

    fn back(&self, pins: &Pins) -> Result<()> {
        if let Some(gate) = self.gate {
            back(pins, &target(gate)?)?;
        }
        Ok(())
    }

    fn measure(&mut self, is_attached: bool, count: u32) -> Result<()> {
        let to = self.gate.filter(|_| is_attached).unwrap_or(self.at);
        let times: Result<Vec<f64>> = (0..count).map(|_| connect(&self.real, to)).collect();
        let median = Spread::of(&times?).median;
        match is_attached {
            true => self.with.push(median),
            false => self.without.push(median),
        }
        Ok(())
    }
}

fn target(gate: SocketAddr) -> Result<Target> {
    Ok(gate.to_string().parse()?)
}

/// How long connect(2) took, in ns. The client resets the connection, so that nothing of it stays.
fn connect(listener: &TcpListener, to: SocketAddr) -> Result<f64> {
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let start = Instant::now();
    let client = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    let took = start.elapsed();
    let (server, _) = listener.accept().context("accept")?;
    setsockopt(&client, sockopt::Linger, &reset).context("SO_LINGER")?;
    drop(client);
    drop(server);
    Ok(took.as_nanos() as f64)
}

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options) -> Result<Value> {
    let rounds = options.rounds.unwrap_or(ROUNDS).max(1);
    let topology = Topology::new()?;
    let there = |port: &'static str| (Side::Client, port);
    let mut cases = [
        Case::new(
            &topology,
            "to a port of no gate",
            None,
            there("10.0.0.1:9090"),
        )?,
        Case::new(
            &topology,
            "to a gate, sent to a backend elsewhere",
            Some("10.0.0.1:8080"),
            there("10.0.0.1:8082"),
        )?,
        Case::new(
            &topology,
            "the same by IPv6",
            Some("[fd00::1]:8080"),
            there("[fd00::1]:8082"),
        )?,
        Case::new(
            &topology,
            "to a gate, sent to a backend of this host",
            Some("10.0.0.1:8081"),
            (Side::Server, "10.0.0.5:8083"),
        )?,
    ];
    topology.run(Side::Server, || {
        if let Some(&first) = processors()?.first() {
            let mut set = CpuSet::new();
            set.set(first).context("CPU_SET")?;
            // Of this thread, which ends here.
            sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")?;
        }
        let pins = Pins::here()?;
        for round in 0..rounds {
            // Neither is always first.
            for is_attached in [round % 2 == 0, round % 2 == 1] {
                for case in cases.iter().filter(|_| is_attached) {
                    case.hand_over(&pins)?;
                }
                for case in &mut cases {
                    case.measure(is_attached, options.connections.max(1))?;
                }
                for case in cases.iter().filter(|_| is_attached) {
                    case.back(&pins)?;
                }
            }
        }
        Ok(())
    })?;
    if !options.json {
        print_words(options.connections, rounds, &cases);
    }
    Ok(to_json(options.connections, rounds, &cases))
}

/// The median over the rounds of what two measurements of a round make together.
fn middle(case: &Case, join: impl Fn(f64, f64) -> f64) -> f64 {
    let pairs = case.with.iter().zip(&case.without);
    let joined: Vec<f64> = pairs.map(|(with, without)| join(*with, *without)).collect();
    Spread::of(&joined).median
}

fn to_json(connections: u32, rounds: u32, cases: &[Case]) -> Value {
    let rows: Vec<_> = cases
        .iter()
        .map(|case| {
            json!({
                "case": case.name,
                "without_ns": Spread::of(&case.without).to_json(),
                "with_ns": Spread::of(&case.with).to_json(),
                "above_ns": middle(case, |with, without| with - without),
                "ratio": middle(case, |with, without| with / without),
                "promised_above_ns": PROMISE,
            })
        })
        .collect();
    json!({
        "part": "connect",
        "connections": connections,
        "rounds": rounds,
        "cases": rows,
    })
}

fn print_words(connections: u32, rounds: u32, cases: &[Case]) {
    println!(
        "{:<42}{:>10}{:>10}{:>10}{:>8}   promised",
        "connect(2)", "without", "with", "above", "ratio"
    );
    for case in cases {
        println!(
            "{:<42}{:>7.0} ns{:>7.0} ns{:>+7.0} ns{:>8.3}   <= {PROMISE:.0} above",
            case.name,
            Spread::of(&case.without).median,
            Spread::of(&case.with).median,
            middle(case, |with, without| with - without),
            middle(case, |with, without| with / without),
        );
    }
    println!(
        "medians of {rounds} rounds of {connections} connections with the programs and without, all in \
         this run"
    );
}
