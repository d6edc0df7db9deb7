//! The tables of the comparison.

use super::{MAX, ONE, P50, P99, What, figure, time};
use crate::bench::restart::figures::{Figures, Restart, Way};
use crate::bench::restart::run::{QUEUE, QUEUES};
use crate::bench::spread::Spread;
use crate::text::grouped;

/// The outage of the brief table, in ms.
const BRIEF: f64 = 2_000.0;

/// Of how long answered requests took.
const LATENCY: [(&str, What); 3] = [
    ("p50", |restart| restart.latency.p50_ms),
    ("p99", |restart| restart.latency.p99_ms),
    ("max", |restart| restart.latency.max_ms),
];

impl Figures {
    /// What the columns are. Older figures don't have all.
    fn columns(&self) -> Vec<(&'static str, What)> {
        let has_median = self.restarts.iter().any(|it| it.added_p50_ms.is_some());
        let median = has_median.then_some(("p50", P50));
        median
            .into_iter()
            .chain([("p99", P99), ("max", MAX)])
            .collect()
    }

    /// What was measured, and how to read it.
    pub(super) fn introduction(&self) -> String {
        let (columns, of_those) = match self.columns().len() {
            2 => ("`p99` and `max`", "p99"),
            _ => ("`p50`, `p99` and `max`", "p50 and p99"),
        };
        format!(
            "\
A backend restarts under open-loop load over veth, by each way in turn. {columns} are what was
added: how many milliseconds later requests were answered than they could be at the best, which is
when they were due, or when the backend was back; {of_those} of the requests that were due meanwhile,
and the longest of all. Each is the median of the rounds (least to most). Where there was one run,
nobody knows how far from it another would be. `1 of 3` is the number of rounds that the figure is of: in
the others nobody was answered who came meanwhile. `failed` is of the requests of all rounds.

The backend takes 5 ms for each request, which is part of what is added. The lowest row there can be is
an open socket, into which clients connect while nobody accepts. Gate has room for 32,768 held
connections (`gate up --held`; the default is 16,384); the open socket has it for as many as its backlog
says. On the server {} are {}.
Of rows with a `*` the notes tell more.
",
            QUEUES.map(|name| format!("`{name}`")).join(" and "),
            grouped(QUEUE),
        )
    }

    /// One outage at each rate: 2 s, or else the first there is.
    pub(super) fn brief(&self) -> Option<String> {
        let outages = self.outages();
        let is_brief = |outage: &f64| outage.total_cmp(&BRIEF).is_eq();
        let outage = outages.iter().copied().find(is_brief);
        let outage = outage.or(outages.first().copied())?;
        let mut head = vec![format!("away for {}", time(outage))];
        for rate in self.rates() {
            let rate = grouped(rate as usize);
            head.extend(["failed", "p99", "max"].map(|column| format!("{rate}/s: {column}")));
        }
        head.extend(["source kept", "needs"].map(str::to_owned));
        let last = head.len() - 1;
        let mut rows = vec![head];
        for way in self.ways.iter().filter(|way| way.absent.is_none()) {
            let mut cells = vec![way.title.clone()];
            for rate in self.rates() {
                cells.extend(self.medians(way, rate, outage));
            }
            cells.extend([self.is_source_kept(way), way.needs.clone()]);
            rows.push(cells);
        }
        Some(markdown(&rows, |column| column == 0 || column == last))
    }

    /// Failed requests, and the medians of p99 and max.
    fn medians(&self, way: &Way, rate: u32, outage: f64) -> [String; 3] {
        if self.rounds(&way.name, rate, outage) == 0 {
            return ["-"; 3].map(str::to_owned);
        }
        let median = |what| {
            let spread = self.spread(&way.name, rate, outage, what);
            figure(spread.map(|spread| spread.median))
        };
        let lost = grouped(self.lost(&way.name, rate, outage));
        [lost, median(P99), median(MAX)]
    }

    /// What is known of each way before it is measured, and whose address the backend saw.
    pub(super) fn ways_table(&self) -> String {
        let mut rows = vec![["way", "source kept", "needs"].map(str::to_owned).to_vec()];
        for way in &self.ways {
            rows.push(vec![
                way.title.clone(),
                self.is_source_kept(way),
                way.needs.clone(),
            ]);
        }
        markdown(&rows, |_| true)
    }

