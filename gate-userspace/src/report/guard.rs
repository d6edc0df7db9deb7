//! What `gate guard` says.

use std::time::Duration;

use serde_json::{Value, json};

use super::release::released_text;
use super::{list, millis, released_json, span, texts};
use crate::gates;
use crate::guard::{End, Event, Guarded, Unguarded};

/// A line for each gate, and the notes.
#[must_use]
pub fn guarded(guarded: &Guarded, lease: Duration) -> String {
    let lease = humantime::format_duration(lease);
    let lines = guarded.gates.iter().map(|gate| {
        format!("{gate}: guarded; while nothing listens, connections are held for {lease}\n")
    });
    let notes = guarded.notes.iter().map(|note| format!("{note}\n"));
    lines.chain(notes).collect()
}

/// The JSON of the same.
#[must_use]
pub fn guarded_json(guarded: &Guarded, lease: Duration) -> Value {
    json!({
        "gates": texts(&guarded.gates),
        "endpoints": texts(&gates::endpoints(&guarded.gates)),
        "guarded": true,
        "lease_ms": millis(lease),
        "notes": guarded.notes,
    })
}

/// The line of `gate guard --off`.
#[must_use]
pub fn unguarded(unguarded: &Unguarded) -> String {
    let gates = list(&unguarded.gates);
    match (unguarded.gates.is_empty(), unguarded.already) {
        (true, _) => "no such gate was guarded\n".to_owned(),
        (false, true) => format!("{gates}: was not guarded\n"),
        (false, false) => format!(
            "{gates}: not guarded; {}\n",
            released_text(&unguarded.released)
        ),
    }
}

/// The JSON of the same.
#[must_use]
pub fn unguarded_json(unguarded: &Unguarded) -> Value {
    let mut value = released_json(&unguarded.released);
    value["gates"] = json!(texts(&unguarded.gates));
    value["endpoints"] = json!(texts(&gates::endpoints(&unguarded.gates)));
    value["guarded"] = json!(false);
    value["already"] = json!(unguarded.already);
    value
}

/// One line of `gate guard --watch`.
#[must_use]
pub fn guard_event(event: &Event) -> String {
    match event {
        Event::Missing { endpoint, lease } => format!(
            "{endpoint}: nothing listens; holding new connections, for {} at the most",
            humantime::format_duration(*lease)
        ),
        Event::Back {
            endpoint,
            after,
            released,
        } => format!(
            "{endpoint}: a socket listens again, after {}; {}",
            span(*after),
            released_text(released)
        ),
        Event::Over { endpoint, lease } => format!(
            "{endpoint}: nothing has listened for {}; new connections are refused",
            humantime::format_duration(*lease)
        ),
    }
}

/// The JSON of the same.
#[must_use]
pub fn guard_event_json(event: &Event) -> Value {
    match event {
        Event::Missing { endpoint, lease } => json!({
            "event": "missing",
            "endpoint": endpoint.to_string(),
            "lease_ms": millis(*lease),
        }),
        Event::Back {
            endpoint,
            after,
            released,
        } => {
            let mut value = released_json(released);
            value["event"] = json!("back");
            value["endpoint"] = json!(endpoint.to_string());
            value["missing_ms"] = json!(millis(*after));
            value
        }
        Event::Over { endpoint, lease } => json!({
            "event": "lease_over",
            "endpoint": endpoint.to_string(),
            "lease_ms": millis(*lease),
        }),
    }
}

/// The last line of `gate guard --watch`.
#[must_use]
pub fn watched(guarded: &Guarded, end: End) -> String {
    let gates = list(&guarded.gates);
    match end {
        End::Signal(_) => format!("{gates}: watched no more; still guarded\n"),
        End::Unguarded => format!("{gates}: not guarded any more\n"),
    }
}

/// The JSON of the same.
#[must_use]
pub fn watched_json(guarded: &Guarded, end: End) -> Value {
    let signal = match end {
        End::Signal(signal) => Some(signal),
        End::Unguarded => None,
    };
    json!({
        "event": "end",
        "gates": texts(&guarded.gates),
        "guarded": signal.is_some(),
        "signal": signal,
    })
}
