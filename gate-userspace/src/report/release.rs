//! What `gate open` says.

use std::fmt::Display;

use serde_json::{Value, json};

use super::{connections, list, millis, span};
use crate::release::Released;

/// The line of `gate open` where nothing was to be done.
#[must_use]
pub fn already_open(gates: &[impl Display]) -> String {
    format!("{}: open already\n", list(gates))
}

/// The line of `gate open` about what was released.
#[must_use]
pub fn opened(gates: &[impl Display], released: &Released) -> String {
    format!("{}: open; {}\n", list(gates), released_text(released))
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
