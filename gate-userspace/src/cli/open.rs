//! `gate open`.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use gate_common::state::{Effective, StateWord};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::error::{Error, exit};
use gate_userspace::pins::Pins;
use gate_userspace::release::{Replayer, release};
use gate_userspace::tables::Tables;
use gate_userspace::{clock, report};
use serde_json::json;

use super::Answer;

/// After that time, a client whose SYN was held has sent it again: what is held still is stale.
const RETRANSMISSION: Duration = Duration::from_secs(1);

/// Its arguments.
#[derive(Debug, Args)]
pub struct Open {
    /// What to open.
    #[arg(required_unless_present = "all", value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
    /// Open every gate.
    #[arg(long, conflicts_with = "endpoints")]
    all: bool,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Open) -> Result<Answer, Error> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let mut replayer = Replayer::load(pins, &lock)?;
    let known = tables.endpoints()?;
    let endpoints: BTreeSet<Endpoint> = match args.all {
        true => known.keys().copied().collect(),
        false => args.endpoints.iter().copied().collect(),
    };
    let now = clock::now();
    let mut gates = BTreeSet::new();
    let mut over: Option<Error> = None;
    for endpoint in &endpoints {
        // An endpoint that never had a gate is as open as can be.
        let Some(gate) = known.get(endpoint) else {
            continue;
        };
        let word = tables.state(*gate)?;
        match word.at(|| now) {
            Effective::Open => {}
            Effective::Closed(_) => {
                gates.insert(*gate);
            }
            Effective::Expired => {
                let ago = clock::between(word.deadline(), now);
                if ago < RETRANSMISSION {
                    gates.insert(*gate);
                } else {
                    tables.discard(&lock, &BTreeSet::from([*gate]))?;
                    tables.set_state(&lock, *gate, StateWord::OPEN, now)?;
                }
                if !args.all {
                    let endpoint = *endpoint;
                    over.get_or_insert(Error::LeaseOver { endpoint, ago });
                }
            }
        }
    }
    let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
    let (text, released) = match gates.is_empty() {
        true if endpoints.is_empty() => ("no gate was closed\n".to_owned(), None),
        true if over.is_some() => (String::new(), None),
        true => (report::already_open(&endpoints), None),
        false => {
            let released = release(&lock, &mut tables, &mut replayer, &gates)?;
            let text = match over.is_some() && released.injected == 0 {
                true => String::new(),
                false => report::opened(&endpoints, &released),
            };
            (text, Some(released))
        }
    };
    tables.settle(&lock, clock::now())?;
    let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let mut fields = report::released_json(&released.unwrap_or_default());
    fields["endpoints"] = json!(shown);
    fields["already"] = json!(released.is_none() && over.is_none());
    fields["lease_over"] = json!(over.is_some());
    Ok(Answer {
        text,
        fields,
        code: over.as_ref().map_or(exit::DONE, Error::exit_code),
        complaint: over.map(|over| over.to_string()),
    })
}
