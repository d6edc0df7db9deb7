//! What the data path costs a packet, against a program that only passes.
//!
//! All cases are measured in turn, round after round, in one process, so that whatever else the
//! machine does meets all of them; the difference is taken within a round. The kernel reports
//! whole nanoseconds, so the mean of the middle half of the rounds counts, which shows tenths.

use anyhow::Result;
use aya::programs::TestRunOptions;
use clap::{Args, ValueEnum};
use gate_common::abi::Guard;
use gate_common::flow::{Address, EndpointKey, GateId, Port};
use gate_common::state::{BootTime, Closed, StateWord};
use gate_userspace::hooks::Slot;
use serde_json::json;

use std::net::SocketAddr;

use super::baseline::Baseline;
use crate::kernel::{Kernel, Setup};
use crate::packet::{Spec, flags};
use crate::topology::{CLIENT_V6, SERVER_V6};

/// The command line of `gate-lab bench datapath`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The program to measure
    #[arg(long, value_enum, default_value_t = Hook::Xdp)]
    pub hook: Hook,
    /// Packets in one measurement
    #[arg(long, default_value_t = 1_000_000)]
    pub repeat: u32,
    /// Measurements of each case
    #[arg(long, default_value_t = 15)]
    pub rounds: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// One of the data path's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    /// What looks at packets in the NIC's driver
    Xdp,
    /// What looks at packets that come in
    TcIngress,
    /// What looks at packets that go out
    TcEgress,
}

impl From<Hook> for Slot {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Xdp => Self::Xdp,
            Hook::TcIngress => Self::TcIngress,
            Hook::TcEgress => Self::TcEgress,
        }
    }
}

/// One thing to measure.
struct Case {
    name: &'static str,
    /// The most that it may cost above the baseline, in ns; none where nothing was promised.
    promise: Option<f64>,
    kernel: Kernel,
    frame: Vec<u8>,
}

/// What one case came to, in ns.
struct Row {
    name: &'static str,
    promise: Option<f64>,
    cost: f64,
    above: f64,
    ratio: f64,
}

/// Measures and prints.
pub fn datapath(options: &Options) -> Result<()> {
    let slot = Slot::from(options.hook);
    let data = Spec {
        flags: flags::ACK,
        payload: vec![0; 1_400],
        ..Spec::default()
    }
    .build();
    let data_v6 = Spec {
        source: CLIENT_V6.into(),
        destination: SERVER_V6.into(),
        flags: flags::ACK,
        payload: vec![0; 1_400],
        ..Spec::default()
    }
    .build();
    let syn = Spec::default().build();
    let elsewhere = Spec {
        destination_port: 9_090,
        ..Spec::default()
    }
    .build();
    // To the device of the test run, whose address is all zeros.
    let to_device = |frame: &[u8]| [&[0; 6], &frame[6..]].concat();
    let (own, own_elsewhere) = (to_device(&syn), to_device(&elsewhere));
    let case = |name, promise, setup: Setup, frame: &[u8]| -> Result<Case> {
        let mut kernel = Kernel::load(slot)?;
        kernel.set(&setup)?;
        Ok(Case {
            name,
            promise,
            kernel,
            frame: frame.to_vec(),
        })
    };
    let idle = Setup::default();
    let other_closed = gates(Some((9_999, Closed::Hold)), None);
    let mut cases = [
        case("data, no gate closed", Some(2.0), idle.clone(), &data)?,
        case(
            "data, a gate closed",
            Some(5.0),
            other_closed.clone(),
            &data,
        )?,
        case(
            "IPv6 data, a gate closed",
            Some(5.0),
            other_closed.clone(),
            &data_v6,
        )?,
        case("SYN, no gate closed", Some(2.0), idle, &syn)?,
        case(
            "SYN to a port without a gate",
            Some(60.0),
            other_closed.clone(),
            &elsewhere,
        )?,
        case("SYN to an open gate", Some(60.0), other_closed, &syn)?,
        case(
            "SYN to a guarded endpoint",
            // At most 250 more than to an open gate.
            Some(310.0),
            guarded(8_080, 0),
            &own,
        )?,
        case(
            "SYN to a guarded endpoint, lately down",
            Some(310.0),
            guarded(8_080, 1),
            &own,
        )?,
        case(
            "SYN to a guarded endpoint, held",
            None,
            guarded(9_090, 0),
            &own_elsewhere,
        )?,
        case("data, a gate guarded", Some(5.0), guarded(8_080, 0), &data)?,
        case(
            "SYN dropped",
            Some(60.0),
            gates(None, Some(Closed::Drop)),
            &syn,
        )?,
        case(
            "SYN held (copied to the table)",
            None,
            gates(None, Some(Closed::Hold)),
            &syn,
        )?,
    ];
    let baseline = Baseline::load(slot)?;
    // For all of them: every case made a namespace, and this is the last, where all run.
    let listener = SocketAddr::from(([10, 0, 0, 5], 8_080));
    cases[0].kernel.listen(&[listener])?;

    let mut base = Vec::new();
    let mut costs: Vec<Vec<f64>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds.max(1) {
        base.push(baseline.run(&data, options.repeat)?);
        for (case, costs) in cases.iter().zip(&mut costs) {
            costs.push(run(&case.kernel, &case.frame, options.repeat)?);
        }
    }
    let rows: Vec<Row> = cases
        .iter()
        .zip(&costs)
        .map(|(case, costs)| {
            let pairs = || costs.iter().zip(&base);
            Row {
                name: case.name,
                promise: case.promise,
                cost: middle(costs.iter().copied()),
                above: middle(pairs().map(|(cost, base)| cost - base)),
                ratio: middle(pairs().map(|(cost, base)| cost / base)),
            }
        })
        .collect();
    print(options, middle(base.iter().copied()), &rows);
    Ok(())
}

