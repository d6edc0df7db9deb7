//! `gate hold`, `drop` and `reject`.

use std::time::Duration;

use clap::Args;
use gate_common::state::{Closed, Mode, StateWord};
use gate_userspace::allow::Cidr;
use gate_userspace::error::Error;
use gate_userspace::gates::{self, Target};
use gate_userspace::pins::Pins;
use gate_userspace::release::Replayer;
use gate_userspace::tables::Tables;
use gate_userspace::{allow, clock, datapath, reach, report};

use super::{Answer, lease};

/// Their arguments.
#[derive(Debug, Args)]
pub struct Close {
    /// What to close: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080 for
    /// any address of this host.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
    /// The lease, after which the gate opens by itself.
    #[arg(long = "for", value_name = "TIME", default_value = "15s", value_parser = lease)]
    lease: Duration,
    /// Sources that pass all the same: 10.0.0.0/8, fd00::/8 or one address; can be given more than
    /// once.
    #[arg(long, value_name = "CIDR")]
    allow: Vec<Cidr>,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Close, mode: Closed) -> Result<Answer, Error> {
    let lock = pins.lock()?;
    let endpoints = gates::meant(pins, &args.targets)?;
    let mut notes = reach::check(pins, &endpoints, &datapath::live(pins)?)?;
    notes.extend(allow::warnings(&args.allow));
    let mut tables = Tables::open(pins)?;
    if mode == Closed::Hold {
        // Holding what can't be released would be worse than dropping it.
        Replayer::load(pins, &lock)?;
    }
    let now = clock::now();
    tables.settle(&lock, now)?;
    let mut word = StateWord::closed(mode, clock::after(now, args.lease));
    if !args.allow.is_empty() {
        word = word.with_allows();
    }
    let closed = gates::find_or_make(pins, &lock, &mut tables, &args.targets, now)?;
    // All lists before the first word: one that doesn't fit closes nothing.
    for gate in &closed {
        tables.set_allowed(&lock, gate.id, &args.allow)?;
    }
    for gate in &closed {
        tables.close(&lock, gate.id, word, now)?;
    }
    let mode = Mode::from(mode);
    Ok(Answer::done(
        report::closed(&closed, mode, args.lease, &notes),
        report::closed_json(&closed, mode, args.lease, &notes),
    ))
}
