//! What a verdict costs with more and more endpoints, by `BPF_PROG_TEST_RUN`. Several endpoints of
//! each gate are asked for in turn: one may lie well in the hash, another not.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use aya::programs::TestRunOptions;
use gate_common::flow::{Address, EndpointKey, GateId, Port};
use gate_common::state::{BootTime, Closed, StateWord};
use gate_userspace::hooks::Slot;
use serde::{Deserialize, Serialize};

use super::Options;
use crate::bench::datapath::run;
use crate::bench::rig::endpoint;
use crate::kernel::{Kernel, Setup};
use crate::packet::{Spec, flags};

/// What one kind of packet cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// The hook.
    pub hook: String,
    /// The packet.
    pub case: String,
    /// Endpoints of the gate.
    pub endpoints: usize,
    /// The cost in each round, in ns, the mean over all endpoints that were asked for.
    pub ns: Vec<f64>,
}

/// Endpoints that are asked for.
const ASKED: usize = 16;
/// The gate.
const GATE: GateId = GateId(1);
/// Another, which is closed; so that an open gate is looked at, too.
const OTHER: GateId = GateId(2);

/// What a kind of packet is, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    Dropped,
    Open,
    Elsewhere,
    Data,
}

const PACKETS: [Packet; 4] = [
    Packet::Dropped,
    Packet::Open,
    Packet::Elsewhere,
    Packet::Data,
];

impl Packet {
    fn name(self) -> &'static str {
        match self {
            Self::Dropped => "SYN to the closed gate, dropped",
            Self::Open => "SYN to the gate, open, another closed",
            Self::Elsewhere => "SYN to a port without a gate",
            Self::Data => "data, the gate closed",
        }
    }
}

/// One of the gates, in the kernel.
struct Lane {
    slot: Slot,
    endpoints: usize,
    packet: Packet,
    kernel: Kernel,
    frames: Vec<Vec<u8>>,
    ns: Vec<f64>,
}

/// All rounds, on a thread of their own: each kernel takes it to a namespace.
pub fn measure(options: &Options) -> Result<Vec<Verdict>> {
    std::thread::scope(|scope| {
        let rounds = scope.spawn(|| rounds(options));
        rounds
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn rounds(options: &Options) -> Result<Vec<Verdict>> {
    let mut lanes = Vec::new();
    for slot in [Slot::Xdp, Slot::TcIngress] {
        for packet in PACKETS {
            for &endpoints in &options.endpoints {
                lanes.push(Lane::new(slot, endpoints, packet)?);
            }
        }
    }
    super::super::flood::stay()?;
    for _ in 0..options.rounds.max(1) {
        for lane in &mut lanes {
            let repeat = options.repeat.div_ceil(lane.frames.len() as u32);
            let mut sum = 0.0;
            for frame in &lane.frames {
                sum += run(&lane.kernel, frame, repeat)?;
            }
            lane.ns.push(sum / lane.frames.len() as f64);
        }
    }
    Ok(lanes.into_iter().map(Lane::finish).collect())
}

impl Lane {
    fn new(slot: Slot, endpoints: usize, packet: Packet) -> Result<Self> {
        let forever = BootTime(u64::MAX);
        let mut setup = Setup {
            armed: true,
            ..Setup::default()
        };
        for index in 0..endpoints {
            setup.endpoints.push((key(index)?, GATE));
        }
        setup.words.push(match packet {
            Packet::Open => (OTHER, StateWord::closed(Closed::Drop, forever)),
            _ => (GATE, StateWord::closed(Closed::Drop, forever)),
        });
        let mut kernel = Kernel::load(slot)?;
        kernel.set(&setup)?;
        let frames: Result<_> = (0..ASKED.min(endpoints))
            .map(|asked| frame(packet, asked * endpoints / ASKED.min(endpoints)))
            .collect();
        let lane = Self {
            slot,
            endpoints,
            packet,
            kernel,
            frames: frames?,
            ns: Vec::new(),
        };
        lane.check()
            .with_context(|| format!("{}, {endpoints} endpoints", packet.name()))?;
        Ok(lane)
    }

    /// Each frame must be dropped, or none.
    fn check(&self) -> Result<()> {
        for frame in &self.frames {
            let result = self.kernel.run(TestRunOptions {
                data_in: Some(frame),
                ..TestRunOptions::new()
            })?;
            let is_dropped = match self.slot {
                Slot::Xdp => result.return_value == 1,
                Slot::TcIngress | Slot::TcEgress => result.return_value == 2,
            };
            ensure!(
                is_dropped == (self.packet == Packet::Dropped),
                "the verdict is {}",
                result.return_value
            );
        }
        Ok(())
    }

    fn finish(self) -> Verdict {
        Verdict {
            hook: self.slot.name().to_owned(),
            case: self.packet.name().to_owned(),
            endpoints: self.endpoints,
            ns: self.ns,
        }
    }
}

fn address(index: usize) -> Result<SocketAddr> {
    endpoint(index).parse().context("an endpoint")
}

fn key(index: usize) -> Result<EndpointKey> {
    let address = address(index)?;
    let SocketAddr::V4(v4) = address else {
        anyhow::bail!("{address} is not IPv4");
    };
    Ok(EndpointKey::new(
        Address::from_v4(v4.ip().octets()),
        Port::new(v4.port()),
    ))
}

fn frame(packet: Packet, index: usize) -> Result<Vec<u8>> {
    let to = address(index)?;
    let spec = Spec {
        destination: to.ip(),
        destination_port: match packet {
            Packet::Elsewhere => 9_090,
            _ => to.port(),
        },
        ..Spec::default()
    };
    Ok(match packet {
        Packet::Data => Spec {
            flags: flags::ACK,
            payload: vec![0; 1_400],
            ..spec
        }
        .build(),
        _ => spec.build(),
    })
}
