//! That a rig does what it is named for: its programs run for the traffic, its rules see it, and what
//! it keeps away is another port's, or nobody's.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use gate_common::abi::{Counter, Direction};
use gate_userspace::hooks::Slot;
use gate_userspace::interfaces::{self, XdpMode};
use gate_userspace::sys;

use crate::bench::path::Path;
use crate::bench::rig::{Hook, Rig, Standing, counted};
use crate::bpf;
use crate::iptables::Iptables;
use crate::topology::{Side, Topology};

/// The most payload that one packet carries as the programs see it, before it is cut for the wire
/// (`GSO_LEGACY_MAX_SIZE` of linux/netdevice.h).
pub const MOST: u64 = 65_536;

/// A new connection that is answered at all is answered by then, and its SYN comes again after a second.
const SOON: Duration = Duration::from_millis(300);

/// Where a program sits, and how.
type At = (Slot, Option<XdpMode>);

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    at: At,
    name: String,
    /// How often it has run while the kernel kept statistics.
    runs: u64,
}

/// Proves it with some traffic: `work` returns how many packets went to the server at the least. What is
/// kept away is the port `closed`.
pub fn prove(
    (topology, path): (&Topology, Path),
    (standing, rig): (&Standing, Rig),
    closed: SocketAddr,
    work: impl FnOnce() -> Result<u64>,
) -> Result<()> {
    let _statistics = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?;
    let before = attached(topology, path.interface())?;
    let accepted = accepts(topology, rig)?;
    let least = work()?;
    judge(
        rig,
        &before,
        &attached(topology, path.interface())?,
        least.max(1),
    )?;
    if let Some((before, after)) = accepted.zip(accepts(topology, rig)?) {
        let seen = after - before;
        ensure!(
            seen >= least,
            "its rule accepted {seen} of {least} packets or more"
        );
    }
    if tracks(rig) {
        let entries = topology.read_sysctl(Side::Server, "net.netfilter.nf_conntrack_count")?;
        ensure!(entries != "0", "no connection is tracked");
    }
    let before = kept(topology, standing, rig)?;
    ensure!(before == 0, "it kept {before} packets of the traffic");
    let is_refused = topology.run(path.client(), || is_refused(closed))?;
    let kept = kept(topology, standing, rig)?;
    match (closes(rig), is_refused) {
        (true, false) => ensure!(
            kept > 0,
            "a SYN for {closed} is gone, and it did not count it"
        ),
        (false, true) => ensure!(kept == 0, "it kept {kept} packets, and nothing is closed"),
        (true, true) => bail!("{closed} is to be closed, and a SYN got there"),
        (false, false) => bail!("a SYN for {closed} is gone, and nothing is closed"),
    }
    Ok(())
}

/// Whether the programs are those of the rig, and ran for so many packets that came in.
fn judge(rig: Rig, before: &[Attached], after: &[Attached], least: u64) -> Result<()> {
    let at: Vec<At> = after.iter().map(|program| program.at).collect();
    let due = places(rig);
    ensure!(at == due, "there are programs at {at:?}, not {due:?}");
    for (program, earlier) in after.iter().zip(before) {
        let runs = program.runs - earlier.runs;
        // What goes out is less: the answers.
        let least = match program.at.0 {
            Slot::Xdp | Slot::TcIngress => least,
            Slot::TcEgress => 1,
        };
        ensure!(
            runs >= least,
            "{} ran {runs} times, for {least} packets or more",
            program.name
        );
        let is_gates = program.name.starts_with("gate_");
        ensure!(
            is_gates == matches!(rig, Rig::Gate { .. }),
            "{} is another's",
            program.name
        );
    }
    Ok(())
}

/// Where the programs of a rig belong.
fn places(rig: Rig) -> Vec<At> {
    let (Rig::Gate { hook, .. } | Rig::Program(hook, _) | Rig::XdpFilter(hook, _)) = rig else {
        return Vec::new();
    };
    match hook {
        Hook::Xdp => vec![(Slot::Xdp, Some(XdpMode::Native))],
        Hook::XdpGeneric => vec![(Slot::Xdp, Some(XdpMode::Generic))],
        Hook::Tc => vec![(Slot::TcIngress, None)],
        Hook::TcBoth => vec![(Slot::TcIngress, None), (Slot::TcEgress, None)],
        Hook::TcEgress => vec![(Slot::TcEgress, None)],
    }
}

