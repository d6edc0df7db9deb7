//! What `gate restart` says: its summary.

use std::time::Duration;

use serde_json::{Value, json};

use super::attach::up_json;
use super::release::{released_json, released_text};
use super::{connections, list, millis, span, texts};
use crate::gates;
use crate::restart::driver::{Failure, Summary};
use crate::restart::{AtEnd, Outcome, Phase};

#[cfg(test)]
mod tests;

/// The line that ends `gate restart`.
#[must_use]
pub fn summary(summary: &Summary) -> String {
    let own = summary.own();
    let gates = match own.is_empty() {
        true => list(&summary.gates),
        false => list(&own),
    };
    let end = match summary.outcome {
        Outcome::Healthy => "healthy".to_owned(),
        Outcome::CommandFailed(end) => format!("the command {end}"),
        Outcome::LeaseOver(_) => "the lease ran out".to_owned(),
        Outcome::Interrupted(_) => "interrupted".to_owned(),
    };
    // What failed the complaint tells, and what another command did the end of this line.
    let is_done = !own.is_empty() && summary.open_failure.is_none();
    let done = match summary.gate {
        _ if !is_done => "",
        AtEnd::Opens => ", open again",
        AtEnd::Rejects => ", rejecting new connections",
        AtEnd::Stays => ", still holding new connections",
    };
    let mut line = format!("{gates}: {end}{done} after {}", span(summary.closed_for));
    if summary.gate == AtEnd::Opens && (is_done || summary.released.injected > 0) {
        line += &format!("; {}", released_text(&summary.released));
    }
    if let Some(drained) = summary.drained {
        if drained.flushed > 0 {
            line += &format!("; {} reset", connections(drained.flushed));
        }
        if drained.left > 0 {
            line += &format!("; {} had not ended", connections(drained.left));
        }
    }
    let dropped = summary.overflowed + summary.uncaptured;
    if dropped > 0 {
        line += &format!(
            "; {dropped} SYNs not held ({} for a full table), whose clients retransmit",
            summary.overflowed
        );
    }
    if !summary.taken_over.is_empty() {
        line += &format!(
            "; left as another command set it: {}",
            list(&summary.taken_over)
        );
    }
    let phases: Vec<String> = summary
        .phases
        .iter()
        .map(|(phase, took)| format!("{} {}", phase.name(), span(*took)))
        .collect();
    format!("{line}\n  {}\n", phases.join(", "))
}

/// The one line of cause and remedy for a restart that did not end well.
#[must_use]
pub fn complaint(summary: &Summary, max_hold: Duration) -> Option<String> {
    let last = || match &summary.last_failure {
        Some(failure) => format!(" (last: {failure})"),
        None => String::new(),
    };
    let hold = humantime::format_duration(max_hold);
    if let Some(Failure { text, is_open }) = &summary.open_failure {
        let what = match summary.gate {
            AtEnd::Opens | AtEnd::Stays => "opened",
            AtEnd::Rejects => "told to reject",
        };
        return Some(match is_open {
            true => format!(
                "the gate is open, but not all that it held could be released ({text}): those clients \
                 send their SYNs again"
            ),
            false => format!(
                "the gate could not be {what} ({text}): its lease opens it, at the latest {hold} after it \
                 was closed"
            ),
        });
    }
    let so = match summary.gate {
        _ if summary.own().is_empty() => {
            "and the gate was left as another command set it".to_owned()
        }
        AtEnd::Opens => "so the gate was opened".to_owned(),
        AtEnd::Rejects => format!("so new connections are rejected for {hold}"),
        AtEnd::Stays => "so the gate stays closed until its lease is over".to_owned(),
    };
    match summary.outcome {
        Outcome::Healthy => None,
        Outcome::CommandFailed(end) => Some(format!(
            "the command {end}, {so}: see its own output for why"
        )),
        Outcome::LeaseOver(Phase::Health) => Some(format!(
            "the backend was not healthy within --max-hold {hold}{}, {so}: look at the backend, or \
             give it longer",
            last()
        )),
        Outcome::LeaseOver(Phase::Quiesce | Phase::Drain) => Some(format!(
            "--max-hold {hold} was over before the command began, {so}: give it longer"
        )),
        Outcome::LeaseOver(Phase::Command) => Some(format!(
            "the command was not done within --max-hold {hold}, {so} and the command stopped: give \
             it longer"
        )),
        Outcome::Interrupted(_) => Some(format!(
            "interrupted, {so}, and the command stopped if it ran: start it again when it suits"
        )),
    }
}

/// The JSON of `gate restart`.
#[must_use]
pub fn summary_json(summary: &Summary) -> Value {
    let phases: Vec<Value> = summary
        .phases
        .iter()
        .map(|(phase, took)| json!({ "phase": phase.name(), "ms": millis(*took) }))
        .collect();
    let mut value = json!({
        "gates": texts(&summary.gates),
        "endpoints": texts(&gates::endpoints(&summary.gates)),
        "attached": up_json(&summary.attached)["interfaces"],
        "outcome": summary.outcome.name(),
        "exit_code": summary.exit_code(),
        "gate": summary.became().map(|gate| match gate {
            AtEnd::Opens => "open",
            AtEnd::Rejects => "reject",
            AtEnd::Stays => "hold",
        }),
        "closed_ms": millis(summary.closed_for),
        "phases": phases,
        "drain": summary.drained.map(|drained| {
            json!({ "left": drained.left, "flushed": drained.flushed })
        }),
        "overflowed": summary.overflowed,
        "uncaptured": summary.uncaptured,
        "last_failure": summary.last_failure,
        "taken_over": texts(&summary.taken_over),
        "open_failure": summary.open_failure.as_ref().map(|failure| &failure.text),
    });
    if let (Value::Object(value), Value::Object(released)) =
        (&mut value, released_json(&summary.released))
    {
        value.extend(released);
    }
    value
}
