//! What `gate plan` and `gate apply` say.

use std::time::Duration;

use serde_json::{Value, json};

use super::{count, list, texts};
use crate::config::{Applied, Awaited, BackendConfig, Change, Plan};

/// The lines of `gate plan`: what would be done, waited for, and what stands in the way.
#[must_use]
pub fn planned(plan: &Plan) -> String {
    let mut text = lines(&plan.changes, &plan.awaited, &plan.notes);
    for obstacle in &plan.obstacles {
        text += &format!("! {obstacle}\n");
    }
    if plan.changes.is_empty() && plan.obstacles.is_empty() {
        text += "nothing to change\n";
    }
    text
}

/// The JSON of `gate plan`.
#[must_use]
pub fn planned_json(plan: &Plan) -> Value {
    let mut fields = fields(&plan.changes, &plan.awaited, &plan.notes);
    fields["obstacles"] = json!(texts(&plan.obstacles));
    fields
}

/// The lines of `gate apply`.
#[must_use]
pub fn applied(applied: &Applied) -> String {
    let mut text = lines(&applied.changes, &applied.awaited, &applied.notes);
    text += &match applied.changes.len() {
        0 => "all was so already\n".to_owned(),
        changes => format!("{} made\n", count(changes, "change")),
    };
    text
}

/// The JSON of `gate apply`.
#[must_use]
pub fn applied_json(applied: &Applied) -> Value {
    fields(&applied.changes, &applied.awaited, &applied.notes)
}

fn lines(changes: &[Change], awaited: &[Awaited], notes: &[String]) -> String {
    let mut text = String::new();
    for change in changes {
        let (sign, words) = words(change);
        text += &format!("{sign} {words}\n");
    }
    for it in awaited {
        text += &format!("? waits for {it}\n");
    }
    for note in notes {
        text += &format!("  {note}\n");
    }
    text
}

fn fields(changes: &[Change], awaited: &[Awaited], notes: &[String]) -> Value {
    let change = |it: &Change| {
        let (sign, words) = words(it);
        let mut fields = json!({ "sign": sign, "what": what(it), "text": words });
        if let Some(gate) = gate(it) {
            fields["gate"] = json!(gate);
        }
        if let Some(interface) = interface(it) {
            fields["interface"] = json!(interface);
        }
        fields
    };
    json!({
        "changes": changes.iter().map(change).collect::<Vec<_>>(),
        "awaited": texts(awaited),
        "notes": notes,
    })
}

/// `+` for what comes, `-` for what goes, `~` for what changes; and the change in words.
fn words(change: &Change) -> (&'static str, String) {
    match change {
        Change::Attach(target) => {
            let hook = target.hook.name();
            ("+", format!("attach {} ({hook})", target.interface))
        }
        Change::Keep { interface } => (
            "~",
            format!("keep {interface} attached, after the restart that did it"),
        ),
        Change::Define {
            gate,
            endpoints,
            before: None,
        } => {
            let all: Vec<_> = endpoints.iter().collect();
            ("+", format!("define {gate}: {}", list(&all)))
        }
        Change::Define {
            gate,
            endpoints,
            before: Some(before),
        } => {
            let come = endpoints.difference(before).map(|it| format!("+{it}"));
            let go = before.difference(endpoints).map(|it| format!("-{it}"));
            let all: Vec<_> = come.chain(go).collect();
            ("~", format!("define {gate}: {}", list(&all)))
        }
        Change::Adopt { gate } => (
            "~",
            format!("take {gate} over, which was defined so by hand"),
        ),
        Change::Guard {
            gate,
            lease,
            before: None,
        } => ("+", format!("guard {gate} for {}", time(*lease))),
        Change::Guard {
            gate,
            lease,
            before: Some(before),
        } => {
            let (lease, before) = (time(*lease), time(*before));
            ("~", format!("guard {gate} for {lease}, not {before}"))
        }
        Change::Unguard { gate, .. } => ("-", format!("guard {gate} no more")),
        Change::HandOver { gate, to, again } => {
            let sign = if *again { "~" } else { "+" };
            (sign, format!("hand {gate} over to {}", backends(to)))
        }
        Change::HandBack { gate } => ("-", format!("hand {gate} back to its own listener")),
        Change::Forget { gate } => {
            let all = list(&gate.endpoints);
            ("-", format!("forget {gate}, with {all}"))
        }
        Change::Detach { interface, .. } => ("-", format!("detach {interface}")),
    }
}

fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn backends(to: &[BackendConfig]) -> String {
    let one = |it: &BackendConfig| format!("{} ({})", it.address, it.weight);
    to.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// One word for machines.
fn what(change: &Change) -> &'static str {
    match change {
        Change::Attach(_) => "attach",
        Change::Keep { .. } => "keep",
        Change::Define { .. } => "define",
        Change::Adopt { .. } => "adopt",
        Change::Guard { .. } => "guard",
        Change::Unguard { .. } => "unguard",
        Change::HandOver { .. } => "hand over",
        Change::HandBack { .. } => "hand back",
        Change::Forget { .. } => "forget",
        Change::Detach { .. } => "detach",
    }
}

fn gate(change: &Change) -> Option<String> {
    match change {
        Change::Define { gate, .. }
        | Change::Adopt { gate }
        | Change::Guard { gate, .. }
        | Change::Unguard { gate, .. }
        | Change::HandOver { gate, .. }
        | Change::HandBack { gate } => Some(gate.to_string()),
        Change::Forget { gate } => Some(gate.to_string()),
        Change::Attach(_) | Change::Keep { .. } | Change::Detach { .. } => None,
    }
}

fn interface(change: &Change) -> Option<&str> {
    match change {
        Change::Attach(target) => Some(&target.interface),
        Change::Keep { interface } | Change::Detach { interface, .. } => Some(interface),
        _ => None,
    }
}
