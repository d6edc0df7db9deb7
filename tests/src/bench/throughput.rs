//! What a gate leaves of a connection's throughput, and of new connections a second.
//!
//! By iperf3: a round measures without a gate, with one, with one, and without again, so what a
//! machine gains or loses evenly over a round is on both sides of a ratio; the two with a gate
//! (all open; another endpoint's closed, so that each packet is looked at) take turns in going
//! first. And by one thread that has both ends, see `single`, whose figures are finer on a
//! machine that is busy with other things. How a run without a gate compares with another tells
//! what a ratio is worth.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use gate_common::abi::Direction;
use gate_userspace::hooks::Slot;
use serde_json::{Value, json};

use super::baseline::Baseline;
use super::path::Path;
use super::single::{Lane, race};
use super::spread::Spread;
use crate::iperf3::Iperf3;
use crate::topology::{SERVER_V4, SERVER_V6, Side, Topology};

/// The command line of `gate-lab bench throughput`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the traffic goes; can be given more than once
    #[arg(long, value_enum, default_values = ["loopback", "veth"])]
    pub path: Vec<Path>,
    /// What to measure; can be given more than once
    #[arg(long, value_enum, default_values = ["in", "out", "connections"])]
    pub what: Vec<What>,
    /// Where gate attaches, as for `gate up`
    #[arg(long, default_value = "auto")]
    pub hook: String,
    /// Over IPv6
    #[arg(long)]
    pub ipv6: bool,
    /// Rounds; the median of their ratios counts
    #[arg(long, default_value_t = 16)]
    pub rounds: u32,
    /// How; can be given more than once
    #[arg(long, value_enum, default_values = ["iperf3", "thread"])]
    pub by: Vec<By>,
    /// How long iperf3 measures, in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// How many times 10 ms the thread measures on either side of a ratio
    #[arg(long, default_value_t = 12)]
    pub turns: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// By iperf3; not the connections
    Iperf3,
    /// By one thread that has both ends
    Thread,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Bytes to the end that has the gate
    In,
    /// Bytes from the end that has the gate; on loopback there is no such difference
    Out,
    /// New connections, one after the other
    Connections,
}

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    None,
    Passing,
    Open,
    OtherClosed,
}

/// An endpoint that nobody connects to.
const OTHER: &str = "*:9999";
/// Longer than one measurement.
const LEASE: &str = "2h";
/// The port that iperf3 and the connections are for.
const PORT: u16 = 5201;
/// From an attachment to the measurement: what the kernel clears up later is done by then.
const SETTLE: Duration = Duration::from_millis(100);

/// The figures of one measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where.
    pub path: Path,
    /// What.
    pub what: What,
    /// How.
    pub by: By,
    /// Bits or connections a second without a gate, the median.
    pub without: f64,
    /// Without a gate against without a gate.
    pub control: Vec<f64>,
    /// With a program that only passes, on the hooks that a gate has there, against without a gate;
    /// not by iperf3, and not where the kernel has no TCX.
    pub passing: Vec<f64>,
    /// With every gate open against without a gate.
    pub open: Vec<f64>,
    /// With another endpoint's gate closed against without a gate.
    pub closed: Vec<f64>,
}

/// What one round of iperf3 gave.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Round {
    before: f64,
    open: f64,
    closed: f64,
    after: f64,
}

impl Round {
    fn without(self) -> f64 {
        f64::midpoint(self.before, self.after)
    }
}

/// Measures and prints.
pub fn throughput(options: &Options) -> Result<()> {
    undisturbed();
    let mut rows = Vec::new();
    if !options.json {
        println!("{:<34}{:>7}   {:<16}promised", "", "ratio", "middle half");
    }
    for &path in &options.path {
        for &what in &options.what {
            for &by in &options.by {
                // What goes out over loopback comes in there; iperf3 makes one connection.
                if (path, what) == (Path::Loopback, What::Out)
                    || (by, what) == (By::Iperf3, What::Connections)
                {
                    continue;
                }
                let row = measure(options, path, what, by)?;
                if !options.json {
                    print(&row);
                }
                rows.push(row);
            }
        }
    }
    if options.json {
        let all = json!({
            "version": 1,
            "hook": options.hook,
            "ipv6": options.ipv6,
            "rounds": options.rounds,
            "rows": rows.iter().map(to_json).collect::<Vec<_>>(),
        });
        println!("{all}");
    } else {
        println!(
            "medians and middle halves of {} rounds, all in this run",
            options.rounds
        );
    }
    Ok(())
}

