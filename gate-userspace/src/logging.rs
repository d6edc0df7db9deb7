//! Where the daemon's log goes: to systemd's journal, with fields, or to stderr as lines.
//!
//! Records are made with the macros of [`log`]; what they carry as key and value, as in
//! `info!(gate = "web"; "is up")`, becomes a field of the journal (`GATE=web`), or follows the
//! message on stderr. This is the process's logger. `gate log` does not use it: it prints the data
//! path's records by a logger of its own.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

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
    let mut text = format!("gate: {word}{}", record.args());
    // Writing to a String does not fail.
    let _never = record.key_values().visit(&mut Fields(&mut text));
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

/// Writes keys and values behind the message.
struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
        write!(self.0, " {key}={value}").map_err(KvError::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(level: Level, message: &str) -> String {
        line(
            &Record::builder()
                .level(level)
                .args(format_args!("{message}"))
                .key_values(&[("gate", "web"), ("check", "tcp://a:1")])
                .build(),
        )
    }

    #[test]
    fn a_record_is_one_line_with_its_fields() {
        assert_eq!(
            record(Level::Info, "is down"),
            "gate: is down gate=web check=tcp://a:1\n"
        );
        assert!(record(Level::Warn, "is slow").starts_with("gate: warning: is slow "));
    }

    #[test]
    fn a_record_can_not_forge_another_line() {
        assert_eq!(
            record(Level::Error, "got a\r\ngate: \u{1b}[31mfine"),
            "gate: error: got a\\r\\ngate: \\u{1b}[31mfine gate=web check=tcp://a:1\n"
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
