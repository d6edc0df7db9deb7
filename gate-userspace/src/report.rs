//! What people and machines read: lines, the live line, and JSON.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use gate_common::abi::{Counter, GateStats};
use serde_json::{Map, Value, json};

use crate::attach::{Attachment, By};
use crate::datapath::{Downed, Upped};
use crate::endpoint::Endpoint;
use crate::health::Check;
use crate::hooks::Hook;
use crate::interfaces::{Kind, XdpMode};
use crate::release::Released;
use crate::restart::driver::{Moment, Progress, Summary};
use crate::restart::{Outcome, Phase};
use crate::status::{GateStatus, Status};

/// Version of the JSON output. It rises when a field changes its meaning or goes away.
pub const JSON_VERSION: u32 = 1;

/// A JSON answer, with its version.
#[must_use]
pub fn answer(fields: Value) -> String {
    let mut answer = Map::new();
    answer.insert("version".to_owned(), json!(JSON_VERSION));
    if let Value::Object(fields) = fields {
        answer.extend(fields);
    }
    Value::Object(answer).to_string()
}

/// A time as people read it.
#[must_use]
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time.as_millis() {
        0..1_000 => format!("{:.0} ms", seconds * 1e3),
        1_000..60_000 => format!("{seconds:.2} s"),
        60_000..3_600_000 => format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60),
        _ => format!(
            "{} h {} min",
            time.as_secs() / 3600,
            time.as_secs() / 60 % 60
        ),
    }
}

/// A time in milliseconds, to the microsecond.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn list(endpoints: &[Endpoint]) -> String {
    let texts: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn connections(count: usize) -> String {
    match count {
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    }
}

/// The lines of `gate up`.
#[must_use]
pub fn up(done: &[Upped]) -> String {
    let lines = done.iter().map(|upped| {
        let name = &upped.interface.name;
        let mut note = match upped.already {
            true => " already; its program is up to date".to_owned(),
            false => String::new(),
        };
        let is_veth = upped.interface.kind == Kind::Veth;
        if is_veth && upped.hooks.contains(&(Hook::Xdp(XdpMode::Native), By::Xdp)) {
            note +=
                " (a veth: its peer loses its offloads, and gets no resets without XDP of its own)";
        }
        if let Some(reason) = &upped.reason {
            note += &format!(" (not xdp: {reason})");
        }
        format!("{name}: attached, {}{note}\n", hooks_text(&upped.hooks))
    });
    lines.collect()
}

/// `hook xdp`, or `hooks tc-ingress, tc-egress (tcx)`.
fn hooks_text(hooks: &[(Hook, By)]) -> String {
    let names: Vec<String> = hooks.iter().map(|(hook, _)| hook.to_string()).collect();
    let word = match names.len() {
        1 => "hook",
        _ => "hooks",
    };
    let by = match hooks.first() {
        Some((_, by @ (By::Tcx | By::Clsact))) => format!(" ({})", by.name()),
        _ => String::new(),
    };
    format!("{word} {}{by}", names.join(", "))
}

fn hooks_json(hooks: &[(Hook, By)]) -> Vec<Value> {
    hooks
        .iter()
        .map(|(hook, by)| json!({ "hook": hook.to_string(), "by": by.name() }))
        .collect()
}

/// The JSON of `gate up`.
#[must_use]
pub fn up_json(done: &[Upped]) -> Value {
    let interfaces: Vec<Value> = done
        .iter()
        .map(|upped| {
            json!({
                "name": upped.interface.name,
                "ifindex": upped.interface.index,
                "hooks": hooks_json(&upped.hooks),
                "already": upped.already,
                "reason": upped.reason,
            })
        })
        .collect();
    json!({ "interfaces": interfaces })
}

/// The line of `gate down`.
#[must_use]
pub fn down(downed: Option<&Downed>) -> String {
    match downed {
        None => "gate was not up\n".to_owned(),
        Some(downed) => {
            let mut line = match downed.interfaces.as_slice() {
                [] => "nothing was attached; the pins are removed".to_owned(),
                names => format!("detached from {}", names.join(", ")),
            };
            if let Some(failure) = &downed.failure {
                line += &format!("; held connections were left to retransmit: {failure}");
            }
            if downed.released > 0 {
                line += &format!("; {} released first", connections(downed.released));
            }
            line + "\n"
        }
    }
}

