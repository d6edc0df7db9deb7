//! Where the daemon's log goes: to systemd's journal, with fields, or to stderr as lines.
//!
//! Records are made with the macros of [`log`], and events by [`event`]. What they carry as key and
//! value becomes a field of the journal (`GATE=web`); on stderr it is in the message already. This is
//! the process's logger. `gate log` does not use it: it prints the data path's records by a logger of
//! its own.

use std::env;
use std::io::{self, Write as _};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::Value;
use systemd_journal_logger::{JournalLog, connected_to_journal};

use crate::events::{self, Event, What};
use crate::report;

/// Sets the level where `--log` doesn't.
pub const VARIABLE: &str = "GATE_LOG";

/// The level where nothing sets one.
pub const DEFAULT: LevelFilter = LevelFilter::Info;

/// The name in the journal, for `journalctl -t`.
const IDENTIFIER: &str = "gate";

/// Reads a level, as `--log` and [`VARIABLE`] have it.
///
/// # Errors
/// The levels that there are.
pub fn parse_level(text: &str) -> Result<LevelFilter, String> {
    text.parse()
        .map_err(|_| "write off, error, warn, info, debug or trace".to_owned())
}

/// The level: what was asked for on the command line, else what [`VARIABLE`] says, else [`DEFAULT`].
///
/// # Errors
/// What is wrong with the variable.
pub fn level(asked: Option<LevelFilter>) -> Result<LevelFilter, String> {
    let variable = env::var_os(VARIABLE).filter(|value| !value.is_empty());
    match (asked, variable) {
        (Some(level), _) => Ok(level),
        (None, Some(value)) => {
            let value = value.to_string_lossy();
            parse_level(&value).map_err(|remedy| format!("{VARIABLE} is {value}: {remedy}"))
        }
        (None, None) => Ok(DEFAULT),
    }
}

/// Sends the log to the journal where stderr is connected to it, else to stderr. Once in a process;
/// whoever is first stays.
pub fn start(level: LevelFilter) {
    let sink: Box<dyn Log> = match connected_to_journal().then(JournalLog::empty) {
        Some(Ok(journal)) => Box::new(journal.with_syslog_identifier(IDENTIFIER.to_owned())),
        // Without the journal's socket, stderr still is.
        Some(Err(_)) | None => Box::new(Lines),
    };
    if log::set_boxed_logger(Box::new(Filtered { level, sink })).is_ok() {
        log::set_max_level(level);
    }
}

/// Passes gate's own records by their level, and those of its libraries from warnings on.
struct Filtered {
    level: LevelFilter,
    sink: Box<dyn Log>,
}

impl Log for Filtered {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= limit(self.level, metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.sink.log(record);
        }
    }

    fn flush(&self) {
        self.sink.flush();
    }
}

/// The most that a target may tell. Libraries tell all only at the last level.
fn limit(level: LevelFilter, target: &str) -> LevelFilter {
    let crate_name = target.split("::").next().unwrap_or(target);
    match (crate_name, level) {
        ("gate" | "gate_userspace", _) | (_, LevelFilter::Trace) => level,
        _ => level.min(LevelFilter::Warn),
    }
}

/// Prints each record as a line on stderr.
struct Lines;

impl Log for Lines {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // There is nowhere to tell that stderr is gone.
        let _unseen = io::stderr().write_all(line(record).as_bytes());
    }

    fn flush(&self) {}
}

/// One record as one line. What a server answered to a check may be in it, so control characters are
/// escaped.
fn line(record: &Record<'_>) -> String {
    let word = match record.level() {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    };
    let text = format!("gate: {word}{}", record.args());
    let mut line = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line.push('\n');
    line
}

/// Logs what happened to a gate. The journal has when that was, and as fields what [`events::json`]
/// tells: `GATE=web`, `GATE_EVENT=closed`, `GATE_MODE=hold`, `GATE_LEASE_MS=15000.0`.
pub fn event(event: &Event) {
    let level = match event.what {
        What::Failed { .. } | What::Down { .. } | What::Expired => Level::Warn,
        _ => Level::Info,
    };
    let what = report::what(&event.what);
    let text = match &event.gate {
        Some(gate) => format!("{gate}: {what}"),
        None => what,
    };
    let fields = fields(event);
    log::logger().log(
        &Record::builder()
            .level(level)
            .target(module_path!())
            .args(format_args!("{text}"))
            .key_values(&fields.as_slice())
            .build(),
    );
}

fn fields(event: &Event) -> Vec<(String, String)> {
    let Value::Object(fields) = events::json(event) else {
        return Vec::new();
    };
    let field = |(key, value): (String, Value)| {
        let key = match key.as_str() {
            "at" => return None,
            "gate" => "GATE".to_owned(),
            other => format!("GATE_{}", other.to_uppercase()),
        };
        match value {
            Value::Null => None,
            Value::String(text) => Some((key, text)),
            other => Some((key, other.to_string())),
        }
    };
    fields.into_iter().filter_map(field).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use gate_common::state::Mode;

    use super::*;

    fn record(level: Level, message: &str) -> String {
        line(
            &Record::builder()
                .level(level)
                .args(format_args!("{message}"))
                .build(),
        )
    }

    #[test]
    fn a_record_is_one_line() {
        assert_eq!(record(Level::Info, "web: up"), "gate: web: up\n");
        assert_eq!(record(Level::Warn, "slow"), "gate: warning: slow\n");
    }

    #[test]
    fn an_event_has_its_parts_as_fields() {
        let event = Event {
            at: SystemTime::UNIX_EPOCH,
            gate: Some("web".to_owned()),
            what: What::Closed {
                mode: Mode::Hold,
                lease: Duration::from_secs(15),
            },
        };
        let mut fields = fields(&event);
        fields.sort();
        let expected = [
            ("GATE", "web"),
            ("GATE_EVENT", "closed"),
            ("GATE_LEASE_MS", "15000.0"),
            ("GATE_MODE", "hold"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_record_can_not_forge_another_line() {
        assert_eq!(
            record(Level::Error, "got a\r\ngate: \u{1b}[31mfine"),
            "gate: error: got a\\r\\ngate: \\u{1b}[31mfine\n"
        );
    }

    #[test]
    fn libraries_only_warn() {
        assert_eq!(
            limit(LevelFilter::Debug, "gate_userspace::daemon"),
            LevelFilter::Debug
        );
        assert_eq!(limit(LevelFilter::Debug, "gate"), LevelFilter::Debug);
        assert_eq!(limit(LevelFilter::Debug, "gateway::x"), LevelFilter::Warn);
        assert_eq!(limit(LevelFilter::Error, "aya::bpf"), LevelFilter::Error);
        assert_eq!(limit(LevelFilter::Trace, "rustls"), LevelFilter::Trace);
    }

    #[test]
    fn a_level_that_is_none_is_refused_with_those_that_there_are() {
        assert_eq!(parse_level("WARN"), Ok(LevelFilter::Warn));
        assert!(parse_level("loud").unwrap_err().contains("info"));
        assert_eq!(level(Some(LevelFilter::Off)), Ok(LevelFilter::Off));
    }
}
