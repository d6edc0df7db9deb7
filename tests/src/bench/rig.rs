//! What people put in front of a port, as data: how it is set up, and what it counted. A topology
//! has one; it goes with the topology.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use gate_common::abi::{Counter, Direction};
use gate_userspace::hooks::Slot;
use gate_userspace::pins::Pins;
use gate_userspace::status;

use super::baseline::Baseline;
use crate::iptables::Iptables;
use crate::topology::{Side, Topology};
use crate::{nft, xdp_filter};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP in the driver.
    Xdp,
    /// XDP in the stack.
    XdpGeneric,
    /// TC, what comes in.
    Tc,
    /// TC, both ways.
    TcBoth,
    /// TC, what goes out.
    TcEgress,
}

/// What a program of two instructions does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It passes every packet.
    Pass,
    /// It drops every packet.
    Drop,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rig {
    /// Nothing.
    Nothing,
    /// `gate up`, a gate with the name [`GATE`] of so many endpoints, and the command that closes
    /// one, if any does.
    Gate {
        /// Where.
        hook: Hook,
        /// How many endpoints the gate has, [`ENDPOINT`] among them; without any there is no gate.
        endpoints: usize,
        /// Room for held SYNs.
        held: u32,
        /// The command's words.
        close: &'static str,
    },
    /// A program of two instructions.
    Program(Hook, Answer),
    /// Rules in nft's language, in which `INTERFACE` stands for the interface. What they drop is
    /// counted by the counter `dropped`.
    Nft(&'static str),
    /// Rules in iptables' words.
    Iptables(&'static [&'static str]),
    /// xdp-filter, which drops this port.
    XdpFilter(Hook, u16),
}

/// The gate of [`Rig::Gate`].
pub const GATE: &str = "bench";
/// The endpoint that the gate's packets go to.
pub const ENDPOINT: &str = "10.0.0.5:8080";

/// A rig that stands.
pub struct Standing {
    rig: Rig,
    program: Option<Baseline>,
    _links: Vec<OwnedFd>,
}

impl Rig {
    /// Sets it up at an interface of the server's.
    pub fn set_up(self, topology: &Topology, interface: &str) -> Result<Standing> {
        self.set_up_at(topology, Side::Server, interface)
    }

    /// As [`set_up`](Self::set_up); a program or rules of nft also at the client.
    pub fn set_up_at(self, topology: &Topology, side: Side, interface: &str) -> Result<Standing> {
        let mut standing = Standing {
            rig: self,
            program: None,
            _links: Vec::new(),
        };
        match self {
            Self::Nothing => {}
            Self::Gate {
                hook,
                endpoints,
                held,
                close,
            } => gate(topology, interface, (hook, endpoints, held, close))?,
            Self::Program(hook, answer) => {
                let (program, links) = program((topology, side), interface, hook, answer)?;
                standing.program = Some(program);
                standing._links = links;
            }
            Self::Nft(rules) => {
                let rules = rules.replace("INTERFACE", interface);
                nft::load(topology, side, &rules)?;
            }
            Self::Iptables(rules) => {
                Iptables::add(topology, Side::Server, rules)?;
            }
            Self::XdpFilter(hook, port) => {
                xdp_filter::drop_port(topology, interface, hook == Hook::XdpGeneric, port)?;
            }
        }
        Ok(standing)
    }
}

impl Standing {
    /// The packets that it has dropped, as far as it says; none where it does not count. For a
    /// program, its runs while the kernel kept statistics.
    pub fn counted(&self, topology: &Topology) -> Result<Option<u64>> {
        Ok(match self.rig {
            Rig::Nothing => None,
            // Of what they hold they keep a copy.
            Rig::Gate { .. } => Some(topology.run(Side::Server, || {
                counted(&[Counter::Dropped, Counter::Overflowed])
            })?),
            Rig::Program(..) => self.program.as_ref().map(Baseline::runs).transpose()?,
            Rig::Nft(_) => {
                let counters = nft::counters(topology, Side::Server)?;
                Some(*counters.get("dropped").context("no counter")?)
            }
            Rig::Iptables(_) => Some(Iptables::packets(topology, Side::Server, "INPUT", "DROP")?),
            Rig::XdpFilter(_, port) => Some(xdp_filter::dropped(topology, port)?),
        })
    }
}

