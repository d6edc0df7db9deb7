//! The comparison as tables and plots.

use super::figures::{Figures, Restart, Way};
use super::rig::{FLOOR, HOLD};
use crate::bench::record::Report;
use crate::bench::spread::Spread;
use crate::plot::{Kind, Mark, Panel, Plot, Row};
use crate::text::grouped;

/// What `hold` may add at the most, as a ratio to what the floor adds.
const GOAL: f64 = 1.2;

/// The outage of the brief table, in ms.
const BRIEF: f64 = 2_000.0;

/// Makes it.
pub fn report(figures: &Figures) -> Report {
    let mut text = INTRODUCTION.to_owned();
    let mut plots = Vec::new();
    for rate in figures.rates() {
        text += &format!("\n{} new connections a second:\n\n", grouped(rate as usize));
        text += &markdown(&figures.table(rate));
        text.push('\n');
        text += &figures.ratios(rate);
        plots.push((format!("restart-{rate}"), figures.plot(rate)));
    }
    for way in &figures.ways {
        if let Some(why) = &way.absent {
            text += &format!("\n{}: {why}.\n", way.title);
        }
    }
    for note in figures.notes() {
        text += &format!("\n\\* {note}.\n");
    }
    for failure in &figures.failures {
        text += &format!("\nNot measured, or not as claimed: {failure}.\n");
    }
    Report {
        brief: figures.brief(),
        text,
        plots,
    }
}

const INTRODUCTION: &str = "\
A backend restarts under open-loop load over veth, by each way in turn. `p99` and `max` are what was
added: how many milliseconds later requests were answered than they could be at the best, which is
when they were due, or when the backend was back; p99 of the requests that were due meanwhile, and
the longest of all. Medians of the rounds. `failed` is of all requests. The backend takes 5 ms for each
request, which is part of what is added. The lowest row there can be is an open socket, into which
clients connect while nobody accepts. Gate has room for 32,768 held connections (`gate up --held`; the
default is 16,384); the open socket has it for as many as its backlog says. Of rows with a `*` the notes
tell more.
";

/// One restart in a few words.
pub fn line(restart: &Restart) -> String {
    let remark = restart.remark.as_ref();
    format!(
        "{} of {} failed, away {:.0} ms, added p99 {}, max {} ms{}",
        restart.lost(),
        restart.requests,
        restart.away_ms,
        figure(restart.added_p99_ms),
        figure(restart.added_max_ms),
        remark.map_or(String::new(), |remark| format!("; {remark}")),
    )
}

/// Which of a restart's figures.
type What = fn(&Restart) -> Option<f64>;
const P99: What = |restart| restart.added_p99_ms;
/// None where nobody was answered who came meanwhile: of the others it tells nothing.
const MAX: What = |restart| restart.added_p99_ms.and(restart.added_max_ms);

impl Figures {
    fn rates(&self) -> Vec<u32> {
        let mut rates: Vec<u32> = self.restarts.iter().map(|restart| restart.rate).collect();
        rates.sort_unstable();
        rates.dedup();
        rates
    }

    fn outages(&self) -> Vec<f64> {
        let mut outages: Vec<f64> = self.restarts.iter().map(|it| it.outage_ms).collect();
        outages.sort_by(f64::total_cmp);
        outages.dedup();
        outages
    }

