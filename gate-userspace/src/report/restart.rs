//! What `gate restart` says: its summary.

use std::time::Duration;

use serde_json::{Value, json};

use super::attach::up_json;
use super::release::{released_json, released_text};
use super::{list, millis, span, texts};
use crate::gates;
use crate::restart::driver::Summary;
use crate::restart::{Outcome, Phase};

/// The line that ends `gate restart`.
#[must_use]
pub fn summary(summary: &Summary) -> String {
    let gates = list(&summary.gates);
    let end = match summary.outcome {
        Outcome::Healthy => "healthy, open again".to_owned(),
        Outcome::CommandFailed(end) => format!("the command {end}; open again"),
        Outcome::LeaseOver(_) => "the lease ran out; open again".to_owned(),
        Outcome::Interrupted(_) => "interrupted; open again".to_owned(),
    };
    let mut line = format!(
        "{gates}: {end} after {}; {}",
        span(summary.closed_for),
        released_text(&summary.released)
    );
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
    line + "\n"
}

/// The one line of cause and remedy for a restart that did not end well.
#[must_use]
pub fn complaint(summary: &Summary, max_hold: Duration) -> Option<String> {
    let last = || match &summary.last_failure {
        Some(failure) => format!(" (last: {failure})"),
        None => String::new(),
    };
    if let Some(failure) = &summary.open_failure {
        return Some(format!(
            "the gate could not be opened ({failure}): its lease opens it, at the latest {} after it \
             was closed",
            humantime::format_duration(max_hold)
        ));
    }
    match summary.outcome {
        Outcome::Healthy => None,
        Outcome::CommandFailed(end) => Some(format!(
            "the command {end}, so the gate was opened: see its own output for why"
        )),
        Outcome::LeaseOver(Phase::Health) => Some(format!(
            "the backend was not healthy within --max-hold {}{}, so the gate was opened: look at \
             the backend, or give it longer",
            humantime::format_duration(max_hold),
            last()
        )),
        Outcome::LeaseOver(Phase::Quiesce) => Some(format!(
            "--max-hold {} was over before the command began, so the gate was opened: give it longer",
            humantime::format_duration(max_hold)
        )),
        Outcome::LeaseOver(Phase::Command) => Some(format!(
            "the command was not done within --max-hold {}, so the gate was opened and the command \
             stopped: give it longer",
            humantime::format_duration(max_hold)
        )),
        Outcome::Interrupted(_) => Some(
            "interrupted, so the gate was opened, and the command stopped if it ran: start it \
             again when it suits"
                .to_owned(),
        ),
    }
}

/// The JSON of `gate restart`.
#[must_use]
pub fn summary_json(summary: &Summary) -> Value {
    let mut value = json!({
        "gates": texts(&summary.gates),
        "endpoints": texts(&gates::endpoints(&summary.gates)),
        "attached": up_json(&summary.attached)["interfaces"],
        "outcome": summary.outcome.name(),
        "exit_code": summary.outcome.exit_code(),
        "closed_ms": millis(summary.closed_for),
        "overflowed": summary.overflowed,
        "uncaptured": summary.uncaptured,
        "last_failure": summary.last_failure,
        "taken_over": texts(&summary.taken_over),
        "open_failure": summary.open_failure,
    });
    if let (Value::Object(value), Value::Object(released)) =
        (&mut value, released_json(&summary.released))
    {
        value.extend(released);
    }
    value
}