impl Standing {
    /// Whether it is a program that counts nothing by itself.
    pub fn is_program(&self) -> bool {
        matches!(self.rig, Rig::Program(..))
    }

    /// Lets through what it dropped: the gate opens, the firewall has no rules any more. What knows
    /// nothing but to drop stays.
    pub fn let_go(&self, topology: &Topology) -> Result<()> {
        match self.rig {
            Rig::Nothing | Rig::Program(..) | Rig::XdpFilter(..) => Ok(()),
            Rig::Gate { .. } => topology.gate(["open", GATE])?.ok().map(drop),
            Rig::Nft(_) => nft::load(topology, Side::Server, "flush ruleset"),
            Rig::Iptables(_) => Iptables::add(topology, Side::Server, &["-F INPUT"]).map(drop),
        }
    }
}

/// What these counters of all gates of the calling thread's network namespace come to.
pub fn counted(counters: &[Counter]) -> Result<u64> {
    let status = status::read(&Pins::here()?)?.context("gate is not up")?;
    let of = |counter: &Counter| -> u64 {
        let gates = status.gates.iter();
        gates.map(|gate| gate.stats.counts[*counter as usize]).sum()
    };
    Ok(counters.iter().map(of).sum())
}

fn gate(
    topology: &Topology,
    interface: &str,
    (hook, endpoints, held, close): (Hook, usize, u32, &str),
) -> Result<()> {
    let hook = match hook {
        Hook::Xdp => "xdp",
        Hook::XdpGeneric => "xdp-generic",
        Hook::Tc => "tc-ingress",
        Hook::TcBoth => "tc",
        Hook::TcEgress => "tc-egress",
    };
    let held = held.to_string();
    let up = ["up", "--hook", hook, "--held", &held, interface];
    topology.gate(up)?.ok()?;
    if endpoints > 0 {
        let define = ["define", GATE].map(str::to_owned).into_iter();
        let all = define.chain((0..endpoints).map(endpoint));
        topology.gate(all)?.ok()?;
    }
    if !close.is_empty() {
        topology.gate(close.split(' '))?.ok()?;
    }
    Ok(())
}

/// The endpoints of a gate with many: first [`ENDPOINT`], then 100 ports each of as many addresses
/// as it takes.
pub fn endpoint(index: usize) -> String {
    match index {
        0 => ENDPOINT.to_owned(),
        _ => {
            let mut text = String::new();
            let (address, port) = (index / 100, 8_000 + index % 100);
            // A string takes it.
            let _ = write!(text, "10.1.{}.{}:{port}", address / 250, 1 + address % 250);
            text
        }
    }
}

fn program(
    (topology, side): (&Topology, Side),
    interface: &str,
    hook: Hook,
    answer: Answer,
) -> Result<(Baseline, Vec<OwnedFd>)> {
    let slot = match hook {
        Hook::Xdp | Hook::XdpGeneric => Slot::Xdp,
        Hook::Tc | Hook::TcBoth => Slot::TcIngress,
        Hook::TcEgress => Slot::TcEgress,
    };
    let program = match answer {
        Answer::Pass => Baseline::load(slot)?,
        Answer::Drop => Baseline::dropping(slot)?,
    };
    let links = topology.run(side, || attach(&program, interface, hook))?;
    Ok((program, links))
}

/// Attaches a program of two instructions to an interface of the calling thread's network
/// namespace, until what is returned is dropped.
pub fn attach(program: &Baseline, interface: &str, hook: Hook) -> Result<Vec<OwnedFd>> {
    let directions: &[Direction] = match hook {
        Hook::Xdp => return Ok(vec![program.attach_xdp(interface, false)?]),
        Hook::XdpGeneric => return Ok(vec![program.attach_xdp(interface, true)?]),
        Hook::Tc => &[Direction::Ingress],
        Hook::TcBoth => &[Direction::Ingress, Direction::Egress],
        Hook::TcEgress => &[Direction::Egress],
    };
    let mut links = Vec::new();
    for direction in directions {
        links.extend(program.attach(interface, *direction)?);
    }
    ensure!(
        links.len() == directions.len(),
        "the kernel has no TCX (Linux 6.6), which this benchmark needs"
    );
    Ok(links)
}