/// The JSON of `gate down`.
#[must_use]
pub fn down_json(downed: Option<&Downed>) -> Value {
    json!({
        "was_up": downed.is_some(),
        "interfaces": downed.map_or(&[][..], |downed| &downed.interfaces),
        "released": downed.map_or(0, |downed| downed.released),
        "failure": downed.and_then(|downed| downed.failure.as_ref()),
    })
}

/// The line of `gate open` where nothing was to be done.
#[must_use]
pub fn already_open(endpoints: &[Endpoint]) -> String {
    format!("{}: open already\n", list(endpoints))
}

/// The line of `gate open` about what was released.
#[must_use]
pub fn opened(endpoints: &[Endpoint], released: &Released) -> String {
    format!("{}: open; {}\n", list(endpoints), released_text(released))
}

fn released_text(released: &Released) -> String {
    let mut text = match released.injected {
        0 => "no connection was held".to_owned(),
        count => format!(
            "{} held, now released; the longest waited {}",
            connections(count),
            span(released.longest_wait)
        ),
    };
    if released.damaged > 0 {
        text += &format!("; {} dropped with a wrong checksum", released.damaged);
    }
    if released.gone > 0 {
        text += &format!(
            "; {} dropped: their interface is gone or full, or a firewall refused them",
            released.gone
        );
    }
    text
}

