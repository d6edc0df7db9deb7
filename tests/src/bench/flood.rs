//! A flood of SYNs at a closed gate: what dropping one costs, against what people use today and
//! against programs that do nothing else; and who is served all the same.
//!
//! Each case has a namespace of its own, and all of them stand at once; one thread sends, slice by
//! slice, to one after the other. It is also the thread in which the kernel takes the frames in, so
//! its CPU time is all they cost. Ratios are taken within a round.

mod report;
mod sender;
mod served;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use clap::{Args, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use self::sender::{Frames, Sender, Slice};
pub use self::served::Served;
use super::record::Output;
use super::rig::{Answer, Hook, Rig, Standing, endpoint};
use super::throughput::undisturbed;
use crate::ethertap::{self, EtherTap};
use crate::iperf3::processors;
use crate::text::parse_duration;
use crate::topology::{INTERFACE, Side, Topology};

/// The command line of `gate-lab bench flood`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the flood comes in; can be given more than once
    #[arg(long, value_enum, default_values = ["tap", "veth"])]
    pub device: Vec<Device>,
    /// Only cases whose names contain this; can be given more than once
    #[arg(long, value_name = "TEXT")]
    pub case: Vec<String>,
    /// Rounds; the medians of their ratios count
    #[arg(long, default_value_t = 30)]
    pub rounds: u32,
    /// CPU time that one case gets in one round
    #[arg(long, default_value = "100ms", value_parser = parse_duration)]
    pub slice: Duration,
    /// How long clients connect during a flood; 0s leaves that out
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    pub served: Duration,
    /// Where the figures go
    #[command(flatten)]
    pub output: Output,
}

impl Options {
    fn wants(&self, plan: &Plan) -> bool {
        self.case.is_empty() || self.case.iter().any(|text| plan.name.contains(text))
    }
}

/// A kind of interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// A tap device, whose frames come in as a NIC's do
    Tap,
    /// One end of a cable between namespaces
    Veth,
}

/// What a case is, for those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The sender's own cost: nothing comes in.
    Sender,
    /// A gate by XDP.
    GateXdp,
    /// A gate by TC.
    GateTc,
    /// A program by XDP that drops everything.
    DropXdp,
    /// A program by TC that drops everything.
    DropTc,
    /// nft's input hook.
    NftInput,
    /// Another firewall.
    Firewall,
}

/// What one case came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Where.
    pub device: Device,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether a promise is about it.
    pub is_promised: bool,
    /// Packets that were sent all in all, and those that it says it dropped; none where it does not
    /// count.
    pub counted: Option<(u64, u64)>,
    /// Its slices, one a round.
    pub slices: Vec<Slice>,
}

/// The raw figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flood {
    /// Layout of this.
    pub version: u32,
    /// CPU time of a slice, in ms.
    pub slice_ms: u64,
    /// The cases.
    pub cases: Vec<Case>,
    /// Who was served.
    pub served: Vec<Served>,
}

/// A case, as data.
struct Plan {
    name: &'static str,
    kind: Kind,
    rig: Rig,
    /// Endpoints that the flood goes to: the first of the rig's.
    targets: usize,
    is_promised: bool,
}

/// The device of [`Device::Tap`].
const TAP: &str = "tap0";
/// SYNs that are sent over and over.
const FRAMES: usize = 16_384;
/// Those that fill the table of held SYNs: others, and more than there is room for.
const FILLERS: usize = 8_192;
/// Room for held SYNs.
const HELD: u32 = 4_096;
/// What may come in beside the flood (IPv6 looks for its neighbours): a program counts that, too.
const STRAY: u64 = 16;
/// A gate with as many endpoints as were promised to cost no more.
const MANY: usize = 10_000;

const DROP: &str = "drop bench --for 1h";
const HOLD: &str = "hold bench --for 1h";

/// By a rule in the input hook of nft, as cheap as it can be written.
const NFT_INPUT: Rig = Rig::Nft(
    "table ip flood {
        counter dropped { }
        chain input {
            type filter hook input priority 0;
            tcp dport 8080 tcp flags & (fin|syn|rst|ack) == syn counter name dropped drop
        }
    }",
);
/// By one at a device's ingress, before the IP stack.
const NFT_INGRESS: Rig = Rig::Nft(
    "table netdev flood {
        counter dropped { }
        chain ingress {
            type filter hook ingress device INTERFACE priority 0;
            tcp dport 8080 tcp flags & (fin|syn|rst|ack) == syn counter name dropped drop
        }
    }",
);
/// By iptables.
const IPTABLES: Rig = Rig::Iptables(&["-A INPUT -p tcp -m tcp --dport 8080 --syn -j DROP"]);
/// By iptables as it is mostly written: established connections pass by connection tracking.
const CONNTRACK: Rig = Rig::Iptables(&[
    "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A INPUT -p tcp -m conntrack --ctstate NEW -m tcp --dport 8080 -j DROP",
]);

