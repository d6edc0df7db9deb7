//! What `gate events` says.

use std::time::SystemTime;

use super::{list, span};
use crate::events::{Event, What};

/// One line: when, in UTC, to which gate, and what.
#[must_use]
pub fn event(event: &Event) -> String {
    let (at, what) = (time(event.at), what(&event.what));
    match &event.gate {
        Some(gate) => format!("{at}  {gate}: {what}"),
        None => format!("{at}  {what}"),
    }
}

/// The time as RFC 3339 has it, UTC, to the millisecond.
fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// What happened, without when and to whom.
#[must_use]
pub fn what(what: &What) -> String {
    match what {
        What::Defined => "defined".to_owned(),
        What::Forgotten => "forgotten".to_owned(),
        What::Closed { mode, lease } => {
            format!("closed ({}), for {} at the most", mode.name(), span(*lease))
        }
        What::Opened => "open".to_owned(),
        What::Expired => "the lease ran out; open".to_owned(),
        What::Guarded { lease } => format!(
            "guarded; while nothing listens, connections are held for {}",
            span(*lease)
        ),
        What::Unguarded => "not guarded any more".to_owned(),
        What::ListenerMissing { endpoint } => {
            format!("nothing listens at {endpoint}; holding new connections")
        }
        What::ListenerBack {
            endpoint,
            after,
            released,
        } => format!(
            "a socket listens at {endpoint} again, after {}; {released} released",
            span(*after)
        ),
        What::Up => "up".to_owned(),
        What::Down { why } => format!("down: {why}"),
        What::HandedOver { to } if to.is_empty() => {
            "new connections go to its own listener".to_owned()
        }
        What::HandedOver { to } => format!("new connections go to {}", list(to)),
        What::Attached { interface } => format!("{interface}: attached"),
        What::Detached { interface } => format!("{interface}: detached"),
        What::Awaited { what } => format!("waiting for {what}, which is not there yet"),
        What::Applied { changes: 0 } => "configuration read; nothing to change".to_owned(),
        What::Applied { changes: 1 } => "configuration applied: 1 change".to_owned(),
        What::Applied { changes } => format!("configuration applied: {changes} changes"),
        What::Failed { why } => format!("failed: {why}"),
    }
}

/// The lines of `gate reload`.
#[must_use]
pub fn reloaded(fields: &serde_json::Value) -> String {
    let count = fields["changes"].as_array().map_or(0, Vec::len);
    format!("{}\n", what(&What::Applied { changes: count }))
}
