//! `gate open`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use gate_common::state::{Effective, StateWord};
use gate_userspace::error::{Error, exit};
use gate_userspace::gates::{self, Target};
use gate_userspace::pins::Pins;
use gate_userspace::release::{Job, Pace, Rate, Release, Replayer};
use gate_userspace::tables::Tables;
use gate_userspace::{alias, clock, datapath, report};
use serde_json::json;

use super::Answer;

/// After that time, a client whose SYN was held has sent it again: what is held still is stale.
const RETRANSMISSION: Duration = Duration::from_secs(1);

/// Its arguments.
#[derive(Debug, Args)]
pub struct Open {
    /// What to open: a gate's name, or an endpoint.
    #[arg(required_unless_present = "all", value_name = "GATE")]
    targets: Vec<Target>,
    /// Open every gate.
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// Let in no more than that many of the held connections a second, as in 500/s; new ones queue
    /// behind them [default: as fast as the listener accepts].
    #[arg(long, value_name = "N/s")]
    rate: Option<Rate>,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Open) -> Result<Answer, Error> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let mut replayer = Replayer::load(pins, &lock)?;
    // An endpoint that never had a gate is as open as can be.
    let known = match args.all {
        true => gates::list(pins, &tables)?,
        false => gates::find(pins, &tables, &args.targets)?,
    };
    let ids = known.iter().map(|gate| gate.id).collect();
    let note = alias::renew_or_note(pins, &lock, &ids);
    let now = clock::now();
    let mut to_open = BTreeMap::new();
    let mut over: Option<Error> = None;
    for gate in &known {
        let word = tables.state(gate.id)?;
        match word.at(|| now) {
            Effective::Open => {}
            Effective::Closed(_) => {
                to_open.insert(gate.id, word);
            }
            Effective::Expired => {
                let ago = clock::between(word.deadline(), now);
                if ago < RETRANSMISSION {
                    to_open.insert(gate.id, word);
                } else {
                    tables.discard(&lock, &BTreeSet::from([gate.id]))?;
                    tables.set_state(&lock, gate.id, StateWord::OPEN, now)?;
                }
                if !args.all {
                    let gate = gate.to_string();
                    over.get_or_insert(Error::LeaseOver { gate, ago });
                }
            }
        }
    }
    let shown: Vec<String> = match args.all {
        true => known.iter().map(ToString::to_string).collect(),
        false => {
            let each: BTreeSet<&Target> = args.targets.iter().collect();
            each.into_iter().map(ToString::to_string).collect()
        }
    };
    let (mut text, released) = match to_open.is_empty() {
        true => {
            drop(lock);
            let text = match (shown.is_empty(), &over) {
                (true, _) => "no gate was closed\n".to_owned(),
                (false, Some(_)) => String::new(),
                (false, None) => report::already_open(&shown),
            };
            (text, None)
        }
        false => {
            // It may take seconds, and takes the lock when it needs it.
            drop(lock);
            let pace = Pace {
                rate: args.rate,
                ..Pace::default()
            };
            let release = Release::new(pins, Job::Open(to_open), pace);
            let released = release.run(&mut tables, &mut replayer)?;
            let text = match over.is_some() && released.injected == 0 {
                true => String::new(),
                false => report::opened(&shown, &released),
            };
            (text, Some(released))
        }
    };
    match pins.lock() {
        // A `gate down` was first.
        Err(Error::NotUp) => {}
        lock => {
            let lock = lock?;
            tables.settle(&lock, clock::now())?;
            // A restart that failed, or was killed, may have left that.
            datapath::detach_temporary(pins, lock)?;
        }
    }
    text.extend(note.iter().map(|note| format!("{note}\n")));
    let mut fields = report::released_json(&released.unwrap_or_default());
    fields["gates"] = json!(shown);
    fields["notes"] = json!(note.into_iter().collect::<Vec<_>>());
    fields["already"] = json!(released.is_none() && over.is_none());
    fields["lease_over"] = json!(over.is_some());
    Ok(Answer {
        text,
        fields,
        code: over.as_ref().map_or(exit::DONE, Error::exit_code),
        complaint: over.map(|over| over.to_string()),
    })
}
