//! What `gate status` shows.

use std::collections::BTreeMap;
use std::time::Duration;

use gate_common::abi::{Counter, GateStats};
use serde_json::{Map, Value, json};

use super::alias::{status_port, status_ports_json};
use super::attach::{hooks_json, hooks_text};
use super::handover::{Given, to_whom};
use super::{list, millis, span, table, texts};
use crate::attach::{Attachment, By};
use crate::endpoint::Endpoint;
use crate::handover::{HandoverStatus, hook_name};
use crate::hooks::Hook;
use crate::status::{GateStatus, GuardStatus, Status};

/// The table of `gate status`.
#[must_use]
pub fn status(status: Option<&Status>) -> String {
    let Some(status) = status else {
        return "gate is not up in this network namespace\n".to_owned();
    };
    let mut text = String::new();
    for (ifindex, attachments) in by_interface(&status.attachments) {
        text += &interface_lines(ifindex, &attachments);
    }
    if status.is_temporary {
        text += "attached by `gate restart`; detached once it has ended and no gate is closed or guarded; \
             `gate up` makes it stay\n";
    }
    if status.attachments.is_empty() {
        text += "no interface is attached: `gate up INTERFACE`\n";
    }
    if status.gates.is_empty() {
        return text + "no gate was defined or closed yet\n";
    }
    let mut rows = vec![
        [
            "gate", "mode", "lease", "held", "longest", "passed", "released", "dropped", "rejected",
        ]
        .map(str::to_owned),
    ];
    rows.extend(status.gates.iter().map(row));
    text += "\n";
    text += &table(&rows);
    let named = status.gates.iter().filter_map(members);
    let allowed = status.gates.iter().filter_map(allowed);
    let missing = status.gates.iter().flat_map(missing);
    let handed = status.gates.iter().filter_map(handed);
    let aliases = status.gates.iter().map(status_ports);
    let more: String = named
        .chain(handed)
        .chain(aliases)
        .chain(allowed)
        .chain(missing)
        .collect();
    match more.is_empty() {
        true => text,
        false => text + "\n" + &more,
    }
}

/// Who passes a closed gate.
fn allowed(gate: &GateStatus) -> Option<String> {
    let sources = list(&gate.allowed);
    (!sources.is_empty()).then(|| format!("{}: open to {sources}\n", gate.gate))
}

/// Who gets new connections instead of the gate's own listener.
fn handed(gate: &GateStatus) -> Option<String> {
    let handover = gate.handover.as_ref()?;
    let silent = "nothing listens there, so they go to its own listener";
    let given = handover.to.iter().map(|to| Given {
        backend: to.backend,
        weight: to.weight,
        is_own: to.is_own,
        more: (to.listening == Some(0)).then(|| silent.to_owned()),
    });
    let to = to_whom(&given.collect::<Vec<_>>());
    Some(format!("{}: new connections go to {to}\n", gate.gate))
}

/// By which other addresses it answers.
fn status_ports(gate: &GateStatus) -> String {
    let lines = gate.aliases.iter();
    let lines = lines.map(|(port, state)| status_port(&gate.gate, port, *state));
    lines.collect()
}

/// Where a guarded gate has no listener.
fn missing(gate: &GateStatus) -> Vec<String> {
    let Some(guard) = &gate.guard else {
        return Vec::new();
    };
    let line = |(endpoint, since): &(Endpoint, Duration)| {
        let (since, over) = (span(*since), *since >= guard.lease);
        let what = match over {
            true => "longer than the guard's lease, so new connections are refused",
            false => "new connections are held",
        };
        format!("{endpoint}: nothing listens, for {since}: {what}\n")
    };
    guard.missing.iter().map(line).collect()
}

/// What a name stands for.
fn members(gate: &GateStatus) -> Option<String> {
    let name = gate.gate.name.as_ref()?;
    Some(format!("{name}: {}\n", list(&gate.gate.endpoints)))
}

fn by_interface(attachments: &[Attachment]) -> BTreeMap<u32, Vec<&Attachment>> {
    let mut interfaces = BTreeMap::<u32, Vec<&Attachment>>::new();
    for attachment in attachments {
        let same = interfaces.entry(attachment.ifindex).or_default();
        same.push(attachment);
    }
    interfaces
}

fn live_hooks(attachments: &[&Attachment]) -> Vec<(Hook, By)> {
    let live = attachments
        .iter()
        .filter_map(|attachment| Some((attachment.hook?, attachment.by)));
    live.collect()
}