/// Puts this thread, and all that it starts from now on, before whatever has no real-time
/// priority, and so before what else the machine is busy with. Where that is not allowed, figures
/// are less steady and no less right.
pub(super) fn undisturbed() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters are valid and live through the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
}

/// All rounds of one measurement, in topologies of its own.
pub fn measure(options: &Options, path: Path, what: What, by: By) -> Result<Row> {
    match by {
        By::Iperf3 => by_iperf3(options, path, what),
        By::Thread => by_thread(options, path, what),
    }
}

fn by_iperf3(options: &Options, path: Path, what: What) -> Result<Row> {
    let topology = Topology::new()?;
    let iperf3 = Iperf3::start(&topology, target(path, options.ipv6))?;
    let once = |gate| {
        arrange(&topology, path, &options.hook, gate)?;
        iperf3.measure(path.client(), what == What::Out, options.seconds)
    };
    // The first of all warms up what later ones find warm.
    once(Gate::None)?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds.max(1) {
        let before = once(Gate::None)?;
        let (open, closed) = if round % 2 == 0 {
            let open = once(Gate::Open)?;
            (open, once(Gate::OtherClosed)?)
        } else {
            let closed = once(Gate::OtherClosed)?;
            (once(Gate::Open)?, closed)
        };
        let after = once(Gate::None)?;
        rounds.push(Round {
            before,
            open,
            closed,
            after,
        });
    }
    Ok(sum_up(path, what, &rounds))
}

fn sum_up(path: Path, what: What, rounds: &[Round]) -> Row {
    let each = |f: fn(&Round) -> f64| rounds.iter().map(f).collect::<Vec<_>>();
    Row {
        path,
        what,
        by: By::Iperf3,
        without: Spread::of(&each(|round| round.without())).median,
        control: each(|round| round.after / round.before),
        passing: Vec::new(),
        open: each(|round| round.open / round.without()),
        closed: each(|round| round.closed / round.without()),
    }
}

fn by_thread(options: &Options, path: Path, what: What) -> Result<Row> {
    let lane = || {
        let target = target(path, options.ipv6);
        match what {
            What::Connections => Lane::connections(path, target),
            What::In | What::Out => Lane::stream(path, target, what == What::Out),
        }
    };
    let lanes = [lane()?, lane()?];
    race(&lanes[0], &lanes[1], options.turns)?;
    let passing = Baseline::load(Slot::TcIngress)?;
    let has_tcx = !attach(lanes[0].topology(), path, &passing)?.is_empty();
    let mut without = Vec::new();
    let mut ratio = |gate| {
        let mut product = 1.0_f64;
        for [one, other] in [[0, 1], [1, 0]].map(|order| order.map(|index| &lanes[index])) {
            arrange(other.topology(), path, &options.hook, Gate::None)?;
            arrange(one.topology(), path, &options.hook, gate)?;
            let _attached = match gate {
                Gate::Passing => attach(one.topology(), path, &passing)?,
                Gate::None | Gate::Open | Gate::OtherClosed => Vec::new(),
            };
            let (with, plain) = race(one, other, options.turns)?;
            without.push(plain);
            product *= with / plain;
        }
        anyhow::Ok(product.sqrt())
    };
    let mut row = Row {
        path,
        what,
        by: By::Thread,
        without: f64::NAN,
        control: Vec::new(),
        passing: Vec::new(),
        open: Vec::new(),
        closed: Vec::new(),
    };
    for _ in 0..options.rounds.max(1) {
        row.control.push(ratio(Gate::None)?);
        if has_tcx {
            row.passing.push(ratio(Gate::Passing)?);
        }
        row.open.push(ratio(Gate::Open)?);
        row.closed.push(ratio(Gate::OtherClosed)?);
    }
    row.without = Spread::of(&without).median;
    Ok(row)
}

/// Attaches a program where `gate up` attaches its own, as long as what is returned lives.
fn attach(topology: &Topology, path: Path, program: &Baseline) -> Result<Vec<OwnedFd>> {
    let directions: &[Direction] = match path {
        Path::Veth => &[Direction::Ingress, Direction::Egress],
        Path::Loopback => &[Direction::Ingress],
    };
    topology.run(Side::Server, || {
        let links: Result<Vec<_>> = directions
            .iter()
            .map(|direction| program.attach(path.interface(), *direction))
            .collect();
        Ok(links?.into_iter().flatten().collect())
    })
}

