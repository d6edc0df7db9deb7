//! How long a reload takes with many gates.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Options, configure, gate, ms, start};
use crate::topology::Topology;

/// Endpoints of each gate.
const ENDPOINTS: u32 = 10;

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options) -> Result<Value> {
    let topology = Topology::new()?;
    configure(&topology, "")?;
    let _daemon = start(&topology)?;
    let whole = config(options.gates, None);
    let mut steps = Vec::new();
    for (name, config) in [
        ("all are new", whole.clone()),
        ("none changes", whole.clone()),
        (
            "one changes",
            config(options.gates, Some(options.gates / 2)),
        ),
        ("one changes back", whole),
        ("all go", String::new()),
    ] {
        configure(&topology, &config)?;
        let began = Instant::now();
        let answer: Value = serde_json::from_str(&gate(&topology, &["reload", "--json"])?)?;
        let took: Duration = began.elapsed();
        let changes = answer["changes"].as_array().map_or(0, Vec::len);
        if !options.json {
            println!(
                "reload of {} gates with {} endpoints, {name}: {:.0} ms, {changes} changes",
                options.gates,
                options.gates * ENDPOINTS,
                ms(took),
            );
        }
        steps.push(json!({ "step": name, "ms": ms(took), "changes": changes }));
    }
    Ok(json!({
        "part": "reload",
        "gates": options.gates,
        "endpoints": options.gates * ENDPOINTS,
        "steps": steps,
    }))
}

/// A configuration of that many gates; of one of them an endpoint is another.
fn config(gates: u32, other: Option<u32>) -> String {
    let mut config = "[defaults]\ninterfaces = [\"eth0\"]\n".to_owned();
    for gate in 0..gates {
        let endpoints: Vec<String> = (0..ENDPOINTS)
            .map(|i| {
                let port = 10_000 + i;
                let moved = u32::from(other == Some(gate) && i == 0);
                format!(
                    "\"10.{}.{}.{}:{port}\"",
                    1 + moved,
                    gate / 250,
                    1 + gate % 250
                )
            })
            .collect();
        // Writing to a String does not fail.
        let _written = writeln!(
            config,
            "[gate.g{gate}]\nendpoints = [{}]",
            endpoints.join(", ")
        );
    }
    config
}