/// The JSON of a release.
#[must_use]
pub fn released_json(released: &Released) -> Value {
    json!({
        "released": released.injected,
        "damaged": released.damaged,
        "interface_gone": released.gone,
        "longest_wait_ms": millis(released.longest_wait),
    })
}

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
        return text + "no gate was closed yet\n";
    }
    let mut rows = vec![
        [
            "gate", "mode", "lease", "held", "longest", "passed", "released", "dropped", "rejected",
        ]
        .map(str::to_owned),
    ];
    rows.extend(status.gates.iter().map(row));
    text + "\n" + &table(&rows)
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
        gate.endpoint.to_string(),
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

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0);
            // Words to the left, numbers to the right.
            text += &match column {
                0 => format!("{cell:<width$}"),
                1 => format!("  {cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
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
                "endpoint": gate.endpoint.to_string(),
                "mode": gate.mode.name(),
                "lease_over": gate.expired,
                "lease_ms": gate.lease.map(millis),
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

/// The line that ends `gate restart`.
#[must_use]
pub fn summary(summary: &Summary) -> String {
    let endpoints = list(&summary.endpoints);
    let end = match summary.outcome {
        Outcome::Healthy => "healthy, open again".to_owned(),
        Outcome::CommandFailed(end) => format!("the command {end}; open again"),
        Outcome::LeaseOver(_) => "the lease ran out; open again".to_owned(),
        Outcome::Interrupted(_) => "interrupted; open again".to_owned(),
    };
    let mut line = format!(
        "{endpoints}: {end} after {}; {}",
        span(summary.closed_for),
        released_text(&summary.released)
    );
    let dropped = summary.overflowed + summary.uncaptured;
    if dropped > 0 {
        line += &format!(
            "; {dropped} SYNs not held ({} for a full table), whose clients retransmit",
            summary.overflowed
        );
    }
    if !summary.taken_over.is_empty() {
        line += &format!(
            "; left as another command set it: {}",
            list(&summary.taken_over)
        );
    }
    line + "\n"
}

/// The one line of cause and remedy for a restart that did not end well.
#[must_use]
pub fn complaint(summary: &Summary, max_hold: Duration) -> Option<String> {
    let last = || match &summary.last_failure {
        Some(failure) => format!(" (last: {failure})"),
        None => String::new(),
    };
    if let Some(failure) = &summary.open_failure {
        return Some(format!(
            "the gate could not be opened ({failure}): its lease opens it, at the latest {} after it \
             was closed",
            humantime::format_duration(max_hold)
        ));
    }
    match summary.outcome {
        Outcome::Healthy => None,
        Outcome::CommandFailed(end) => Some(format!(
            "the command {end}, so the gate was opened: see its own output for why"
        )),
        Outcome::LeaseOver(Phase::Health) => Some(format!(
            "the backend was not healthy within --max-hold {}{}, so the gate was opened: look at \
             the backend, or give it longer",
            humantime::format_duration(max_hold),
            last()
        )),
        Outcome::LeaseOver(Phase::Quiesce) => Some(format!(
            "--max-hold {} was over before the command began, so the gate was opened: give it longer",
            humantime::format_duration(max_hold)
        )),
        Outcome::LeaseOver(Phase::Command) => Some(format!(
            "the command was not done within --max-hold {}, so the gate was opened and the command \
             stopped: give it longer",
            humantime::format_duration(max_hold)
        )),
        Outcome::Interrupted(_) => Some(
            "interrupted, so the gate was opened, and the command stopped if it ran: start it \
             again when it suits"
                .to_owned(),
        ),
    }
}

/// The JSON of `gate restart`.
#[must_use]
pub fn summary_json(summary: &Summary) -> Value {
    let texts = |endpoints: &[Endpoint]| -> Vec<String> {
        endpoints.iter().map(ToString::to_string).collect()
    };
    let mut value = json!({
        "endpoints": texts(&summary.endpoints),
        "attached": up_json(&summary.attached)["interfaces"],
        "outcome": summary.outcome.name(),
        "exit_code": summary.outcome.exit_code(),
        "closed_ms": millis(summary.closed_for),
        "overflowed": summary.overflowed,
        "uncaptured": summary.uncaptured,
        "last_failure": summary.last_failure,
        "taken_over": texts(&summary.taken_over),
        "open_failure": summary.open_failure,
    });
    if let (Value::Object(value), Value::Object(released)) =
        (&mut value, released_json(&summary.released))
    {
        value.extend(released);
    }
    value
}

/// Progress on stderr: a live line on a terminal, plain lines elsewhere, nothing for JSON.
pub struct Stderr {
    style: Style,
    live: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Live,
    Plain,
    Silent,
}

impl Stderr {
    /// Chooses the style for this process's stderr.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let style = match (json, io::stderr().is_terminal()) {
            (true, _) => Style::Silent,
            (false, true) => Style::Live,
            (false, false) => Style::Plain,
        };
        Self { style, live: false }
    }

    fn line(&mut self, text: &str) {
        self.clear();
        if self.style != Style::Silent {
            // A closed stderr is no reason to stop a restart.
            let _unseen = writeln!(io::stderr(), "gate: {text}");
        }
    }

    /// Wipes the live line, so that what follows starts on a clean one.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.live) {
            let _unseen = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

impl Progress for Stderr {
    fn attached(&mut self, attached: &[Upped]) {
        let texts: Vec<String> = attached
            .iter()
            .map(|upped| format!("{} ({})", upped.interface.name, hooks_text(&upped.hooks)))
            .collect();
        if !texts.is_empty() {
            self.line(&format!("attached for this restart: {}", texts.join(", ")));
        }
    }

    fn closed(&mut self, endpoints: &[Endpoint], max_hold: Duration) {
        let lease = humantime::format_duration(max_hold);
        self.line(&format!(
            "{}: holding new connections, for {lease} at the most",
            list(endpoints)
        ));
    }

    fn started(&mut self, command: &[OsString]) {
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        self.line(&format!("running: {}", words.join(" ")));
    }

    fn checking(&mut self, elapsed: Duration, checks: &[Check]) {
        let checks: Vec<String> = checks.iter().map(ToString::to_string).collect();
        self.line(&format!(
            "the command is done after {}; checking {}",
            span(elapsed),
            checks.join(", ")
        ));
    }

    fn is_live(&self) -> bool {
        self.style == Style::Live
    }

    fn moment(&mut self, moment: &Moment) {
        self.live = true;
        let health = match (moment.phase, &moment.health) {
            (Phase::Quiesce, _) => "emptying the accept queue",
            (Phase::Command, _) => "the command runs",
            (Phase::Health, Some(failure)) => failure,
            (Phase::Health, None) => "checking",
        };
        // The cursor goes back, so that what the command prints overwrites the line.
        let _unseen = write!(
            io::stderr(),
            "\r\x1b[2K  {:>5.1} s   held {}   longest wait {}   {health}\r",
            moment.elapsed.as_secs_f64(),
            moment.waiting.held,
            span(moment.waiting.longest),
        );
    }

    fn note(&mut self, text: &str) {
        self.line(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_well() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_234, "1.23 s"),
            (59_990, "59.99 s"),
            (61_000, "1 min 1 s"),
            (3_660_000, "1 h 1 min"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn tables_line_up() {
        let rows = [
            ["a".into(), "bb".into(), "1".into()],
            ["aaa".into(), "b".into(), "100".into()],
        ];
        assert_eq!(table(&rows), "a    bb    1\naaa  b   100\n");
    }

    #[test]
    fn an_answer_has_its_version() {
        assert_eq!(
            answer(json!({ "up": false })),
            r#"{"up":false,"version":1}"#
        );
    }
}
