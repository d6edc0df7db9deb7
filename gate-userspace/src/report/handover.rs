//! What `gate handover` says.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::{Value, json};

use super::{connections, list, millis, span, texts};
use crate::endpoint::Endpoint;
use crate::handover::{Finished, Handed, Part, hook_name};

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

fn parts(parts: &[Part]) -> String {
    let process = |part: &Part| {
        let process = part.process.as_ref()?;
        Some(format!("{}, pid {}", process.name, process.id))
    };
    let given = parts.iter().map(|part| Given {
        backend: part.backend,
        weight: part.weight,
        is_own: part.is_own,
        more: process(part),
    });
    to_whom(&given.collect::<Vec<_>>())
}

/// One that gets a part of the new connections.
pub(super) struct Given {
    pub backend: Endpoint,
    pub weight: u32,
    pub is_own: bool,
    pub more: Option<String>,
}

/// The backends with their parts: `127.0.0.1:8082 (9 in 10, nginx, pid 12)`.
pub(super) fn to_whom(all: &[Given]) -> String {
    let total: u32 = all.iter().map(|it| it.weight).sum();
    let words = |given: &Given| {
        let part = (all.len() > 1).then(|| format!("{} in {total}", given.weight));
        let own = given.is_own.then(|| "its own listener".to_owned());
        let about: Vec<String> = [part, own, given.more.clone()]
            .into_iter()
            .flatten()
            .collect();
        match about.is_empty() {
            true => given.backend.to_string(),
            false => format!("{} ({})", given.backend, about.join(", ")),
        }
    };
    let words: Vec<String> = all.iter().map(words).collect();
    words.join(" and ")
}

/// The line on what became of those who get no new connections any more.
#[must_use]
pub fn finished(handed: &Handed, finished: &Finished) -> String {
    let left = list(&handed.left);
    match finished {
        Finished::NobodyLeft | Finished::StillGiven(_) => String::new(),
        Finished::Remaining(drained) => format!(
            "{left}: {} left after {}; the command did not run\n",
            connections(drained.left.connections.len()),
            span(drained.waited)
        ),
        Finished::Ran(drained, status) => {
            let waited = match drained.before {
                0 => "had no connection".to_owned(),
                _ => format!("empty after {}", span(drained.waited)),
            };
            format!("{left}: {waited}; the command {}\n", ended(*status))
        }
    }
}

/// The one line of cause and remedy where the command did not run, or failed.
#[must_use]
pub fn finish_complaint(handed: &Handed, finished: &Finished, timeout: Duration) -> Option<String> {
    let left = list(&handed.left);
    match finished {
        Finished::NobodyLeft => Some(
            "new connections went there already, so --then has nobody to wait for: `gate drain \
             --backend ADDR` waits for whoever had them before; the command did not run"
                .to_owned(),
        ),
        Finished::StillGiven(gates) => Some(format!(
            "{left} still gets new connections by {}: hand those over as well, then wait with `gate \
             drain --backend {}`; the command did not run",
            list(gates),
            texts(&handed.left).join(",")
        )),
        Finished::Remaining(drained) => Some(format!(
            "{} of {left} did not end within --timeout {}: new connections stay where they go; wait \
             on with `gate drain --backend {}`",
            connections(drained.left.connections.len()),
            humantime::format_duration(timeout),
            texts(&handed.left).join(",")
        )),
        Finished::Ran(_, status) if status.success() => None,
        Finished::Ran(_, status) => Some(format!("the command {}", ended(*status))),
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "is done".to_owned(),
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// The JSON of `gate handover`.
#[must_use]
pub fn handed_json(handed: &Handed, finished: Option<&Finished>) -> Value {
    json!({
        "then": finished.map(finished_json),
        "gate": handed.gate.to_string(),
        "hook": handed.hook.map(hook_name),
        "to": handed.now.iter().map(part_json).collect::<Vec<_>>(),
        "left": texts(&handed.left),
        "already": handed.already,
        "notes": handed.notes,
    })
}

fn finished_json(finished: &Finished) -> Value {
    let (drained, status) = match finished {
        Finished::NobodyLeft | Finished::StillGiven(_) => (None, None),
        Finished::Remaining(drained) => (Some(drained), None),
        Finished::Ran(drained, status) => (Some(drained), Some(status)),
    };
    json!({
        "drained_ms": drained.map(|it| millis(it.waited)),
        "remaining": drained.map(|it| it.left.connections.len()),
        "ran": status.is_some(),
        "exit_code": status.and_then(ExitStatus::code),
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
