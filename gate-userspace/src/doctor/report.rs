//! What people and machines read of the findings.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Examined, Findings, Load, Other, Verdict};
use crate::attach::By;
use crate::features::{Found, Need, State};
use crate::hooks::{Hook, Plan};
use crate::interfaces::Kind;
use crate::pins::BPFFS;
use crate::rights;

/// Columns of a line.
const WIDTH: usize = 100;

/// The lines for people.
#[must_use]
pub fn words(findings: &Findings) -> String {
    let mut text = format!("Linux {}\n", findings.host.release);
    text += "\nMay gate work here?\n";
    for (what, how) in access(findings) {
        text += &wrapped(&format!("  {what:<10} "), &how);
    }
    text += "\nWhat does this kernel have? (tried by calls; with the version that brought it)\n";
    for found in &findings.features {
        text += &feature(found);
    }
    text += "\nWhere would `gate up` attach?\n";
    text += &interfaces(findings);
    text += "\nWhat will degrade, and how?\n";
    let limits = findings.limits();
    if limits.is_empty() {
        text += match findings.verdict() {
            Verdict::Works | Verdict::Limited => "  nothing\n",
            Verdict::Impossible | Verdict::Unknown => "  nothing else, as far as it was tried\n",
        };
    }
    for limit in &limits {
        text += &wrapped("  - ", limit);
    }
    text += "\nGood to know\n";
    for note in findings.notes() {
        text += &wrapped("  - ", &note);
    }
    text + "\n" + &wrapped("", &verdict(findings))
}

/// The last line.
fn verdict(findings: &Findings) -> String {
    match findings.verdict() {
        Verdict::Works => "gate works here".to_owned(),
        Verdict::Limited => match findings.limits().len() {
            1 => "gate works here, with 1 limit".to_owned(),
            count => format!("gate works here, with {count} limits"),
        },
        Verdict::Impossible => {
            let obstacles = findings.obstacles();
            let more = match obstacles.len() {
                0 | 1 => String::new(),
                count => format!(" (and {} more, above)", count - 1),
            };
            let first = obstacles.into_iter().next().unwrap_or_default();
            format!("gate does not work here: {first}{more}")
        }
        Verdict::Unknown => {
            let why = findings.unasked().unwrap_or_default();
            format!("whether gate works here can't be told: {why}")
        }
    }
}

fn access(findings: &Findings) -> [(&'static str, String); 3] {
    let rights = match findings.missing_rights.as_slice() {
        [] => format!("yes: {}", rights::NEEDED.join(", ")),
        missing => format!(
            "no: missing {}; without them nothing can be held",
            missing.join(", ")
        ),
    };
    let bpffs = match &findings.pins {
        None => format!("yes: {BPFFS}"),
        Some(problem) => format!("no: {problem}{}", elsewhere(findings)),
    };
    let programs = match &findings.load {
        Load::Loads(count) => format!("yes: the verifier takes all {count}"),
        Load::Refused(reason) => format!("no: {reason}"),
        Load::Forbidden => "no: bpf(2) is refused to this process".to_owned(),
        Load::Untried => "not tried, for what is missing".to_owned(),
    };
    [("rights", rights), ("bpffs", bpffs), ("programs", programs)]
}

fn elsewhere(findings: &Findings) -> String {
    let others = findings.host.bpffs.iter();
    let others: Vec<String> = others
        .filter(|path| *path != BPFFS)
        .map(|path| path.display().to_string())
        .collect();
    match others.is_empty() {
        true => String::new(),
        false => format!("; the one at {} is not used", others.join(", ")),
    }
}

fn feature(Found { feature, state }: &Found) -> String {
    let (state, why) = match (state, feature.need) {
        (State::Present, _) => ("yes", String::new()),
        (State::Absent, Need::Required) => ("no", "gate needs it".to_owned()),
        (State::Absent, Need::Wanted(_)) => ("no", "see below".to_owned()),
        (State::Absent, Need::Replaceable(_)) => ("no", "gate does without".to_owned()),
        (State::Forbidden, _) => ("?", "this process may not try it".to_owned()),
        (State::Unknown(errno), _) => (
            "?",
            format!("it fails: {}", std::io::Error::from_raw_os_error(*errno)),
        ),
        (State::Unneeded, _) => ("-", "not needed here".to_owned()),
    };
    let line = format!(
        "  {state:<4} {:<30} {:<5} {why}",
        feature.name, feature.since
    );
    line.trim_end().to_owned() + "\n"
}

fn interfaces(findings: &Findings) -> String {
    let rows: Vec<[String; 5]> = findings
        .interfaces
        .iter()
        .map(|one| row(one, findings.tc()))
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3)];
    let mut text = String::new();
    for (one, [name, kind, state, mtu, hook]) in findings.interfaces.iter().zip(&rows) {
        let [a, b, c, d] = widths;
        let start = format!("  {name:<a$}  {kind:<b$}  {state:<c$}  {mtu:<d$}  ");
        text += &wrapped(&start, hook);
        for note in notes(one) {
            text += &wrapped(&format!("  {:a$}  - ", ""), &note);
        }
    }
    text
}

