//! What `gate hold`, `drop` and `reject` say.

use serde_json::{Value, json};

use super::{millis, texts};
use crate::close::Closing;
use crate::gates;

/// A line for each gate, and the notes.
#[must_use]
pub fn closed(closing: &Closing) -> String {
    let mode = closing.mode.name();
    let lease = humantime::format_duration(closing.lease);
    let lines = closing.gates.iter();
    let lines = lines.map(|gate| format!("{gate}: {mode} for {lease}\n"));
    let notes = closing.notes.iter().map(|note| format!("{note}\n"));
    lines.chain(notes).collect()
}

/// The JSON of the same.
#[must_use]
pub fn closed_json(closing: &Closing) -> Value {
    json!({
        "gates": texts(&closing.gates),
        "endpoints": texts(&gates::endpoints(&closing.gates)),
        "mode": closing.mode.name(),
        "lease_ms": millis(closing.lease),
        "notes": closing.notes,
    })
}
