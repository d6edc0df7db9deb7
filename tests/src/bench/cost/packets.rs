//! What a packet costs in each program, by `BPF_PROG_TEST_RUN`, against a program of two instructions
//! and against xdp-filter.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use gate_common::state::Closed;
use gate_userspace::hooks::Slot;
use gate_userspace::interfaces;
use serde::{Deserialize, Serialize};

use super::Options;
use crate::bench::baseline::Baseline;
use crate::bench::datapath::{gates, run};
use crate::bench::flood::stay;
use crate::bpf;
use crate::kernel::{Kernel, Setup};
use crate::packet::{Spec, flags};
use crate::topology::{INTERFACE, Side, Topology};
use crate::xdp_filter;

/// What one program made of one kind of packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Packets {
    /// The hook.
    pub hook: String,
    /// The program, and what is closed.
    pub program: String,
    /// The packet.
    pub packet: String,
    /// The cost in each round, in ns.
    pub ns: Vec<f64>,
}

/// What answers.
enum Program {
    Baseline(Baseline),
    Gate(Kernel),
    Foreign(OwnedFd),
}

/// The name of the program of two instructions.
pub const EMPTY: &str = "a program that only passes";

/// The slots, and xdp-filter for the first.
const SLOTS: [Slot; 3] = [Slot::Xdp, Slot::TcIngress, Slot::TcEgress];

/// All rounds, on a thread of their own: each kernel takes it to a namespace.
pub fn measure(options: &Options) -> Result<Vec<Packets>> {
    let topology = Topology::new()?;
    let filter = filter(&topology)?;
    std::thread::scope(|scope| {
        let rounds = scope.spawn(|| rounds(options, filter));
        rounds
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn rounds(options: &Options, filter: OwnedFd) -> Result<Vec<Packets>> {
    let data = Spec {
        flags: flags::ACK,
        payload: vec![0; 1_400],
        ..Spec::default()
    };
    let kinds = [("data", data.build()), ("SYN", Spec::default().build())];
    let mut programs = vec![(
        Slot::Xdp,
        "xdp-filter, another port dropped",
        Program::Foreign(filter),
    )];
    for slot in SLOTS {
        programs.push((slot, EMPTY, Program::Baseline(Baseline::load(slot)?)));
        let gate = |setup: Setup| {
            let mut kernel = Kernel::load(slot)?;
            kernel.set(&setup)?;
            anyhow::Ok(Program::Gate(kernel))
        };
        let open = Setup {
            armed: false,
            ..gates(None, None)
        };
        programs.push((slot, "gate, open", gate(open)?));
        let other = gates(Some((9_999, Closed::Hold)), None);
        programs.push((slot, "gate, open, another closed", gate(other)?));
    }
    stay()?;
    let mut all = Vec::new();
    for (slot, program, _) in &programs {
        for (packet, _) in &kinds {
            all.push(Packets {
                hook: slot.name().to_owned(),
                program: (*program).to_owned(),
                packet: (*packet).to_owned(),
                ns: Vec::new(),
            });
        }
    }
    for _ in 0..options.rounds.max(1) {
        let each = programs
            .iter()
            .flat_map(|(_, _, program)| kinds.iter().map(move |(_, frame)| (program, frame)));
        for ((program, frame), packets) in each.zip(&mut all) {
            packets.ns.push(program.run(frame, options.repeat)?);
        }
    }
    Ok(all)
}

impl Program {
    fn run(&self, frame: &[u8], repeat: u32) -> Result<f64> {
        match self {
            Self::Baseline(program) => program.run(frame, repeat),
            Self::Gate(kernel) => run(kernel, frame, repeat),
            Self::Foreign(program) => {
                /// Of `enum xdp_action` of linux/bpf.h.
                const PASS: u32 = 2;
                let ran = bpf::timed(program.as_fd(), frame, repeat)
                    .context("BPF_PROG_TEST_RUN of xdp-filter")?;
                anyhow::ensure!(ran.answer == PASS, "xdp-filter answered {}", ran.answer);
                Ok(ran.nanoseconds)
            }
        }
    }
}

/// What xdp-filter attaches: it loads its program itself.
fn filter(topology: &Topology) -> Result<OwnedFd> {
    xdp_filter::drop_port(topology, INTERFACE, false, 9_999)?;
    let interfaces = topology.run(Side::Server, || Ok(interfaces::list()?))?;
    let (_, id) = interfaces
        .into_iter()
        .find(|interface| interface.name == INTERFACE)
        .and_then(|interface| interface.xdp)
        .context("xdp-filter attached nothing")?;
    let program = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .context("xdp-filter's program is gone")?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}
