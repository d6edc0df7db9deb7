//! What the program on the look-up of listeners costs new connections that no handover is for: new
//! connections a second with it attached against none, by one thread that has both ends.

use anyhow::Result;
use serde_json::{Value, json};

use super::Options;
use super::pair::{Backend, Kind, Which};
use crate::bench::endurance::load_average;
use crate::bench::path::Path;
use crate::bench::single::{Lane, race};
use crate::bench::spread::Spread;
use crate::bench::throughput::undisturbed;
use crate::topology::server_v4;

/// How many times 10 ms are measured on either side of a ratio.
const TURNS: u32 = 12;
/// Where the connections go.
const PORT: u16 = 5201;

/// The gates that are handed over meanwhile: one of another port, and one of another address that
/// has the same port, so that the program looks further.
const CASES: [(&str, Option<&str>); 3] = [
    ("no handover either", None),
    ("another port is handed over", Some("10.0.0.5:9999")),
    ("another address is, of this port", Some("127.0.0.9:5201")),
];

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options, path: Path) -> Result<Value> {
    undisturbed();
    let load = load_average();
    let lane = || Lane::connections(path, server_v4(PORT));
    let lanes = [lane()?, lane()?];
    let backend = |lane| Backend::start(Lane::topology(lane), Kind::Lab, Which::B);
    let _backends = [backend(&lanes[0])?, backend(&lanes[1])?];
    race(&lanes[0], &lanes[1], TURNS)?;
    let mut ratios = vec![Vec::new(); CASES.len()];
    let mut without = Vec::new();
    for _ in 0..options.rounds() {
        for (index, (_, handed)) in CASES.into_iter().enumerate() {
            let mut product = 1.0_f64;
            for [one, other] in [[0, 1], [1, 0]].map(|order| order.map(|it| &lanes[it])) {
                if let Some(gate) = handed {
                    let to = Which::B.address().to_string();
                    let args = ["handover", gate, "--to", &to];
                    one.topology().gate(args)?.ok()?;
                }
                let (with, plain) = race(one, other, TURNS)?;
                if handed.is_some() {
                    one.topology().gate(["down"])?.ok()?;
                }
                without.push(plain);
                product *= with / plain;
            }
            ratios[index].push(product.sqrt());
        }
    }
    let without = Spread::of(&without).median;
    if !options.json {
        println!(
            "{}: new connections, one thread, {without:.0} /s; {} pairs; load average {load} before, {} \
             after",
            path.name(),
            options.rounds(),
            load_average(),
        );
        println!("{:<34}{:>7}   middle half", "", "ratio");
    }
    let mut rows = Vec::new();
    for ((words, _), ratios) in CASES.into_iter().zip(&ratios) {
        let spread = Spread::of(ratios);
        if !options.json {
            println!(
                "  {words:<32}{:>7.3}   {:.3} to {:.3}",
                spread.median, spread.low, spread.high
            );
        }
        rows.push(json!({"case": words, "ratio": spread.to_json(), "ratios": ratios}));
    }
    Ok(json!({
        "part": "connections",
        "path": path.name(),
        "without_per_second": without,
        "cases": rows,
    }))
}