/// Attaches afresh, or detaches, and closes what is to be closed.
fn arrange(topology: &Topology, path: Path, hook: &str, gate: Gate) -> Result<()> {
    topology.gate(["down"])?.ok()?;
    if matches!(gate, Gate::Open | Gate::OtherClosed) {
        topology
            .gate(["up", "--hook", hook, path.interface()])?
            .ok()?;
    }
    if gate == Gate::OtherClosed {
        topology.gate(["hold", OTHER, "--for", LEASE])?.ok()?;
    }
    sleep(SETTLE);
    Ok(())
}

fn target(path: Path, ipv6: bool) -> SocketAddr {
    let address: IpAddr = match (path, ipv6) {
        (Path::Veth, false) => SERVER_V4.into(),
        (Path::Veth, true) => SERVER_V6.into(),
        (Path::Loopback, false) => Ipv4Addr::LOCALHOST.into(),
        (Path::Loopback, true) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(address, PORT)
}

impl Gate {
    /// The least ratio that was promised: of what iperf3 gets through. The thread does nothing else
    /// than cause packets, so there even a program that only passes can cost more than that.
    fn promise(self, by: By) -> Option<f64> {
        match (by, self) {
            (By::Iperf3, Self::Open) => Some(0.99),
            (By::Iperf3, Self::OtherClosed) => Some(0.98),
            (By::Thread, _) | (_, Self::None | Self::Passing) => None,
        }
    }
}

impl Row {
    fn parts(&self) -> [(Gate, &'static str, &[f64]); 4] {
        [
            (Gate::None, "no gate either", &self.control),
            (Gate::Passing, "a program that only passes", &self.passing),
            (Gate::Open, "every gate open", &self.open),
            (Gate::OtherClosed, "another gate closed", &self.closed),
        ]
    }
}

fn print(row: &Row) {
    let name = match (row.path, row.what) {
        (Path::Loopback, What::In | What::Out) => "loopback",
        (Path::Veth, What::In) => "veth, gate at the receiver",
        (Path::Veth, What::Out) => "veth, gate at the sender",
        (Path::Loopback, What::Connections) => "loopback, connections",
        (Path::Veth, What::Connections) => "veth, connections",
    };
    let by = match row.by {
        By::Iperf3 => "iperf3",
        By::Thread => "one thread",
    };
    let without = match row.what {
        What::In | What::Out => format!("{:.1} Gbit/s", row.without / 1e9),
        What::Connections => format!("{:.0} /s", row.without),
    };
    println!("{name}, {by}: {without}");
    for (gate, words, ratios) in row.parts() {
        if ratios.is_empty() {
            continue;
        }
        let spread = Spread::of(ratios);
        let half = format!("{:.3} to {:.3}", spread.low, spread.high);
        let promise = gate
            .promise(row.by)
            .map_or_else(|| "-".to_owned(), |least| format!(">= {least}"));
        println!("  {words:<32}{:>7.3}   {half:<16}{promise}", spread.median);
    }
}

fn to_json(row: &Row) -> Value {
    let cases: Vec<_> = row
        .parts()
        .into_iter()
        .filter(|(_, _, ratios)| !ratios.is_empty())
        .map(|(gate, words, ratios)| {
            json!({
                "case": words,
                "ratio": Spread::of(ratios).to_json(),
                "ratios": ratios,
                "promised": gate.promise(row.by),
            })
        })
        .collect();
    let what = match row.what {
        What::In => "in",
        What::Out => "out",
        What::Connections => "connections",
    };
    let by = match row.by {
        By::Iperf3 => "iperf3",
        By::Thread => "thread",
    };
    json!({
        "path": row.path.name(),
        "what": what,
        "by": by,
        "without_per_second": row.without,
        "cases": cases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_drift_is_no_difference() {
        let round = Round {
            before: 90.0,
            open: 97.0,
            closed: 98.0,
            after: 110.0,
        };
        let row = sum_up(Path::Veth, What::In, &[round, round]);
        assert_eq!(row.without, 100.0);
        assert_eq!(row.open, [0.97, 0.97]);
        assert_eq!(row.closed, [0.98, 0.98]);
        assert!(row.control.iter().all(|ratio| *ratio > 1.2));
    }

    #[test]
    fn only_what_iperf3_measures_has_a_promise() {
        assert_eq!(Gate::Open.promise(By::Iperf3), Some(0.99));
        assert_eq!(Gate::OtherClosed.promise(By::Iperf3), Some(0.98));
        assert_eq!(Gate::None.promise(By::Iperf3), None);
        assert_eq!(Gate::Open.promise(By::Thread), None);
    }
}
