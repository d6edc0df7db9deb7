//! `gate define` and `gate forget`.

use std::collections::BTreeSet;

use clap::Args;
use gate_userspace::endpoint::Endpoint;
use gate_userspace::error::Error;
use gate_userspace::gates::{self, GateName};
use gate_userspace::pins::Pins;
use gate_userspace::tables::Tables;
use gate_userspace::{clock, datapath, report};

use super::Answer;

/// Arguments of `gate define`.
#[derive(Debug, Args)]
pub struct Define {
    /// The gate's name: a letter, then letters, digits, - and _.
    #[arg(value_name = "NAME")]
    name: GateName,
    /// All that closes and opens with it: 10.0.0.5:80, [fd00::5]:80, or *:80 for any address of
    /// this host.
    #[arg(required = true, value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
}

/// Arguments of `gate forget`.
#[derive(Debug, Args)]
pub struct Forget {
    /// The gate's name.
    #[arg(value_name = "NAME")]
    name: GateName,
}

/// Runs `gate define`.
pub fn define(pins: &Pins, args: &Define) -> Result<Answer, Error> {
    let endpoints: BTreeSet<Endpoint> = args.endpoints.iter().copied().collect();
    gates::check_overlap(&endpoints)?;
    let lock = pins.lock_or_create()?;
    if let Err(error) = datapath::prepare(pins, &lock) {
        if !pins.exist() {
            pins.remove_empty(lock);
        }
        return Err(error);
    }
    let mut tables = Tables::open(pins)?;
    let now = clock::now();
    tables.settle(&lock, now)?;
    let defined = gates::define(pins, &lock, &mut tables, (&args.name, &endpoints), now)?;
    Ok(Answer::done(
        report::defined(&defined),
        report::defined_json(&defined),
    ))
}

/// Runs `gate forget`.
pub fn forget(pins: &Pins, args: &Forget) -> Result<Answer, Error> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let now = clock::now();
    tables.settle(&lock, now)?;
    let gate = gates::forget(pins, &lock, &mut tables, &args.name, now)?;
    Ok(Answer::done(
        report::forgotten(&gate),
        report::forgotten_json(&gate),
    ))
}