fn row(one: &Examined, tc: Option<By>) -> [String; 5] {
    let interface = &one.interface;
    let state = if interface.is_up { "up" } else { "down" };
    let hook = match (&one.plan, one.is_attached()) {
        (_, true) => format!("attached, {}", attached(one)),
        (Ok(plan), false) => planned(plan, one.native_xdp, tc),
        (Err(_), false) => "none".to_owned(),
    };
    [
        interface.name.clone(),
        kind(interface.kind).to_owned(),
        state.to_owned(),
        format!("MTU {}", interface.mtu),
        hook,
    ]
}

fn attached(one: &Examined) -> String {
    let by = one.attached.iter().flatten().map(|(_, by)| *by).next();
    named(&one.hooks(), by)
}

fn planned(plan: &Plan, native: Option<bool>, tc: Option<By>) -> String {
    match (&plan.fallback, native) {
        (Some(fallback), Some(false)) => named(fallback, tc),
        (Some(fallback), _) => format!(
            "{}, or {} where the driver refuses that",
            named(&plan.hooks, tc),
            named(fallback, tc)
        ),
        (None, _) => named(&plan.hooks, tc),
    }
}

/// `tc-ingress, tc-egress (tcx)`.
fn named(hooks: &[Hook], by: Option<By>) -> String {
    let names: Vec<String> = hooks.iter().map(ToString::to_string).collect();
    let is_tc = hooks.iter().any(|hook| matches!(hook, Hook::Tc(_)));
    match by.filter(|_| is_tc) {
        Some(by) => format!("{} ({})", names.join(", "), by.name()),
        None => names.join(", "),
    }
}

fn notes(one: &Examined) -> Vec<String> {
    let name = &one.interface.name;
    let mut notes: Vec<String> = one
        .others
        .iter()
        .map(|other| occupant(one, other))
        .collect();
    match &one.plan {
        Err(reason) => notes.push(reason.clone()),
        Ok(_) if one.is_attached() => {}
        Ok(plan) => {
            notes.extend(
                plan.reason
                    .iter()
                    .map(|reason| format!("not xdp: {reason}")),
            );
            notes.extend(one.native_xdp.map(|native| match native {
                true => "its driver says that it has native XDP".to_owned(),
                false => "not xdp: its driver tells of no native XDP".to_owned(),
            }));
        }
    }
    if one.strips_tags {
        notes.push(format!(
            "it takes VLAN tags off before XDP sees them: where clients come by a VLAN, `ethtool \
             -K {name} rxvlan off`, or `--hook tc-ingress`"
        ));
    }
    notes
}

fn occupant(one: &Examined, other: &Other) -> String {
    let whose = match one.attached {
        Some(_) => "another's program",
        None => "a program, gate's or another's,",
    };
    format!(
        "{whose} is at {}: {} (id {})",
        named(&[other.hook], Some(other.by)),
        other.name,
        other.id
    )
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Loopback => "loopback",
        Kind::Nic => "nic",
        Kind::Veth => "veth",
        Kind::Bridge => "bridge",
        Kind::Vlan => "vlan",
        Kind::Virtual => "virtual",
    }
}

