//! The comparison as tables and plots.

mod tables;

use super::figures::{Figures, Restart, Way};
use super::rig::{FLOOR, HOLD};
use crate::bench::record::Report;
use crate::bench::spread::Spread;
use crate::plot::{Kind, Mark, Panel, Plot, Row};
use crate::text::grouped;

/// What `hold` may add at the most, as a ratio to what the floor adds.
const GOAL: f64 = 1.2;

/// What is said of a figure with no other beside it.
const ONE: &str = "one run";

/// Makes it.
pub fn report(figures: &Figures) -> Report {
    let mut text = figures.introduction();
    let mut plots = Vec::new();
    if !figures.ways.is_empty() {
        text += &format!("\n### The ways\n\n{}", figures.ways_table());
    }
    for rate in figures.rates() {
        let title = format!("{} new connections a second", grouped(rate as usize));
        for outage in figures.outages() {
            text += &format!("\n### {title}, away for {}\n\n", time(outage));
            text += &figures.table(rate, outage);
            text += &figures.ratio_line(rate, outage);
        }
        text += &format!("\n### {title}: how long requests took\n\n{LATENCIES}\n");
        text += &figures.latencies(rate);
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

const LATENCIES: &str = "\
From when they were due, in ms, the outage included; of all that were answered, also those due before
and after it. Medians of the rounds.
";

/// One restart in a few words.
pub fn line(restart: &Restart) -> String {
    let remark = restart.remark.as_ref();
    format!(
        "{} of {} failed, away {:.0} ms, added p50 {}, p99 {}, max {} ms{}",
        restart.lost(),
        restart.requests,
        restart.away_ms,
        figure(restart.added_p50_ms),
        figure(restart.added_p99_ms),
        figure(restart.added_max_ms),
        remark.map_or(String::new(), |remark| format!("; {remark}")),
    )
}

/// Which of a restart's figures.
type What = fn(&Restart) -> Option<f64>;
const P50: What = |restart| restart.added_p50_ms;
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

    fn rounds(&self, way: &str, rate: u32, outage: f64) -> usize {
        self.of(way, rate, outage).count()
    }

    fn values(&self, way: &str, rate: u32, outage: f64, what: What) -> Vec<f64> {
        self.of(way, rate, outage).filter_map(what).collect()
    }

    fn spread(&self, way: &str, rate: u32, outage: f64, what: What) -> Option<Spread> {
        let values = self.values(way, rate, outage, what);
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

    /// How what `hold` adds compares with the floor and with the others.
    fn ratio_line(&self, rate: u32, outage: f64) -> String {
        let ratios = [("p99", P99), ("max", MAX)].map(|(name, what)| {
            let ratios = self.ratio(rate, outage, what);
            let spread = Spread::of(&ratios);
            let range = match ratios.len() {
                0 => return None,
                1 => ONE.to_owned(),
                _ => format!("{:.2} to {:.2}", spread.min, spread.max),
            };
            let verdict = match spread.median <= GOAL {
                true => "",
                false => ", above 1.2",
            };
            Some(format!("{name} {:.2} ({range}){verdict}", spread.median))
        });
        let [Some(p99), Some(max)] = ratios else {
            return String::new();
        };
        let below = match self.below(rate, outage) {
            names if names.is_empty() => "no other row is below".to_owned(),
            names => format!("below it: {}", names.join(", ")),
        };
        format!(
            "\n`gate restart` against the open socket, within each round: {p99}; {max}; {} failed; \
             {below}.\n",
            self.lost(HOLD, rate, outage),
        )
    }

    /// `hold` divided by the floor, round by round.
    fn ratio(&self, rate: u32, outage: f64, what: What) -> Vec<f64> {
        self.of(HOLD, rate, outage)
            .filter_map(|hold| {
                let mut floors = self.of(FLOOR, rate, outage);
                let floor = floors.find(|floor| floor.round == hold.round)?;
                Some(what(hold)? / what(floor)?)
            })
            .filter(|ratio| ratio.is_finite())
            .collect()
    }

    /// The ways that lose no request and add less than `hold` at the median, at p99 or max, and which
    /// of them had one run only.
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
        let name = |way: &Way| match self.rounds(&way.name, rate, outage) {
            1 => format!("{} ({ONE})", way.title),
            _ => way.title.clone(),
        };
        below.map(name).collect()
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
