//! What `gate open` says.

use serde_json::{Value, json};

use super::{connections, list, millis, span};
use crate::open::Opened;
use crate::release::Released;

/// The lines of `gate open`. What [`Opened::over`] says goes to stderr.
#[must_use]
pub fn opened(opened: &Opened) -> String {
    let gates = list(&opened.gates);
    let mut text = match (&opened.released, &opened.over) {
        (None, Some(_)) => String::new(),
        (None, None) if opened.gates.is_empty() => "no gate was closed\n".to_owned(),
        (None, None) => format!("{gates}: open already\n"),
        (Some(released), Some(_)) if released.injected == 0 => String::new(),
        (Some(released), _) => format!("{gates}: open; {}\n", released_text(released)),
    };
    text.extend(opened.note.iter().map(|note| format!("{note}\n")));
    text
}

/// The JSON of the same.
#[must_use]
pub fn opened_json(opened: &Opened) -> Value {
    let mut value = released_json(&opened.released.unwrap_or_default());
    value["gates"] = json!(opened.gates);
    value["notes"] = json!(opened.note.iter().collect::<Vec<_>>());
    value["already"] = json!(opened.released.is_none() && opened.over.is_none());
    value["lease_over"] = json!(opened.over.is_some());
    value
}

pub(super) fn released_text(released: &Released) -> String {
    let mut text = match (released.injected, released.guarded) {
        (0, 0) => "no connection was held".to_owned(),
        (0, _) => "nothing listens".to_owned(),
        (count, _) => format!(
            "{} held, now released; the longest waited {}",
            connections(count),
            span(released.longest_wait)
        ),
    };
    if released.guarded > 0 {
        text += &format!(
            "; {} held on by the guard, until a socket listens",
            connections(released.guarded)
        );
    }
    if released.damaged > 0 {
        text += &format!("; {} dropped with a wrong checksum", released.damaged);
    }
    if released.gone > 0 {
        text += &format!(
            "; {} dropped: their interface is gone or full, or a firewall refused them",
            released.gone
        );
    }
    if released.left > 0 {
        text += &format!(
            "; {} left to their clients, which send again: the listener took no more, or another \
             command changed the gate",
            released.left
        );
    }
    text
}

/// The JSON of a release.
#[must_use]
pub fn released_json(released: &Released) -> Value {
    json!({
        "released": released.injected,
        "damaged": released.damaged,
        "interface_gone": released.gone,
        "guarded": released.guarded,
        "left": released.left,
        "longest_wait_ms": millis(released.longest_wait),
    })
}