/// A paragraph that begins with `start`, and goes on below its end.
fn wrapped(start: &str, text: &str) -> String {
    let indent = start.chars().count();
    let mut lines = start.to_owned();
    let mut column = indent;
    for (index, word) in text.split_whitespace().enumerate() {
        let len = word.chars().count();
        if index > 0 && column + 1 + len > WIDTH {
            let _infallible = write!(lines, "\n{:indent$}", "");
            column = indent;
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines += word;
        column += len;
    }
    lines + "\n"
}

/// The JSON.
#[must_use]
pub fn json(findings: &Findings) -> Value {
    let verdict_text = verdict(findings);
    let verdict = findings.verdict();
    let host = &findings.host;
    json!({
        "works": match verdict {
            Verdict::Works | Verdict::Limited => Some(true),
            Verdict::Impossible => Some(false),
            Verdict::Unknown => None,
        },
        "verdict": verdict_text,
        "exit_code": verdict.exit_code(),
        "obstacles": findings.obstacles(),
        "limits": findings.limits(),
        "notes": findings.notes(),
        "release": host.release,
        "missing_rights": findings.missing_rights,
        "bpffs": {
            "usable": findings.pins.is_none(),
            "problem": findings.pins,
            "mounted": host.bpffs.iter().map(|it| it.display().to_string()).collect::<Vec<_>>(),
        },
        "programs_load": match findings.load {
            Load::Loads(_) => Some(true),
            Load::Refused(_) => Some(false),
            Load::Forbidden | Load::Untried => None,
        },
        "lockdown": host.lockdown,
        "syn_linear_timeouts": host.linear_syns,
        "features": findings.features.iter().map(feature_json).collect::<Vec<_>>(),
        "interfaces": findings
            .interfaces
            .iter()
            .map(|one| interface_json(one, findings.tc()))
            .collect::<Vec<_>>(),
    })
}

fn feature_json(Found { feature, state }: &Found) -> Value {
    let (state, errno) = match state {
        State::Present => ("present", None),
        State::Absent => ("absent", None),
        State::Forbidden => ("forbidden", None),
        State::Unknown(errno) => ("unknown", Some(*errno)),
        State::Unneeded => ("unneeded", None),
    };
    let without = match feature.need {
        Need::Required => None,
        Need::Wanted(without) | Need::Replaceable(without) => Some(without),
    };
    json!({
        "id": feature.id,
        "name": feature.name,
        "since": feature.since,
        "required": feature.need == Need::Required,
        "without": without,
        "state": state,
        "errno": errno,
    })
}

fn interface_json(one: &Examined, tc: Option<By>) -> Value {
    let interface = &one.interface;
    let with_way = |hook: &Hook| {
        let by = match hook {
            Hook::Xdp(_) => Some(By::Xdp),
            Hook::Tc(_) => tc,
        };
        json!({ "hook": hook.to_string(), "by": by.map(By::name) })
    };
    let all = |hooks: &[Hook]| hooks.iter().map(with_way).collect::<Vec<_>>();
    let plan = one.plan.as_ref().ok();
    json!({
        "name": interface.name,
        "ifindex": interface.index,
        "kind": kind(interface.kind),
        "up": interface.is_up,
        "mtu": interface.mtu,
        "attached": one.attached.as_ref().map(|attached| {
            let hooks = attached.iter();
            hooks
                .map(|(hook, by)| json!({ "hook": hook.to_string(), "by": by.name() }))
                .collect::<Vec<_>>()
        }),
        "hooks": plan.map(|plan| all(&plan.hooks)),
        "fallback": plan.and_then(|plan| plan.fallback.as_ref()).map(|hooks| all(hooks)),
        "reason": plan.and_then(|plan| plan.reason.as_ref()),
        "impossible": one.plan.as_ref().err(),
        "native_xdp": one.native_xdp,
        "strips_vlan_tags": one.strips_tags,
        "others": one.others.iter().map(|other| json!({
            "hook": other.hook.to_string(),
            "by": other.by.name(),
            "name": other.name,
            "id": other.id,
        })).collect::<Vec<_>>(),
    })
}
