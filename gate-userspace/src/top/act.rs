//! What the keys of `gate top` do to gates: just what the commands do.

use std::time::Duration;

use gate_common::state::Closed;

use super::model::Verb;
use crate::close::{self, By};
use crate::drain::driver::{self, Moment, Progress, Wanted};
use crate::error::{Error, Result};
use crate::gates::Target;
use crate::open::{self, Which};
use crate::pins::Pins;
use crate::report;

/// How long a drain waits: the command's default.
const DRAIN: Duration = Duration::from_secs(30);

/// What is under way, in words.
pub(super) fn words(verb: Verb, target: &Target) -> String {
    match verb {
        Verb::Hold(_) => format!("closing {target}"),
        Verb::Open => format!("opening {target}"),
        Verb::Drain => format!("draining {target}, for {} at the most", report::span(DRAIN)),
    }
}

/// Does it, and says in one line what came of it.
///
/// # Errors
/// Those of the commands.
pub(super) fn act(pins: &Pins, verb: Verb, target: &Target) -> Result<String> {
    let targets = vec![target.clone()];
    match verb {
        Verb::Hold(lease) => {
            let request = close::Request {
                targets,
                mode: Closed::Hold,
                lease,
                allow: Vec::new(),
                by: By::Operator,
            };
            Ok(line(&report::closed(&close::close(pins, &request)?)))
        }
        Verb::Open => {
            let which = Which::These(targets);
            let opened = open::open(
                pins,
                &open::Request {
                    which,
                    rate: None,
                    by: By::Operator,
                },
            )?;
            match opened.over {
                Some(over) => Err(over),
                None => Ok(line(&report::opened(&opened))),
            }
        }
        Verb::Drain => drained(targets, target),
    }
}

fn drained(targets: Vec<Target>, target: &Target) -> Result<String> {
    let request = driver::Request::new(&Wanted {
        targets,
        backends: Vec::new(),
        timeout: DRAIN,
        flush: false,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::call("start", "the tokio runtime"))?;
    let drained = runtime.block_on(driver::run(&request, &mut Silent))?;
    let waited = report::span(drained.waited);
    Ok(match drained.left.connections.len() {
        0 => format!("{target}: no connection is left; waited {waited}"),
        left => {
            let note = request.notes.first().map(|note| format!("; {note}"));
            let note = note.unwrap_or_default();
            format!(
                "{target}: {left} of {} connections are left after {waited}{note}",
                drained.before
            )
        }
    })
}

/// All lines as one.
fn line(text: &str) -> String {
    text.trim_end().lines().collect::<Vec<_>>().join("; ")
}

/// The table shows how far it is.
struct Silent;

impl Progress for Silent {
    fn draining(&mut self, _connections: usize, _request: &driver::Request) {}

    fn drain_moment(&mut self, _moment: Moment) {}
}
