//! What `gate hold`, `drop` and `reject` say.

use std::time::Duration;

use gate_common::state::Mode;
use serde_json::{Value, json};

use super::{millis, texts};
use crate::gates::{self, Gate};

/// A line for each gate, and the notes.
#[must_use]
pub fn closed(closed: &[Gate], mode: Mode, lease: Duration, notes: &[String]) -> String {
    let (mode, lease) = (mode.name(), humantime::format_duration(lease));
    let lines = closed
        .iter()
        .map(|gate| format!("{gate}: {mode} for {lease}\n"));
    let notes = notes.iter().map(|note| format!("{note}\n"));
    lines.chain(notes).collect()
}

/// The JSON of the same.
#[must_use]
pub fn closed_json(closed: &[Gate], mode: Mode, lease: Duration, notes: &[String]) -> Value {
    json!({
        "gates": texts(closed),
        "endpoints": texts(&gates::endpoints(closed)),
        "mode": mode.name(),
        "lease_ms": millis(lease),
        "notes": notes,
    })
}
