//! What the demo shows in the end: a table or JSON, and a picture.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Measured, Options, Run};
use crate::chart::{Chart, Panel};
use crate::summary::Summary;
use crate::text;

impl Run {
    fn title(self) -> &'static str {
        match self {
            Self::None => "No gate",
            Self::Drop => "gate drop",
            Self::Hold => "gate restart (hold)",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::None => "#59636e",
            Self::Drop => "#b35900",
            Self::Hold => "#0969da",
        }
    }
}

/// One run in a few words.
pub(super) fn note(summary: &Summary) -> String {
    let requests = text::grouped(summary.requests);
    let outcome = match summary.lost() {
        0 => format!("{requests} requests, none lost"),
        _ => format!("{} of {requests} requests", summary.errors_in_words()),
    };
    let max = match summary.max {
        Some(max) => format!("{outcome}; longest {}", text::ms(max)),
        None => outcome,
    };
    match summary.added() {
        Some(added) => format!("{max}, {} beyond the outage", text::ms(added)),
        None => max,
    }
}

/// The runs as a table, with a line below for each that lost requests.
pub(super) fn table(measured: &[Measured]) -> String {
    let head = [
        "run", "requests", "errors", "p50", "p99", "max", "outage", "added",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    let time = |time: Option<Duration>| time.map_or("n/a".to_owned(), text::ms);
    for Measured { run, summary, .. } in measured {
        rows.push(vec![
            run.name().to_owned(),
            text::grouped(summary.requests),
            text::grouped(summary.lost()),
            time(summary.p50),
            time(summary.p99),
            time(summary.max),
            time(Some(summary.outage)),
            time(summary.added()),
        ]);
    }
    let mut out = text::table(&rows);
    for Measured { run, summary, .. } in measured.iter().filter(|one| one.summary.lost() > 0) {
        out += &format!("{}: {}\n", run.name(), summary.errors_in_words());
    }
    out + "added: how much the longest request exceeds the outage\n"
}

/// The runs and how they were made, as JSON.
pub(super) fn json(measured: &[Measured], options: &Options) -> Value {
    let runs = measured.iter().map(|one| {
        let mut value = one.summary.to_json();
        value["run"] = json!(one.run.name());
        value
    });
    json!({
        "rate": options.rate,
        "duration_ms": options.duration.as_millis() as u64,
        "service_time_ms": options.service_time.as_millis() as u64,
        "wanted_outage_ms": options.outage.as_millis() as u64,
        "runs": runs.collect::<Vec<_>>(),
    })
}

/// Draws the picture into a file.
pub(super) fn draw(measured: &[Measured], options: &Options, path: &Path) -> Result<()> {
    let chart = Chart {
        title: format!(
            "A backend restarts under {} new connections a second",
            text::grouped(options.rate as usize)
        ),
        length: options.duration,
        panels: measured
            .iter()
            .map(|one| Panel {
                title: one.run.title(),
                note: note(&one.summary),
                colour: one.run.colour(),
                requests: &one.requests,
                outage: one.outage,
            })
            .collect(),
    };
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    std::fs::write(path, chart.to_svg()).with_context(|| format!("write {}", path.display()))
}

/// `target/demo.svg` of the workspace that the working folder is in, else of the working folder.
pub(super) fn default_svg() -> Result<PathBuf> {
    let folder = std::env::current_dir().context("find the working folder")?;
    let root = folder
        .ancestors()
        .find(|folder| folder.join("Cargo.lock").is_file());
    Ok(root.unwrap_or(&folder).join("target/demo.svg"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Outcome, Request};

    fn measured(run: Run, outcome: Outcome) -> Measured {
        let ms = Duration::from_millis;
        let requests = vec![
            Request {
                at: ms(0),
                latency: ms(6),
                outcome: Outcome::Ok,
            },
            Request {
                at: ms(5),
                latency: ms(1_004),
                outcome,
            },
        ];
        let summary = Summary::new(&requests, ms(1_000));
        Measured {
            run,
            requests,
            outage: None,
            summary,
        }
    }

    #[test]
    fn the_table_says_what_was_lost_and_how() {
        let runs = [
            measured(Run::None, Outcome::Refused),
            measured(Run::Hold, Outcome::Ok),
        ];
        let expected = "\
run   requests  errors     p50       p99       max    outage   added
none         2       1  6.0 ms    6.0 ms    6.0 ms  1,000 ms     n/a
hold         2       0  6.0 ms  1,004 ms  1,004 ms  1,000 ms  4.0 ms
none: 1 refused
added: how much the longest request exceeds the outage
";
        assert_eq!(table(&runs), expected);
    }

    #[test]
    fn a_note_is_one_line() {
        let lost = measured(Run::None, Outcome::Refused).summary;
        assert_eq!(note(&lost), "1 refused of 2 requests; longest 6.0 ms");
        let kept = measured(Run::Hold, Outcome::Ok).summary;
        assert_eq!(
            note(&kept),
            "2 requests, none lost; longest 1,004 ms, 4.0 ms beyond the outage"
        );
    }
}