    fn is_source_kept(&self, way: &Way) -> String {
        let mut made = self.restarts.iter().filter(|it| it.way == way.name);
        match (made.clone().next(), made.all(|it| it.source_kept)) {
            (None, _) => "-",
            (Some(_), true) => "yes",
            (Some(_), false) => "no",
        }
        .to_owned()
    }

    /// What one outage at one rate came to, by each way.
    pub(super) fn table(&self, rate: u32, outage: f64) -> String {
        let columns = self.columns();
        let head = ["way", "rounds", "failed"].into_iter();
        let head = head.chain(columns.iter().map(|(name, _)| *name));
        let mut rows = vec![head.map(str::to_owned).collect()];
        for way in &self.ways {
            rows.push(self.row(way, rate, outage, &columns));
        }
        markdown(&rows, |column| column == 0)
    }

    fn row(
        &self,
        way: &Way,
        rate: u32,
        outage: f64,
        columns: &[(&'static str, What)],
    ) -> Vec<String> {
        let made: Vec<&Restart> = self.of(&way.name, rate, outage).collect();
        let is_noted = made.iter().any(|it| it.remark.is_some());
        let mark = if is_noted { " *" } else { "" };
        let mut cells = vec![format!("{}{mark}", way.title)];
        if made.is_empty() {
            cells.resize(columns.len() + 3, "-".to_owned());
            return cells;
        }
        let requests = made.iter().map(|it| it.requests).sum();
        let lost = self.lost(&way.name, rate, outage);
        cells.push(match made.len() {
            1 => ONE.to_owned(),
            rounds => grouped(rounds),
        });
        cells.push(format!("{} of {}", grouped(lost), grouped(requests)));
        for (_, what) in columns {
            let values = self.values(&way.name, rate, outage, *what);
            cells.push(cell(&values, made.len()));
        }
        cells
    }

    /// How long answered requests took at one rate, by each way.
    pub(super) fn latencies(&self, rate: u32) -> String {
        let mut head = vec!["way".to_owned()];
        for outage in self.outages() {
            head.extend(LATENCY.map(|(name, _)| format!("{}: {name}", time(outage))));
        }
        let mut rows = vec![head];
        for way in &self.ways {
            let mut cells = vec![way.title.clone()];
            for outage in self.outages() {
                cells.extend(LATENCY.map(|(_, what)| {
                    let spread = self.spread(&way.name, rate, outage, what);
                    figure(spread.map(|spread| spread.median))
                }));
            }
            rows.push(cells);
        }
        markdown(&rows, |column| column == 0)
    }
}

/// The median of what some of the rounds gave, the least and the most: `7.5 (6.9 to 9.1)`. With the
/// number of them where not all did: `6.3 (1 of 3)`.
fn cell(values: &[f64], rounds: usize) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let Spread {
        median, min, max, ..
    } = Spread::of(values);
    let range = format!("{} to {}", figure(Some(min)), figure(Some(max)));
    let some = format!("{} of {}", values.len(), rounds);
    let beside = match (values.len() > 1, values.len() < rounds) {
        (true, true) => format!(" ({range}, {some})"),
        (true, false) => format!(" ({range})"),
        (false, true) => format!(" ({some})"),
        (false, false) => String::new(),
    };
    format!("{}{beside}", figure(Some(median)))
}

/// A table whose source lines up: some columns to the left, the others to the right.
fn markdown(rows: &[Vec<String>], is_left: impl Fn(usize) -> bool) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            text += &match is_left(column) {
                true => format!("| {cell:<width$} "),
                false => format!("| {cell:>width$} "),
            };
        }
        text += "|\n";
        if i == 0 {
            for column in 0..columns {
                let dashes = "-".repeat(width(column));
                text += &match is_left(column) {
                    true => format!("| {dashes} "),
                    false => format!("| {}: ", &dashes[1..]),
                };
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::restart::Latency;
    use crate::bench::restart::rig::{FLOOR, HOLD};

    fn restart(way: &str, round: u32, p50: Option<f64>, p99: Option<f64>) -> Restart {
        Restart {
            way: way.to_owned(),
            rate: 200,
            outage_ms: 10_000.0,
            round,
            away_ms: 10_003.0,
            requests: 1_500,
            due_meanwhile: 1_000,
            errors: BTreeMap::new(),
            latency: Latency {
                p50_ms: Some(4_000.0),
                p99_ms: Some(9_900.0),
                max_ms: Some(10_050.0),
            },
            beyond_ms: None,
            added_p50_ms: p50,
            added_p99_ms: p99,
            added_max_ms: p99.map(|p99| p99 + 1.0),
            source_kept: true,
            kept: None,
            remark: None,
        }
    }

    fn way(name: &str) -> Way {
        Way {
            name: name.to_owned(),
            title: format!("the {name}"),
            needs: "-".to_owned(),
            absent: None,
        }
    }

    fn figures(restarts: Vec<Restart>) -> Figures {
        Figures {
            ways: ["other", FLOOR, HOLD].map(way).to_vec(),
            restarts,
            failures: Vec::new(),
        }
    }

    fn many() -> Figures {
        let some = |way, round, p50: f64, p99: f64| restart(way, round, Some(p50), Some(p99));
        figures(vec![
            some("other", 0, 10.0, 20.0),
            some(FLOOR, 0, 5.0, 40.0),
            some(HOLD, 0, 6.0, 60.0),
            some(FLOOR, 1, 7.0, 50.0),
            some(HOLD, 1, 9.0, 55.0),
            some(FLOOR, 2, 6.0, 60.0),
            some(HOLD, 2, 8.0, 72.0),
        ])
    }

    /// The cells of each row, without the head.
    fn rows(table: &str) -> Vec<Vec<&str>> {
        let rows = table.lines().skip(2);
        rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect()
    }

    #[test]
    fn a_row_tells_the_rounds_and_the_spread_and_one_run_has_none() {
        let table = many().table(200, 10_000.0);
        assert!(table.starts_with("| way "), "{table}");
        let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(
            head.join(" "),
            "| way | rounds | failed | p50 | p99 | max |"
        );
        assert_eq!(
            rows(&table),
            [
                ["the other", "one run", "0 of 1,500", "10.0", "20.0", "21.0"],
                [
                    "the socket",
                    "3",
                    "0 of 4,500",
                    "6.0 (5.0 to 7.0)",
                    "50.0 (40.0 to 60.0)",
                    "51.0 (41.0 to 61.0)"
                ],
                [
                    "the gate-hold",
                    "3",
                    "0 of 4,500",
                    "8.0 (6.0 to 9.0)",
                    "60.0 (55.0 to 72.0)",
                    "61.0 (56.0 to 73.0)"
                ],
            ]
        );
    }

    #[test]
    fn a_row_below_by_one_run_is_told_as_such() {
        let line = many().ratio_line(200, 10_000.0);
        // 60/40, 55/50 and 72/60.
        assert!(line.contains("p99 1.20 (1.10 to 1.50);"), "{line}");
        assert!(line.contains("below it: the other (one run)."), "{line}");
    }

    #[test]
    fn figures_without_the_added_median_have_no_column_of_it() {
        let mut older = many();
        for restart in &mut older.restarts {
            restart.added_p50_ms = None;
        }
        let table = older.table(200, 10_000.0);
        assert!(!table.contains("p50"), "{table}");
        assert!(table.contains("50.0 (40.0 to 60.0)"), "{table}");
        assert!(!older.introduction().contains("p50"));
        assert!(many().introduction().contains("`p50`, `p99` and `max`"));
    }

    #[test]
    fn a_figure_of_some_of_the_rounds_tells_of_how_many() {
        let figures = figures(vec![
            restart("other", 0, None, None),
            restart("other", 1, None, Some(6.25)),
            restart("other", 2, None, None),
        ]);
        let table = figures.table(200, 10_000.0);
        assert_eq!(
            rows(&table)[0],
            [
                "the other",
                "3",
                "0 of 4,500",
                "6.2 (1 of 3)",
                "7.2 (1 of 3)"
            ]
        );
        assert_eq!(rows(&table)[1], ["the socket", "-", "-", "-", "-"]);
        assert_eq!(cell(&[4.0, 2.0], 3), "3.0 (2.0 to 4.0, 2 of 3)");
        assert_eq!(cell(&[], 3), "-");
    }

    #[test]
    fn how_long_requests_took_is_told_by_the_medians() {
        let mut figures = many();
        figures.restarts[1].latency.p50_ms = Some(1_000.0);
        figures.restarts[3].latency.p50_ms = Some(3_000.0);
        let table = figures.latencies(200);
        assert!(table.contains("10 s: p50"), "{table}");
        assert_eq!(rows(&table)[0], ["the other", "4,000", "9,900", "10,050"]);
        assert_eq!(rows(&table)[1], ["the socket", "3,000", "9,900", "10,050"]);
    }
}
