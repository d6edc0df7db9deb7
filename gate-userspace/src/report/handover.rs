//! What `gate handover` says.

use serde_json::{Value, json};

use super::texts;
use crate::handover::{Handed, Part, hook_name};

/// The lines of `gate handover`.
#[must_use]
pub fn handed(handed: &Handed) -> String {
    let gate = &handed.gate;
    let mut lines = match (handed.hook, handed.already) {
        (None, true) => format!("{gate}: new connections go to its own listener already\n"),
        (None, false) => format!("{gate}: new connections go to its own listener again\n"),
        (Some(_), _) => format!("{gate}: new connections go to {}\n", parts(&handed.now)),
    };
    for note in &handed.notes {
        lines += &format!("{note}\n");
    }
    lines
}

/// The backends with their parts: `127.0.0.1:8082 (9 in 10, nginx, pid 12)`.
#[must_use]
pub fn parts(parts: &[Part]) -> String {
    let total: u32 = parts.iter().map(|part| part.weight).sum();
    let words = |part: &Part| {
        let mut about = Vec::new();
        if parts.len() > 1 {
            about.push(format!("{} in {total}", part.weight));
        }
        if part.is_own {
            about.push("its own listener".to_owned());
        }
        if let Some(process) = &part.process {
            about.push(format!("{}, pid {}", process.name, process.id));
        }
        match about.is_empty() {
            true => part.backend.to_string(),
            false => format!("{} ({})", part.backend, about.join(", ")),
        }
    };
    let words: Vec<String> = parts.iter().map(words).collect();
    words.join(" and ")
}

/// The JSON of `gate handover`.
#[must_use]
pub fn handed_json(handed: &Handed) -> Value {
    json!({
        "gate": handed.gate.to_string(),
        "hook": handed.hook.map(hook_name),
        "to": handed.now.iter().map(part_json).collect::<Vec<_>>(),
        "left": texts(&handed.left),
        "already": handed.already,
        "notes": handed.notes,
    })
}

fn part_json(part: &Part) -> Value {
    json!({
        "backend": part.backend.to_string(),
        "weight": part.weight,
        "own": part.is_own,
        "process": part.process.as_ref().map(|it| json!({ "pid": it.id, "name": it.name })),
    })
}
