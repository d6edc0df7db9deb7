//! What `gate define` and `gate forget` say.

use serde_json::{Value, json};

use super::{list, texts};
use crate::gates::{Defined, Gate};

/// The line of `gate define`.
#[must_use]
pub fn defined(defined: &Defined) -> String {
    let gate = &defined.gate;
    let mut line = format!("{gate}: {}", list(&gate.endpoints));
    if defined.already {
        line += "; defined so already";
    }
    if !defined.dropped.is_empty() {
        line += &format!("; without {} from now on", list(&defined.dropped));
    }
    line + "\n"
}

/// The JSON of `gate define`.
#[must_use]
pub fn defined_json(defined: &Defined) -> Value {
    json!({
        "gate": defined.gate.to_string(),
        "endpoints": texts(&defined.gate.endpoints),
        "already": defined.already,
        "dropped": texts(&defined.dropped),
    })
}

/// The line of `gate forget`.
#[must_use]
pub fn forgotten(gate: &Gate) -> String {
    let mut line = format!("{gate}: forgotten, with {}", list(&gate.endpoints));
    if !gate.aliases.is_empty() {
        let ports: Vec<_> = gate.aliases.iter().map(|port| port.at).collect();
        line += &format!(", and with its status port {}", list(&ports));
    }
    line + "\n"
}

/// The JSON of `gate forget`.
#[must_use]
pub fn forgotten_json(gate: &Gate) -> Value {
    json!({ "gate": gate.to_string(), "endpoints": texts(&gate.endpoints) })
}
