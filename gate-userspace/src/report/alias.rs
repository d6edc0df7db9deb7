//! What `gate alias`, `soft-stop` and `soft-start` say.

use serde_json::{Value, json};

use super::{list, texts};
use crate::alias::{Added, Kind, Removed, Softened, State, StatusPort};
use crate::gates::Gate;

/// The line of `gate alias`, and the notes.
#[must_use]
pub fn aliased(added: &Added) -> String {
    let StatusPort { at, of, kind, .. } = added.port;
    let gate = &added.gate;
    let mut text = match kind {
        Kind::Alias => format!("{gate}: {at} answers with the listener of {of}"),
        Kind::Existing => format!("{gate}: {at} is its status port"),
    };
    if added.port.is_withdrawn {
        text += &format!("; withdrawn: `gate soft-start {gate}` brings it back");
    }
    if added.already {
        text += "; so already";
    }
    text += "\n";
    text.extend(added.notes.iter().map(|note| format!("{note}\n")));
    text
}

/// The JSON of the same.
#[must_use]
pub fn aliased_json(added: &Added) -> Value {
    let port = added.port;
    json!({
        "gate": added.gate.to_string(),
        "alias": port.at.to_string(),
        "of": of(&port),
        "existing": port.kind == Kind::Existing,
        "withdrawn": port.is_withdrawn,
        "already": added.already,
        "notes": added.notes,
    })
}

/// The line of `gate alias --remove`.
#[must_use]
pub fn unaliased(removed: &Removed) -> String {
    let Removed { gate, at, already } = removed;
    match already {
        true => format!("{gate}: {at} was no status port\n"),
        false => format!("{gate}: {at} is no status port any more\n"),
    }
}

/// The JSON of the same.
#[must_use]
pub fn unaliased_json(removed: &Removed) -> Value {
    json!({
        "gate": removed.gate,
        "alias": removed.at.to_string(),
        "removed": true,
        "already": removed.already,
    })
}

/// A line for each gate.
#[must_use]
pub fn softened(softened: &Softened) -> String {
    let line = |gate: &Gate| {
        let ports: Vec<_> = gate.aliases.iter().map(|port| port.at).collect();
        let (ports, are_many) = (list(&ports), ports.len() > 1);
        let is_stopped = gate.aliases.iter().all(|port| port.is_withdrawn);
        let what = match (is_stopped, are_many) {
            (true, true) => "are refused",
            (true, false) => "is refused",
            (false, true) => "answer",
            (false, false) => "answers",
        };
        let already = if softened.already { " already" } else { "" };
        format!("{gate}: {ports} {what}{already}\n")
    };
    softened.gates.iter().map(line).collect()
}

/// The JSON of the same.
#[must_use]
pub fn softened_json(softened: &Softened) -> Value {
    let ports = softened.gates.iter().flat_map(|gate| &gate.aliases);
    let withdrawn = ports.clone().all(|port| port.is_withdrawn);
    let ports: Vec<_> = ports.map(|port| port.at).collect();
    json!({
        "gates": texts(&softened.gates),
        "aliases": texts(&ports),
        "withdrawn": withdrawn,
        "already": softened.already,
    })
}

/// A line of `gate status`.
pub(super) fn status_port(gate: &Gate, port: &StatusPort, state: State) -> String {
    let StatusPort { at, of, .. } = port;
    let what = match (state, port.kind) {
        (State::Answers, Kind::Alias) => format!("answers for {of}"),
        (State::Answers, Kind::Existing) => "answers by itself".to_owned(),
        (State::Withdrawn, _) => {
            format!("withdrawn, so refused: `gate soft-start {gate}` brings it back")
        }
        (State::Silent, Kind::Alias) => format!("refused: nothing listens at {of}"),
        (State::Silent, Kind::Existing) => "refused: nothing listens there".to_owned(),
        (State::Stale, _) => {
            format!("refused: {of} has a new listener, which `gate soft-start {gate}` makes known")
        }
    };
    format!("{gate}: status port {at}: {what}\n")
}

/// The JSON of the same.
pub(super) fn status_ports_json(ports: &[(StatusPort, State)]) -> Vec<Value> {
    let json = |(port, state): &(StatusPort, State)| {
        json!({
            "alias": port.at.to_string(),
            "of": of(port),
            "existing": port.kind == Kind::Existing,
            "state": state.name(),
        })
    };
    ports.iter().map(json).collect()
}

fn of(port: &StatusPort) -> Option<String> {
    (port.kind == Kind::Alias).then(|| port.of.to_string())
}