/// A gate for the SYN's own endpoint, open or closed in a mode, and perhaps another.
pub(super) fn gates(other: Option<(u16, Closed)>, own: Option<Closed>) -> Setup {
    let forever = BootTime(u64::MAX);
    let mut setup = Setup {
        armed: true,
        endpoints: vec![(endpoint(8_080), GateId(1))],
        ..Setup::default()
    };
    if let Some(mode) = own {
        setup
            .words
            .push((GateId(1), StateWord::closed(mode, forever)));
    }
    if let Some((port, mode)) = other {
        setup.endpoints.push((endpoint(port), GateId(2)));
        setup
            .words
            .push((GateId(2), StateWord::closed(mode, forever)));
    }
    setup
}

/// An open and guarded gate for the endpoint of this port, perhaps since its listener was missing.
fn guarded(port: u16, dirty: u64) -> Setup {
    let lease = u64::MAX;
    Setup {
        endpoints: vec![(endpoint(port), GateId(1))],
        words: vec![(GateId(1), StateWord::OPEN.guarded(true))],
        guards: vec![(GateId(1), Guard { lease, dirty })],
        ..gates(None, None)
    }
}

fn endpoint(port: u16) -> EndpointKey {
    EndpointKey::new(Address::from_v4([10, 0, 0, 5]), Port::new(port))
}

/// The nanoseconds that one run takes, the kernel's own mean over `repeat` runs.
pub(super) fn run(kernel: &Kernel, frame: &[u8], repeat: u32) -> Result<f64> {
    let result = kernel.run(TestRunOptions {
        data_in: Some(frame),
        repeat,
        ..TestRunOptions::new()
    })?;
    Ok(result.duration.as_nanos() as f64)
}

fn print(options: &Options, base: f64, rows: &[Row]) {
    if options.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "case": row.name,
                    "ns": row.cost,
                    "above_ns": row.above,
                    "ratio": row.ratio,
                    "promised_above_ns": row.promise,
                })
            })
            .collect();
        let (repeat, rounds) = (options.repeat, options.rounds);
        let all = json!({
            "version": 1,
            "hook": Slot::from(options.hook).name(),
            "baseline_ns": base,
            "repeat": repeat,
            "rounds": rounds,
            "cases": rows,
        });
        println!("{all}");
        return;
    }
    println!(
        "{:<42}{:>8}{:>10}{:>8}   promised",
        "", "ns", "above", "ratio"
    );
    println!("{:<42}{base:>8.1}", "a program that only passes");
    for row in rows {
        let promise = row
            .promise
            .map_or_else(|| "-".to_owned(), |most| format!("<= {most:.0} above"));
        println!(
            "{:<42}{:>8.1}{:>+10.1}{:>8.2}   {promise}",
            row.name, row.cost, row.above, row.ratio
        );
    }
    println!(
        "middle halves of {} rounds of {} packets at {}, all in this run",
        options.rounds,
        options.repeat,
        Slot::from(options.hook).name()
    );
}

/// The mean of the middle half: as steady as the median, and finer.
pub(super) fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let quarter = values.len() / 4;
    let half = &values[quarter..values.len() - quarter];
    half.iter().sum::<f64>() / half.len() as f64
}

#[cfg(test)]
mod tests {
    use super::middle;

    #[test]
    fn outliers_do_not_count() {
        assert_eq!(middle([3.0, 900.0, 2.0, -7.0].into_iter()), 2.5);
        assert_eq!(middle([5.0].into_iter()), 5.0);
        assert!(middle([].into_iter()).is_nan());
    }
}
