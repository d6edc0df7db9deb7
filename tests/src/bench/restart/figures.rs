//! The raw figures of the comparison.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::report;
use super::rig::Rig;
use super::run::{Case, Seen};
use crate::bench::record::{Raw, Report};
use crate::load::{Outcome, Request};
use crate::summary::{Summary, percentile};
use crate::topology::CLIENT_V4;

/// All of one run of the benchmark.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The ways, in order.
    pub ways: Vec<Way>,
    /// Every restart, in the order in which they were made.
    pub restarts: Vec<Restart>,
    /// Restarts that could not be measured, and why.
    pub failures: Vec<String>,
}

/// A way to restart a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// Its name.
    pub name: String,
    /// What it is.
    pub title: String,
    /// What has to be changed for it; `-` for nothing.
    pub needs: String,
    /// Why there are no figures, where there are none.
    pub absent: Option<String>,
}

impl Way {
    /// Of a rig.
    pub fn new(rig: &Rig, absent: Option<String>) -> Self {
        Self {
            name: rig.name.to_owned(),
            title: rig.title.to_owned(),
            needs: rig.needs.to_owned(),
            absent,
        }
    }
}

/// One restart under load. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// The way's name.
    pub way: String,
    /// New connections a second.
    pub rate: u32,
    /// How long the backend was to be away.
    pub outage_ms: f64,
    /// Which of the rounds, from 0.
    pub round: u32,
    /// How long it was away.
    pub away_ms: f64,
    /// Requests made.
    pub requests: usize,
    /// Of them, those that were due while the backend was away.
    pub due_meanwhile: usize,
    /// Requests lost, by how.
    pub errors: BTreeMap<String, usize>,
    /// Latencies of answered requests.
    pub latency: Latency,
    /// By how much the longest latency exceeds the outage; none where a request was lost.
    pub beyond_ms: Option<f64>,
    /// How much later requests were answered than they could be at the best, which is when they were
    /// due, or when the backend was back: the median of those that were due meanwhile. None also in
    /// older figures.
    #[serde(default)]
    pub added_p50_ms: Option<f64>,
    /// The same, and their 99th percentile.
    pub added_p99_ms: Option<f64>,
    /// The same, and the longest of all requests.
    pub added_max_ms: Option<f64>,
    /// Whether the backend saw the client's own address.
    pub source_kept: bool,
    /// How many packets the way kept from the backend, where it counts them.
    pub kept: Option<u64>,
    /// What else happened.
    pub remark: Option<String>,
}

/// How long answered requests took, from when they were due, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50_ms: Option<f64>,
    /// The 99th percentile.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
}

impl Restart {
    /// Of what was seen.
    pub fn new(rig: &Rig, case: Case, round: u32, seen: &Seen) -> Self {
        let summary = Summary::new(&seen.requests, seen.gap.length());
        let is_answered = |request: &&Request| request.outcome == Outcome::Ok;
        let mut added: Vec<Duration> = seen
            .due_meanwhile()
            .filter(is_answered)
            .map(|request| seen.late(request))
            .collect();
        added.sort_unstable();
        let longest = seen.requests.iter().filter(is_answered);
        let longest = longest.map(|request| seen.late(request)).max();
        Self {
            way: rig.name.to_owned(),
            rate: case.rate,
            outage_ms: ms(case.outage),
            round,
            away_ms: ms(seen.gap.length()),
            requests: summary.requests,
            due_meanwhile: seen.due_meanwhile().count(),
            errors: summary
                .errors
                .iter()
                .map(|(kind, count)| (kind.to_string(), *count))
                .collect(),
            latency: Latency {
                p50_ms: summary.p50.map(ms),
                p99_ms: summary.p99.map(ms),
                max_ms: summary.max.map(ms),
            },
            beyond_ms: summary.added().map(ms),
            added_p50_ms: percentile(&added, 50).map(ms),
            added_p99_ms: percentile(&added, 99).map(ms),
            added_max_ms: longest.map(ms),
            source_kept: seen.source == CLIENT_V4,
            kept: seen.kept,
            remark: seen.remark.clone(),
        }
    }

    /// Requests lost.
    pub fn lost(&self) -> usize {
        self.errors.values().sum()
    }
}

/// In milliseconds, to a microsecond.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Raw for Figures {
    const NAME: &'static str = "restart";

    fn report(&self) -> Report {
        report::report(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::rig::find;
    use super::*;
    use crate::listener::Gap;

    const MS: Duration = Duration::from_millis(1);

    /// A backend away from 1 s to 2 s; a request before, one after, and a hundred meanwhile, of which
    /// number `i` is answered `i` ms after the backend is back.
    fn seen() -> Seen {
        let begin = Instant::now();
        let ok = |at, latency| Request {
            at,
            latency,
            outcome: Outcome::Ok,
        };
        let meanwhile = (1..=100).map(|i| ok(MS * (1_000 + i), MS * 1_000));
        let requests = [ok(MS * 500, MS * 7)].into_iter().chain(meanwhile);
        Seen {
            requests: requests.chain([ok(MS * 2_500, MS * 150)]).collect(),
            begin,
            gap: Gap {
                from: begin + MS * 1_000,
                to: begin + MS * 2_000,
            },
            source: CLIENT_V4.into(),
            kept: None,
            remark: None,
        }
    }

    fn restart(seen: &Seen) -> Restart {
        let case = Case {
            rate: 100,
            outage: MS * 1_000,
        };
        Restart::new(find("nothing").unwrap(), case, 0, seen)
    }

    #[test]
    fn what_is_added_is_counted_from_when_the_backend_is_back() {
        let restart = restart(&seen());
        assert_eq!((restart.requests, restart.due_meanwhile), (102, 100));
        assert_eq!(restart.added_p50_ms, Some(50.0));
        assert_eq!(restart.added_p99_ms, Some(99.0));
        // Of all requests: the longest came when the backend was back already.
        assert_eq!(restart.added_max_ms, Some(150.0));
        assert_eq!(restart.latency.p50_ms, Some(1_000.0));
    }

    #[test]
    fn a_lost_request_adds_nothing() {
        let mut seen = seen();
        for request in &mut seen.requests[1..=50] {
            request.outcome = Outcome::Refused;
        }
        let half = restart(&seen);
        assert_eq!((half.lost(), half.added_p50_ms), (50, Some(75.0)));
        for request in &mut seen.requests[51..=100] {
            request.outcome = Outcome::Refused;
        }
        let none = restart(&seen);
        assert_eq!((none.added_p50_ms, none.added_p99_ms), (None, None));
        assert_eq!(none.added_max_ms, Some(150.0));
    }

    #[test]
    fn figures_without_the_added_median_are_read() {
        let restart = restart(&seen());
        let mut json = serde_json::to_value(&restart).unwrap();
        assert_eq!(json["added_p50_ms"], 50.0);
        json.as_object_mut().unwrap().remove("added_p50_ms");
        let read: Restart = serde_json::from_value(json).unwrap();
        let older = Restart {
            added_p50_ms: None,
            ..restart
        };
        assert_eq!(read, older);
    }
}