    fn of<'a>(
        &'a self,
        way: &'a str,
        rate: u32,
        outage: f64,
    ) -> impl Iterator<Item = &'a Restart> + 'a {
        self.restarts.iter().filter(move |it| {
            it.way == way && it.rate == rate && it.outage_ms.total_cmp(&outage).is_eq()
        })
    }

    fn spread(&self, way: &str, rate: u32, outage: f64, what: What) -> Option<Spread> {
        let values: Vec<f64> = self.of(way, rate, outage).filter_map(what).collect();
        (!values.is_empty()).then(|| Spread::of(&values))
    }

    fn lost(&self, way: &str, rate: u32, outage: f64) -> usize {
        self.of(way, rate, outage).map(Restart::lost).sum()
    }

    fn title(&self, name: &str) -> String {
        let way = self.ways.iter().find(|way| way.name == name);
        way.map_or(name.to_owned(), |way| way.title.clone())
    }

    /// What was remarked, and where: one line for the same remark of one way.
    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<((&str, &str), Vec<String>)> = Vec::new();
        for restart in &self.restarts {
            let Some(remark) = &restart.remark else {
                continue;
            };
            let place = format!(
                "{} a second, {}",
                grouped(restart.rate as usize),
                time(restart.outage_ms)
            );
            let note = (restart.way.as_str(), remark.as_str());
            match notes.iter_mut().find(|(known, _)| *known == note) {
                Some((_, places)) if places.contains(&place) => {}
                Some((_, places)) => places.push(place),
                None => notes.push((note, vec![place])),
            }
        }
        let line = |((way, remark), places): ((&str, &str), Vec<String>)| {
            format!("{} ({}): {remark}", self.title(way), places.join("; "))
        };
        notes.into_iter().map(line).collect()
    }

    /// One outage at each rate: 2 s, or else the first there is.
    fn brief(&self) -> Option<String> {
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
        let mut rows = vec![head];
        for way in self.ways.iter().filter(|way| way.absent.is_none()) {
            let mut cells = vec![way.title.clone()];
            for rate in self.rates() {
                cells.extend(self.cells(way, rate, outage));
            }
            cells.extend([self.is_source_kept(way), way.needs.clone()]);
            rows.push(cells);
        }
        Some(markdown(&rows))
    }

    fn table(&self, rate: u32) -> Vec<Vec<String>> {
        let mut head = vec!["way".to_owned()];
        for outage in self.outages() {
            let outage = time(outage);
            head.extend(["failed", "p99", "max"].map(|column| format!("{outage}: {column}")));
        }
        head.extend(["source kept", "needs"].map(str::to_owned));
        let mut rows = vec![head];
        for way in &self.ways {
            rows.push(self.row(way, rate));
        }
        rows
    }

    fn row(&self, way: &Way, rate: u32) -> Vec<String> {
        let mut made = self.restarts.iter();
        let is_noted = made.any(|it| it.way == way.name && it.rate == rate && it.remark.is_some());
        let mark = if is_noted { " *" } else { "" };
        let mut cells = vec![format!("{}{mark}", way.title)];
        for outage in self.outages() {
            cells.extend(self.cells(way, rate, outage));
        }
        cells.extend([self.is_source_kept(way), way.needs.clone()]);
        cells
    }

    /// Failed requests, and the medians of p99 and max.
    fn cells(&self, way: &Way, rate: u32, outage: f64) -> [String; 3] {
        if self.of(&way.name, rate, outage).next().is_none() {
            return ["-"; 3].map(str::to_owned);
        }
        let median = |what| {
            let spread = self.spread(&way.name, rate, outage, what);
            figure(spread.map(|spread| spread.median))
        };
        let lost = grouped(self.lost(&way.name, rate, outage));
        [lost, median(P99), median(MAX)]
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

    /// How what `hold` adds compares with the floor and with the others.
    fn ratios(&self, rate: u32) -> String {
        let mut text = String::new();
        for outage in self.outages() {
            let ratios = [("p99", P99), ("max", MAX)].map(|(name, what)| {
                let spread = self.ratio(rate, outage, what)?;
                let verdict = match spread.median <= GOAL {
                    true => "",
                    false => ", above 1.2",
                };
                Some(format!(
                    "{name} {:.2} ({:.2} to {:.2}){verdict}",
                    spread.median, spread.min, spread.max
                ))
            });
            let [Some(p99), Some(max)] = ratios else {
                continue;
            };
            let below = match self.below(rate, outage) {
                names if names.is_empty() => "no other row is below".to_owned(),
                names => format!("below it: {}", names.join(", ")),
            };
            text += &format!(
                "- `gate restart` against the open socket, outage {}: {p99}; {max}; {} failed; \
                 {below}.\n",
                time(outage),
                self.lost(HOLD, rate, outage),
            );
        }
        text
    }

    /// `hold` divided by the floor, round by round.
    fn ratio(&self, rate: u32, outage: f64, what: What) -> Option<Spread> {
        let ratios: Vec<f64> = self
            .of(HOLD, rate, outage)
            .filter_map(|hold| {
                let mut floors = self.of(FLOOR, rate, outage);
                let floor = floors.find(|floor| floor.round == hold.round)?;
                Some(what(hold)? / what(floor)?)
            })
            .filter(|ratio| ratio.is_finite())
            .collect();
        (!ratios.is_empty()).then(|| Spread::of(&ratios))
    }

    /// The ways that lose no request and add less than `hold` at the median, at p99 or max.
    fn below(&self, rate: u32, outage: f64) -> Vec<String> {
        let median = |way: &str, what| Some(self.spread(way, rate, outage, what)?.median);
        let is_below = |way: &&Way| {
            let less = [P99, MAX].iter().any(|&what| {
                match (median(&way.name, what), median(HOLD, what)) {
                    (Some(other), Some(hold)) => other < hold,
                    _ => false,
                }
            });
            less && way.name != FLOOR && self.lost(&way.name, rate, outage) == 0
        };
        let below = self.ways.iter().filter(is_below);
        below.map(|way| way.title.clone()).collect()
    }

    fn plot(&self, rate: u32) -> Plot {
        let panels = self.outages().into_iter().map(|outage| Panel {
            title: format!("The backend is away for {}", time(outage)),
            rows: self
                .ways
                .iter()
                .map(|way| self.plotted(way, rate, outage))
                .collect(),
        });
        Plot {
            title: format!(
                "What a restart adds to the outage, at {} new connections a second",
                grouped(rate as usize)
            ),
            axis: "added to the request's time, in milliseconds".to_owned(),
            scale: Kind::Log,
            series: [("p99", "#0969da"), ("max", "#b35900")]
                .map(|(name, colour)| (name.to_owned(), colour.to_owned()))
                .to_vec(),
            panels: panels.collect(),
        }
    }

    fn plotted(&self, way: &Way, rate: u32, outage: f64) -> Row {
        let marks = [(1, MAX), (0, P99)]
            .into_iter()
            .filter_map(|(series, what)| {
                let spread = self.spread(&way.name, rate, outage, what)?;
                Some(Mark {
                    series,
                    low: spread.min,
                    value: spread.median,
                    high: spread.max,
                })
            });
        let note = match (self.lost(&way.name, rate, outage), &way.absent) {
            (_, Some(_)) => Some("not here".to_owned()),
            (0, None) => None,
            (lost, None) => Some(format!("{} failed", grouped(lost))),
        };
        Row {
            label: way.title.clone(),
            marks: marks.collect(),
            note,
        }
    }
}

/// An outage: `300 ms`, `2 s`.
fn time(ms: f64) -> String {
    match ms < 1_000.0 {
        true => format!("{ms} ms"),
        false => format!("{} s", ms / 1e3),
    }
}

/// Milliseconds with the digits that count.
fn figure(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 99.95 => format!("{ms:.1}"),
        Some(ms) => grouped(ms.round() as usize),
    }
}

/// A table whose source lines up: the first and the last column to the left, the others to the
/// right.
fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let is_left = |column: usize| column == 0 || column + 1 == columns;
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