const fn gate(hook: Hook, endpoints: usize, close: &'static str) -> Rig {
    Rig::Gate {
        hook,
        endpoints,
        held: HELD,
        close,
    }
}

/// The cases of a device.
fn plans(device: Device) -> Vec<Plan> {
    let plan = |name, kind, rig| Plan {
        name,
        kind,
        rig,
        targets: 1,
        is_promised: false,
    };
    let own = |name, kind, hook, endpoints, close| Plan {
        is_promised: close == DROP,
        ..plan(name, kind, gate(hook, endpoints, close))
    };
    let by = |hook| Rig::Program(hook, Answer::Drop);
    let sender = match device {
        Device::Tap => Rig::Nothing,
        // At the sender's end.
        Device::Veth => by(Hook::TcEgress),
    };
    vec![
        plan("the sender's own", Kind::Sender, sender),
        plan("XDP program, drops all", Kind::DropXdp, by(Hook::Xdp)),
        own("gate drop, XDP", Kind::GateXdp, Hook::Xdp, 1, DROP),
        own(
            "gate drop, XDP, 10,000 endpoints",
            Kind::GateXdp,
            Hook::Xdp,
            MANY,
            DROP,
        ),
        plan("TC program, drops all", Kind::DropTc, by(Hook::Tc)),
        own("gate drop, TC", Kind::GateTc, Hook::Tc, 1, DROP),
        own(
            "gate drop, TC, 10,000 endpoints",
            Kind::GateTc,
            Hook::Tc,
            MANY,
            DROP,
        ),
        Plan {
            targets: MANY,
            ..own(
                "the same, SYNs to all of them",
                Kind::GateTc,
                Hook::Tc,
                MANY,
                DROP,
            )
        },
        own("gate hold, TC, table full", Kind::GateTc, Hook::Tc, 1, HOLD),
        plan(
            "xdp-filter",
            Kind::Firewall,
            Rig::XdpFilter(Hook::Xdp, 8_080),
        ),
        plan("nft, netdev ingress", Kind::Firewall, NFT_INGRESS),
        plan("nft, input", Kind::NftInput, NFT_INPUT),
        plan("iptables, INPUT", Kind::Firewall, IPTABLES),
        plan("iptables, INPUT, conntrack", Kind::Firewall, CONNTRACK),
    ]
}

/// A case that stands.
struct Lane {
    plan: Plan,
    device: Device,
    topology: Topology,
    standing: Standing,
    sender: Sender,
    frames: Frames,
    sent: u64,
    before: Option<u64>,
    slices: Vec<Slice>,
}

/// Measures and prints.
pub fn flood(options: &Options) -> Result<()> {
    options.output.publish(&measure(options)?)
}

