//! What an established connection gets through while its gate is handed over: by iperf3, whose
//! connection is A's, in one run against the same without a handover. On a machine with as many
//! processors as iperf3 uses, the commands themselves take time from it; so they are run for a gate
//! that nobody connects to, too, and what that leaves is shown beside.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Options;
use super::pair::{Backend, Kind, Which};
use crate::bench::endurance::load_average;
use crate::bench::path::Path;
use crate::bench::spread::Spread;
use crate::bench::throughput::undisturbed;
use crate::iperf3::Iperf3;
use crate::topology::{Topology, server_v4};

/// From iperf3's start until it has its connections: they are to be A's.
const CONNECTING: Duration = Duration::from_millis(200);
/// From one handover to the next, where there are many.
const EVERY: Duration = Duration::from_millis(50);
/// Where iperf3 listens, and where nobody connects to.
const PORTS: [u16; 2] = [5201, 9999];
/// The ratio that was promised.
const PROMISE: f64 = 0.99;

/// What goes on while iperf3 measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    OneHandover,
    Handovers,
    HandoversOfAnother,
}

impl Meanwhile {
    const ALL: [Self; 4] = [
        Self::Nothing,
        Self::OneHandover,
        Self::Handovers,
        Self::HandoversOfAnother,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Nothing => "no handover either",
            Self::OneHandover => "through one handover",
            Self::Handovers => "one every 50 ms",
            Self::HandoversOfAnother => "another gate's every 50 ms",
        }
    }

    fn gate(self) -> SocketAddr {
        match self {
            Self::HandoversOfAnother => server_v4(PORTS[1]),
            _ => server_v4(PORTS[0]),
        }
    }

    /// Hands over until the measurement is over.
    fn go_on(self, topology: &Topology, is_over: &AtomicBool) -> Result<()> {
        let gate = self.gate().to_string();
        let to_b = Which::B.address().to_string();
        sleep(CONNECTING);
        for number in 0.. {
            if is_over.load(Ordering::Relaxed) || (self, number) == (Self::OneHandover, 1) {
                break;
            }
            let began = Instant::now();
            match number % 2 {
                0 => topology.gate(["handover", &gate, "--to", &to_b])?.ok()?,
                _ => topology.gate(["handover", &gate, "--back"])?.ok()?,
            };
            sleep(EVERY.saturating_sub(began.elapsed()));
        }
        while !is_over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(1));
        }
        // The next one connects to A.
        topology.gate(["handover", &gate, "--back"])?.ok().map(drop)
    }
}

/// The ratios of each kind.
fn measure(options: &Options, path: Path) -> Result<(f64, Vec<Vec<f64>>)> {
    let topology = Topology::new()?;
    let iperf3 = Iperf3::start(&topology, server_v4(PORTS[0]))?;
    let _b = Backend::start(&topology, Kind::Lab, Which::B)?;
    topology.gate(["up", path.interface()])?.ok()?;
    let once = |meanwhile: Meanwhile| {
        let is_over = AtomicBool::new(false);
        scope(|scope| {
            let handing = (meanwhile != Meanwhile::Nothing)
                .then(|| scope.spawn(|| meanwhile.go_on(&topology, &is_over)));
            let measured = iperf3.measure(path.client(), false, options.seconds);
            is_over.store(true, Ordering::Relaxed);
            if let Some(handing) = handing {
                handing
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            measured
        })
    };
    // The first of all warms up what later ones find warm.
    once(Meanwhile::Nothing)?;
    let mut ratios = vec![Vec::new(); Meanwhile::ALL.len()];
    let mut without = Vec::new();
    for round in 0..options.rounds() as usize {
        // Each against those before and after it, and neither of them always first.
        let mut before = once(Meanwhile::Nothing)?;
        for index in 0..Meanwhile::ALL.len() {
            let index = (index + round) % Meanwhile::ALL.len();
            let with = once(Meanwhile::ALL[index])?;
            let after = once(Meanwhile::Nothing)?;
            ensure!(before > 0.0 && after > 0.0, "iperf3 measured nothing");
            ratios[index].push(with / f64::midpoint(before, after));
            without.push(after);
            before = after;
        }
    }
    Ok((Spread::of(&without).median, ratios))
}

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options, path: Path) -> Result<Value> {
    undisturbed();
    let load = load_average();
    let (without, ratios) = measure(options, path)?;
    if !options.json {
        println!(
            "{}: an established connection, iperf3, {:.1} Gbit/s; {} pairs; load average {load} before, {} \
             after",
            path.name(),
            without / 1e9,
            options.rounds(),
            load_average(),
        );
        println!("{:<34}{:>7}   {:<16}promised", "", "ratio", "middle half");
    }
    let mut rows = Vec::new();
    for (meanwhile, ratios) in Meanwhile::ALL.into_iter().zip(&ratios) {
        let spread = Spread::of(ratios);
        let promised = (meanwhile == Meanwhile::OneHandover).then_some(PROMISE);
        if !options.json {
            let half = format!("{:.3} to {:.3}", spread.low, spread.high);
            let promise = promised.map_or_else(|| "-".to_owned(), |least| format!(">= {least}"));
            let words = meanwhile.words();
            println!("  {words:<32}{:>7.3}   {half:<16}{promise}", spread.median);
        }
        rows.push(json!({
            "case": meanwhile.words(),
            "ratio": spread.to_json(),
            "ratios": ratios,
            "promised": promised,
        }));
    }
    Ok(json!({
        "part": "throughput",
        "path": path.name(),
        "without_per_second": without,
        "cases": rows,
    }))
}
