//! What people and machines read: lines, the live line, and JSON.

use std::fmt::Display;
use std::time::Duration;

use serde_json::{Map, Value, json};

mod alias;
mod attach;
mod check;
mod close;
mod define;
mod drain;
mod events;
mod flush;
mod guard;
mod handover;
mod health;
mod plan;
mod progress;
mod purge;
mod release;
mod restart;
mod status;

pub use alias::{aliased, aliased_json, softened, softened_json, unaliased, unaliased_json};
pub use attach::{down, down_json, up, up_json};
pub use check::{checked, checked_json, config_problems};
pub use close::{closed, closed_json};
pub use define::{defined, defined_json, forgotten, forgotten_json};
pub use drain::{Owners, drain_complaint, drained, drained_json, inodes};
pub use events::{event, reloaded, what};
pub use flush::{flush_complaint, flush_json, flushed, flushed_json};
pub use guard::{
    guard_event, guard_event_json, guarded, guarded_json, unguarded, unguarded_json, watched,
    watched_json,
};
pub use handover::{finish_complaint, finished, handed, handed_json};
pub use health::health_json;
pub use plan::{applied, applied_json, planned, planned_json};
pub use progress::{Stderr, say};
pub use purge::{purged, purged_json};
pub use release::{opened, opened_json, released_json};
pub use restart::{complaint, summary, summary_json};
pub use status::{status, status_json};

/// Version of the JSON output. It rises when a field changes its meaning or goes away.
pub const JSON_VERSION: u32 = 2;

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

fn texts(all: &[impl Display]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn list(all: &[impl Display]) -> String {
    texts(all).join(", ")
}

fn connections(count: usize) -> String {
    match count {
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    }
}

/// `1 gate`, `2 gates`.
fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
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
            r#"{"up":false,"version":2}"#
        );
    }
}