/// The programs on an interface of the server's.
fn attached(topology: &Topology, interface: &str) -> Result<Vec<Attached>> {
    topology.run(Side::Server, || {
        let all = interfaces::list()?;
        let interface = interfaces::named(&all, interface)?;
        let mut ids = Vec::new();
        ids.extend(
            interface
                .xdp
                .map(|(mode, id)| ((Slot::Xdp, Some(mode)), id)),
        );
        for (slot, direction) in [
            (Slot::TcIngress, Direction::Ingress),
            (Slot::TcEgress, Direction::Egress),
        ] {
            let programs = sys::tcx_programs(interface.index, direction).context("ask TCX")?;
            ids.extend(programs.into_iter().flatten().map(|id| ((slot, None), id)));
        }
        ids.into_iter().map(|(at, id)| program(at, id)).collect()
    })
}

fn program(at: At, id: u32) -> Result<Attached> {
    let program = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .with_context(|| format!("program {id} is gone"))?;
    Ok(Attached {
        at,
        name: program.name_as_str().unwrap_or_default().to_owned(),
        runs: bpf::runs(program.fd()?.as_fd()).context("ask how often a program ran")?,
    })
}

/// The packets that rules let through, where rules count them.
fn accepts(topology: &Topology, rig: Rig) -> Result<Option<u64>> {
    match rig {
        Rig::Iptables(_) => Iptables::packets(topology, Side::Server, "INPUT", "ACCEPT").map(Some),
        // A counter there would be a cost that the rules don't have.
        Rig::Nft(_) | Rig::Nothing | Rig::Gate { .. } | Rig::Program(..) | Rig::XdpFilter(..) => {
            Ok(None)
        }
    }
}

/// Whether it has the kernel track connections.
fn tracks(rig: Rig) -> bool {
    match rig {
        Rig::Iptables(_) | Rig::Nft(_) => true,
        Rig::Nothing | Rig::Gate { .. } | Rig::Program(..) | Rig::XdpFilter(..) => false,
    }
}

/// Whether it keeps away what is for the closed port.
fn closes(rig: Rig) -> bool {
    match rig {
        Rig::Gate { close, .. } => !close.is_empty(),
        Rig::Iptables(_) | Rig::Nft(_) | Rig::XdpFilter(..) => true,
        Rig::Nothing | Rig::Program(..) => false,
    }
}

/// The packets that it has kept away, by its own count.
fn kept(topology: &Topology, standing: &Standing, rig: Rig) -> Result<u64> {
    match rig {
        // It counts what it lets through.
        Rig::Nothing | Rig::Program(..) => Ok(0),
        Rig::Gate { .. } => topology.run(Side::Server, || {
            counted(&[Counter::Held, Counter::Dropped, Counter::Overflowed])
        }),
        Rig::Iptables(_) | Rig::Nft(_) | Rig::XdpFilter(..) => {
            Ok(standing.counted(topology)?.unwrap_or(0))
        }
    }
}

/// Whether a new connection is refused at once: nobody listens there, and nothing keeps it away.
fn is_refused(target: SocketAddr) -> Result<bool> {
    match TcpStream::connect_timeout(&target, SOON) {
        Ok(_) => bail!("somebody listens on {target}"),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Ok(true),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(false),
            _ => Err(error).with_context(|| format!("connect to {target}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rig::Answer;

    const RIG: Rig = Rig::Program(Hook::TcBoth, Answer::Pass);

    fn programs(runs: [u64; 2]) -> Vec<Attached> {
        let one = |(at, runs): (At, u64)| Attached {
            at,
            name: "baseline".to_owned(),
            runs,
        };
        places(RIG).into_iter().zip(runs).map(one).collect()
    }

    #[test]
    fn a_program_must_run_for_every_packet() {
        let before = programs([5, 5]);
        judge(RIG, &before, &programs([15, 6]), 10).unwrap();
        for (runs, least) in [([14, 6], 10), ([15, 5], 10), ([5, 5], 1)] {
            let error = judge(RIG, &before, &programs(runs), least).unwrap_err();
            assert!(error.to_string().starts_with("baseline ran"), "{error}");
        }
    }

    #[test]
    fn programs_must_be_where_they_belong_and_whose_they_are() {
        let (before, after) = (programs([0, 0]), programs([9, 9]));
        judge(RIG, &before[..1], &after[..1], 1).unwrap_err();
        judge(Rig::Nothing, &before, &after, 1).unwrap_err();
        judge(Rig::Nothing, &[], &[], 1).unwrap();
        let gate = Rig::Gate {
            hook: Hook::TcBoth,
            endpoints: 0,
            held: 1,
            close: "",
        };
        let error = judge(gate, &before, &after, 1).unwrap_err();
        assert_eq!(error.to_string(), "baseline is another's");
    }
}
