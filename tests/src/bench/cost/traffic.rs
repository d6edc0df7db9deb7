//! What traffic gets, and what it costs, with each rig: bytes and connections by one thread that has
//! both ends, whose time is all that they cost; and bytes by iperf3, with what the whole machine
//! spends meanwhile.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::proof::{MOST, prove};
use super::{Options, Part};
use crate::bench::path::Path;
use crate::bench::rig::{Answer, Hook, Rig, Standing};
use crate::bench::single::Lane;
use crate::bench::throughput::undisturbed;
use crate::iperf3::Iperf3;
use crate::topology::{SERVER_V4, Topology};

/// What one rig left of one kind of traffic.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// Where.
    pub path: String,
    /// What: `bytes by one thread`, `connections by one thread`, `bytes by iperf3`.
    pub what: String,
    /// The rig.
    pub rig: String,
    /// Whether it is gate's.
    pub is_gate: bool,
    /// Bits or connections a second, one for each round.
    pub rate: Vec<f64>,
    /// CPU seconds for a GB (10^9 bytes), or CPU µs for a connection, one for each round.
    pub cpu: Vec<f64>,
}

/// The rig that all are compared with.
pub const NOTHING: &str = "nothing";
/// Bytes by one thread.
pub const STREAM: &str = "bytes by one thread";
/// Connections by one thread.
pub const CONNECTIONS: &str = "connections by one thread";
/// Bytes by iperf3.
pub const IPERF3: &str = "bytes by iperf3";

/// The port that the traffic is for. What is closed or dropped is another.
const PORT: u16 = 5_201;
/// That one.
const OTHER: u16 = 9_999;
/// How long iperf3 measures, in seconds.
const SECONDS: u32 = 1;
/// A round of iperf3 comes with every fourth of the thread.
const RARER: u32 = 4;
/// From setting up to the first measurement: what the kernel clears up later is done by then.
const SETTLE: Duration = Duration::from_millis(300);

const CLOSE_OTHER: &str = "hold *:9999 --for 2h";
/// What people write who use connection tracking: established connections first.
const IPTABLES: Rig = Rig::Iptables(&[
    "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A INPUT -p tcp -m conntrack --ctstate NEW -m tcp --dport 9999 -j DROP",
]);
const NFT: Rig = Rig::Nft(
    "table inet filter {
        counter dropped { }
        chain input {
            type filter hook input priority 0;
            ct state established,related accept
            tcp dport 9999 ct state new counter name dropped drop
        }
    }",
);

const fn gate(hook: Hook, close: &'static str) -> Rig {
    Rig::Gate {
        hook,
        endpoints: 0,
        held: gate_common::abi::DEFAULT_HELD,
        close,
    }
}

/// The rigs of a path that are asked for. On loopback there is no XDP: it would copy every packet there.
fn rigs(options: &Options, path: Path) -> Vec<(&'static str, Rig)> {
    let tc = match path {
        Path::Veth => Hook::TcBoth,
        Path::Loopback => Hook::Tc,
    };
    let mut rigs = vec![
        (NOTHING, Rig::Nothing),
        ("nothing, once more", Rig::Nothing),
        ("gate, TC, open", gate(tc, "")),
        ("gate, TC, another closed", gate(tc, CLOSE_OTHER)),
        ("TC program, passes all", Rig::Program(tc, Answer::Pass)),
    ];
    if path == Path::Veth {
        rigs.extend([
            ("gate, XDP, open", gate(Hook::Xdp, "")),
            (
                "XDP program, passes all",
                Rig::Program(Hook::Xdp, Answer::Pass),
            ),
            ("xdp-filter", Rig::XdpFilter(Hook::Xdp, OTHER)),
            ("gate, generic XDP, open", gate(Hook::XdpGeneric, "")),
            (
                "generic XDP program, passes all",
                Rig::Program(Hook::XdpGeneric, Answer::Pass),
            ),
        ]);
    }
    rigs.extend([("iptables, conntrack", IPTABLES), ("nft, conntrack", NFT)]);
    rigs.retain(|(name, _)| options.wants(name));
    rigs
}

/// Measures one path.
pub fn measure(options: &Options, path: Path, part: Part) -> Result<Vec<Traffic>> {
    undisturbed();
    match part {
        Part::Iperf3 => by_iperf3(options, path),
        Part::Packets | Part::Thread => {
            let mut all = by_thread(options, path, STREAM)?;
            all.extend(by_thread(options, path, CONNECTIONS)?);
            Ok(all)
        }
    }
}