/// Measures.
pub fn measure(options: &Options) -> Result<Flood> {
    let mut cases = Vec::new();
    for &device in &options.device {
        reach(device)?;
        let mut lanes = Vec::new();
        for plan in plans(device).into_iter().filter(|plan| options.wants(plan)) {
            let name = plan.name;
            lanes.push(Lane::new(device, plan).with_context(|| format!("set up: {name}"))?);
        }
        std::thread::scope(|scope| {
            scope
                .spawn(|| race(&mut lanes, options))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        for lane in lanes {
            cases.push(lane.finish()?);
        }
    }
    let served = match options.served.is_zero() {
        true => Vec::new(),
        false => served::measure(options.served)?,
    };
    Ok(Flood {
        version: 1,
        slice_ms: options.slice.as_millis() as u64,
        cases,
        served,
    })
}

/// All rounds, in a thread of their own, which keeps to one processor. Which case is first changes
/// from round to round.
fn race(lanes: &mut [Lane], options: &Options) -> Result<()> {
    stay()?;
    undisturbed();
    for round in 0..options.rounds.max(1) {
        let first = round as usize % lanes.len().max(1);
        let (before, from) = lanes.split_at_mut(first);
        for lane in from.iter_mut().chain(before) {
            // Once, to warm what the case needs.
            lane.sender.send(&lane.frames)?;
            let slice = lane.sender.slice(&lane.frames, options.slice)?;
            lane.sent += slice.packets + lane.frames.count() as u64;
            lane.slices.push(slice);
        }
    }
    Ok(())
}

/// Keeps the calling thread on one processor.
pub(super) fn stay() -> Result<()> {
    if let Some(&first) = processors()?.first() {
        let mut set = CpuSet::new();
        set.set(first).context("CPU_SET")?;
        sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")?;
    }
    Ok(())
}

impl Lane {
    fn new(device: Device, plan: Plan) -> Result<Self> {
        let topology = Topology::new()?;
        let (interface, sender) = wire(&topology, device, &plan)?;
        let standing = match (device, plan.kind) {
            (Device::Veth, Kind::Sender) => {
                plan.rig.set_up_at(&topology, Side::Client, interface)?
            }
            _ => plan.rig.set_up(&topology, interface)?,
        };
        let targets: Vec<(IpAddr, u16)> = (0..plan.targets).map(target).collect::<Result<_>>()?;
        let mut lane = Self {
            device,
            topology,
            standing,
            sender,
            frames: Frames::syns(FRAMES, 1, &targets),
            sent: 0,
            before: None,
            slices: Vec::new(),
            plan,
        };
        if lane.plan.rig == gate(Hook::Tc, 1, HOLD) {
            lane.sender.send(&Frames::syns(FILLERS, 2, &targets))?;
        }
        lane.check().context("check that the packets are dropped")?;
        lane.before = lane.standing.counted(&lane.topology)?;
        Ok(lane)
    }

    /// Sends every SYN once: none may reach TCP, and the rig must count each.
    fn check(&self) -> Result<()> {
        let _statistics = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?;
        let sent = self.frames.count() as u64;
        let look = || {
            anyhow::Ok((
                segments(&self.topology)?,
                self.standing.counted(&self.topology)?,
            ))
        };
        let (reached, counted) = look()?;
        self.sender.send(&self.frames)?;
        let (now_reached, now_counted) = look()?;
        ensure!(
            now_reached == reached,
            "{} of {sent} SYNs reached TCP",
            now_reached - reached
        );
        if let (Some(before), Some(after)) = (counted, now_counted) {
            let counted = after - before;
            let stray = if self.standing.is_program() { STRAY } else { 0 };
            ensure!(
                (sent..=sent + stray).contains(&counted),
                "{counted} of {sent} SYNs were counted"
            );
        }
        Ok(())
    }

    fn finish(self) -> Result<Case> {
        // A program counts only while it is checked.
        let counted = match (self.plan.rig, self.before) {
            (Rig::Program(..), _) | (_, None) => None,
            (_, Some(before)) => {
                let after = self.standing.counted(&self.topology)?;
                after.map(|after| (self.sent, after - before))
            }
        };
        if let Some((sent, counted)) = counted {
            ensure!(
                sent == counted,
                "{}: {counted} of {sent} SYNs were counted",
                self.plan.name
            );
        }
        Ok(Case {
            device: self.device,
            name: self.plan.name.to_owned(),
            kind: self.plan.kind,
            is_promised: self.plan.is_promised,
            counted,
            slices: self.slices,
        })
    }
}

/// The interface that the flood comes in by, and who sends it.
fn wire(topology: &Topology, device: Device, plan: &Plan) -> Result<(&'static str, Sender)> {
    match device {
        Device::Tap => {
            let is_down = plan.kind == Kind::Sender;
            let tap = topology.run(Side::Server, || {
                let tap = EtherTap::open(TAP, Side::Server.mac())?;
                if !is_down {
                    ethertap::set_up(TAP)?;
                }
                Ok(tap)
            })?;
            Ok((TAP, Sender::Tap { tap, is_down }))
        }
        Device::Veth => {
            let sender = topology.run(Side::Client, || Sender::packet(INTERFACE))?;
            Ok((INTERFACE, sender))
        }
    }
}

fn target(index: usize) -> Result<(IpAddr, u16)> {
    let address: SocketAddr = endpoint(index).parse().context("an endpoint")?;
    Ok((address.ip(), address.port()))
}

/// TCP segments that the server's stack has got.
fn segments(topology: &Topology) -> Result<u64> {
    topology.run(Side::Server, || {
        let path = "/proc/thread-self/net/snmp";
        let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next(), lines.next());
        let pairs = names.zip(values).map(|(names, values)| {
            let mut pairs = names.split(' ').zip(values.split(' '));
            pairs.find(|(name, _)| *name == "InSegs")
        });
        let value = pairs.flatten().context("no InSegs")?.1;
        value.parse().context("read InSegs")
    })
}

/// That SYNs of the flood reach TCP where nothing drops them, or the checks would prove nothing.
fn reach(device: Device) -> Result<()> {
    let plan = Plan {
        name: "nothing",
        kind: Kind::Firewall,
        rig: Rig::Nothing,
        targets: 1,
        is_promised: false,
    };
    let topology = Topology::new()?;
    let (_, sender) = wire(&topology, device, &plan)?;
    let frames = Frames::syns(FRAMES, 1, &[target(0)?]);
    let before = segments(&topology)?;
    sender.send(&frames)?;
    let reached = segments(&topology)? - before;
    ensure!(
        reached == FRAMES as u64,
        "without a rig, {reached} of {FRAMES} SYNs reached TCP over {device:?}"
    );
    Ok(())
}
