//! `gate hold`, `drop` and `reject`.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use gate_common::state::{Closed, Mode, StateWord};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::error::Error;
use gate_userspace::pins::Pins;
use gate_userspace::release::Replayer;
use gate_userspace::tables::Tables;
use gate_userspace::{clock, datapath, reach, report};
use serde_json::json;

use super::{Answer, lease};

/// Their arguments.
#[derive(Debug, Args)]
pub struct Close {
    /// What to close: 10.0.0.5:8080, [fd00::5]:8080, or *:8080 for any address of this host.
    #[arg(required = true, value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
    /// The lease, after which the gate opens by itself.
    #[arg(long = "for", value_name = "TIME", default_value = "15s", value_parser = lease)]
    lease: Duration,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Close, mode: Closed) -> Result<Answer, Error> {
    let lock = pins.lock()?;
    let notes = reach::check(&args.endpoints, &datapath::live(pins)?)?;
    let mut tables = Tables::open(pins)?;
    if mode == Closed::Hold {
        // Holding what can't be released would be worse than dropping it.
        Replayer::load(pins, &lock)?;
    }
    let now = clock::now();
    tables.settle(&lock, now)?;
    let word = StateWord::closed(mode, clock::after(now, args.lease));
    let endpoints: BTreeSet<Endpoint> = args.endpoints.iter().copied().collect();
    for (_, gate) in tables.define_all(&lock, &endpoints, now)? {
        tables.close(&lock, gate, word, now)?;
    }
    let name = Mode::from(mode).name();
    let lease = humantime::format_duration(args.lease);
    let mut text: String = endpoints
        .iter()
        .map(|endpoint| format!("{endpoint}: {name} for {lease}\n"))
        .collect();
    for note in &notes {
        text += &format!("{note}\n");
    }
    let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    Ok(Answer::done(
        text,
        json!({
            "endpoints": shown,
            "mode": name,
            "lease_ms": report::millis(args.lease),
            "notes": notes,
        }),
    ))
}