fn by_thread(options: &Options, path: Path, what: &str) -> Result<Vec<Traffic>> {
    let mut all = Vec::new();
    let mut lanes: Vec<(Lane, Standing)> = Vec::new();
    for (name, rig) in rigs(options, path) {
        let lane = match what {
            CONNECTIONS => Lane::connections(path, at(path, PORT)),
            _ => Lane::stream(path, at(path, PORT), false),
        }?;
        let standing = rig.set_up(lane.topology(), path.interface());
        lanes.push((lane, standing.with_context(|| format!("set up: {name}"))?));
        all.push(Traffic::new(path, what, name, rig));
    }
    sleep(SETTLE);
    for (lane, _) in &lanes {
        lane.turn()?;
    }
    for round in 0..options.rounds.max(1) {
        let mut sums = vec![(0.0, 0.0); lanes.len()];
        for turn in 0..options.turns.max(1) {
            // Another one is first each time.
            let first = (round + turn) as usize % lanes.len();
            for index in (0..lanes.len()).map(|at| (first + at) % lanes.len()) {
                let (done, took) = lanes[index].0.turn()?;
                sums[index].0 += done;
                sums[index].1 += took.as_secs_f64();
            }
        }
        for (traffic, (done, took)) in all.iter_mut().zip(sums) {
            traffic.rate.push(done / took);
            // The thread is the only one that works, so its time is the processor's.
            traffic.cpu.push(match what {
                CONNECTIONS => took / done * 1e6,
                _ => took / (done / 8e9),
            });
        }
    }
    for ((lane, standing), (name, rig)) in lanes.iter().zip(rigs(options, path)) {
        let work = || {
            let (done, _) = lane.turn()?;
            Ok(match what {
                CONNECTIONS => done as u64,
                _ => done as u64 / 8 / MOST,
            })
        };
        prove(
            (lane.topology(), path),
            (standing, rig),
            at(path, OTHER),
            work,
        )
        .with_context(|| format!("{what}, {}: {name}", path.name()))?;
    }
    Ok(all)
}

fn by_iperf3(options: &Options, path: Path) -> Result<Vec<Traffic>> {
    let mut all = Vec::new();
    let mut topologies = Vec::new();
    for (name, rig) in rigs(options, path) {
        topologies.push(Topology::new()?);
        all.push(Traffic::new(path, IPERF3, name, rig));
    }
    let mut lanes = Vec::new();
    for (topology, (name, rig)) in topologies.iter().zip(rigs(options, path)) {
        let iperf3 = Iperf3::start(topology, at(path, PORT))?;
        let standing = rig.set_up(topology, path.interface());
        lanes.push((iperf3, standing.with_context(|| format!("set up: {name}"))?));
    }
    sleep(SETTLE);
    for round in 0..options.rounds.div_ceil(RARER) {
        let first = round as usize % lanes.len();
        for index in (0..lanes.len()).map(|at| (first + at) % lanes.len()) {
            let before = busy()?;
            let rate = lanes[index].0.measure(path.client(), false, SECONDS)?;
            let spent = busy()? - before;
            all[index].rate.push(rate);
            let gigabytes = rate * f64::from(SECONDS) / 8e9;
            all[index].cpu.push(spent / gigabytes);
        }
    }
    let standing = topologies.iter().zip(&lanes);
    for ((topology, (iperf3, standing)), (name, rig)) in standing.zip(rigs(options, path)) {
        let work = || {
            let rate = iperf3.measure(path.client(), false, SECONDS)?;
            Ok((rate * f64::from(SECONDS)) as u64 / 8 / MOST)
        };
        prove((topology, path), (standing, rig), at(path, OTHER), work)
            .with_context(|| format!("{IPERF3}, {}: {name}", path.name()))?;
    }
    Ok(all)
}

impl Traffic {
    fn new(path: Path, what: &str, name: &str, rig: Rig) -> Self {
        Self {
            path: path.name().to_owned(),
            what: what.to_owned(),
            rig: name.to_owned(),
            is_gate: matches!(rig, Rig::Gate { .. }),
            rate: Vec::new(),
            cpu: Vec::new(),
        }
    }
}

fn at(path: Path, port: u16) -> SocketAddr {
    let address: IpAddr = match path {
        Path::Veth => SERVER_V4.into(),
        Path::Loopback => Ipv4Addr::LOCALHOST.into(),
    };
    SocketAddr::new(address, port)
}

/// The seconds that all processors have been busy so far.
fn busy() -> Result<f64> {
    /// Ticks a second of /proc/stat, on every architecture (`USER_HZ`).
    const TICKS: f64 = 100.0;
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .map(|word| word.parse().context("read /proc/stat"))
        .collect::<Result<_>>()?;
    // user nice system idle iowait irq softirq; then what the hypervisor took, which is nobody's here, and
    // what is part of these.
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let all: f64 = ticks.iter().take(7).sum();
    Ok((all - idle) / TICKS)
}
