//! What `gate status` shows.

use std::collections::BTreeMap;

use gate_common::abi::{Counter, GateStats};
use serde_json::{Map, Value, json};

use super::attach::{hooks_json, hooks_text};
use super::{list, millis, span, table, texts};
use crate::attach::{Attachment, By};
use crate::hooks::Hook;
use crate::status::{GateStatus, Status};

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
        text +=
            "attached by `gate restart`, which detaches when it ends; `gate up` makes it stay\n";
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
    let more: String = named.chain(allowed).collect();
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
    let mode = match gate.expired {
        true => "open (lease over)".to_owned(),
        false => gate.mode.name().to_owned(),
    };
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
                "mode": gate.mode.name(),
                "lease_over": gate.expired,
                "lease_ms": gate.lease.map(millis),
                "allowed": texts(&gate.allowed),
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