fn interface_lines(ifindex: u32, attachments: &[&Attachment]) -> String {
    let names = attachments.iter();
    let Some(name) = names.filter_map(|it| it.interface.as_ref()).next() else {
        return format!(
            "interface {ifindex} is gone from this network namespace: `gate up` on another, or \
             `gate down`\n"
        );
    };
    let mut lines = String::new();
    let hooks = live_hooks(attachments);
    if !hooks.is_empty() {
        lines += &format!("{name}: attached, {}\n", hooks_text(&hooks));
    }
    for lost in attachments.iter().filter(|it| !it.is_live()) {
        lines += &format!(
            "{name}: no longer attached, hook {}: `gate up {name}` attaches again\n",
            lost.slot.name()
        );
    }
    lines
}

fn row(gate: &GateStatus) -> [String; 9] {
    let count = |counters: &[Counter]| sum(&gate.stats, counters).to_string();
    let mut mode = match gate.expired {
        true => "open (lease over)".to_owned(),
        false => gate.mode.name().to_owned(),
    };
    if gate.guard.is_some() {
        mode += ", guarded";
    }
    let longest = match gate.waiting.held {
        0 => "-".to_owned(),
        _ => span(gate.waiting.longest),
    };
    [
        gate.gate.to_string(),
        mode,
        gate.lease.map_or("-".to_owned(), span),
        gate.waiting.held.to_string(),
        longest,
        count(&[Counter::Passed, Counter::Expired]),
        count(&[Counter::Released]),
        count(&[Counter::Dropped, Counter::Overflowed, Counter::Uncaptured]),
        count(&[Counter::Rejected]),
    ]
}

fn sum(stats: &GateStats, counters: &[Counter]) -> u64 {
    counters
        .iter()
        .map(|counter| stats.counts[*counter as usize])
        .sum()
}

fn handover_json(handover: &HandoverStatus) -> Value {
    let to = handover.to.iter().map(|to| {
        json!({
            "backend": to.backend.to_string(),
            "weight": to.weight,
            "own": to.is_own,
            "listening": to.listening,
        })
    });
    json!({ "hook": hook_name(handover.hook), "to": to.collect::<Vec<_>>() })
}

fn guard_json(guard: &GuardStatus) -> Value {
    let missing = guard.missing.iter().map(|(endpoint, since)| {
        json!({
            "endpoint": endpoint.to_string(),
            "missing_ms": millis(*since),
            "lease_over": *since >= guard.lease,
        })
    });
    json!({
        "lease_ms": millis(guard.lease),
        "missing": missing.collect::<Vec<_>>(),
    })
}

/// The JSON of `gate status`.
#[must_use]
pub fn status_json(status: Option<&Status>) -> Value {
    let Some(status) = status else {
        return json!({ "up": false });
    };
    let interfaces: Vec<Value> = by_interface(&status.attachments)
        .into_iter()
        .map(|(ifindex, attachments)| {
            let lost = attachments
                .iter()
                .filter(|attachment| !attachment.is_live());
            json!({
                "ifindex": ifindex,
                "name": attachments.iter().find_map(|it| it.interface.as_ref()),
                "hooks": hooks_json(&live_hooks(&attachments)),
                "lost": lost.map(|attachment| attachment.slot.name()).collect::<Vec<_>>(),
            })
        })
        .collect();
    let gates: Vec<Value> = status
        .gates
        .iter()
        .map(|gate| {
            let counters: Map<String, Value> = Counter::ALL
                .iter()
                .filter(|(counter, _)| *counter != Counter::Unparsed)
                .map(|(counter, name)| {
                    let count = gate.stats.counts[*counter as usize];
                    ((*name).to_owned(), json!(count))
                })
                .collect();
            json!({
                "gate": gate.gate.to_string(),
                "name": gate.gate.name.as_ref().map(ToString::to_string),
                "endpoints": texts(&gate.gate.endpoints),
                "aliases": status_ports_json(&gate.aliases),
                "mode": gate.mode.name(),
                "lease_over": gate.expired,
                "lease_ms": gate.lease.map(millis),
                "allowed": texts(&gate.allowed),
                "handover": gate.handover.as_ref().map(handover_json),
                "guard": gate.guard.as_ref().map(guard_json),
                "held": gate.waiting.held,
                "longest_wait_ms": millis(gate.waiting.longest),
                "counters": counters,
            })
        })
        .collect();
    json!({
        "up": true,
        "interfaces": interfaces,
        "temporary": status.is_temporary,
        "gates": gates,
        "held_max": status.held_max,
        "unparsed": status.unparsed,
    })
}
