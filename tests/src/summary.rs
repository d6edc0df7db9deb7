//! What a run of load came to, in numbers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{Outcome, Request};
use crate::text::grouped;

/// The numbers of one run. Latencies are of answered requests only; `None` when there were none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Requests made.
    pub requests: usize,
    /// Requests lost, by how; those with a count of 0 left out.
    pub errors: Vec<(Outcome, usize)>,
    /// Half of the answered requests took at most this.
    pub p50: Option<Duration>,
    /// 99 of 100 answered requests took at most this.
    pub p99: Option<Duration>,
    /// The longest that an answered request took.
    pub max: Option<Duration>,
    /// How long nothing listened.
    pub outage: Duration,
}

impl Summary {
    /// Sums up the requests of a run in which nothing listened for `outage`.
    pub fn new(requests: &[Request], outage: Duration) -> Self {
        let mut latencies: Vec<_> = requests
            .iter()
            .filter(|r| r.outcome == Outcome::Ok)
            .map(|r| r.latency)
            .collect();
        latencies.sort_unstable();
        let count = |outcome| requests.iter().filter(|r| r.outcome == outcome).count();
        Self {
            requests: requests.len(),
            errors: Outcome::ERRORS
                .map(|o| (o, count(o)))
                .into_iter()
                .filter(|e| e.1 > 0)
                .collect(),
            p50: percentile(&latencies, 50),
            p99: percentile(&latencies, 99),
            max: latencies.last().copied(),
            outage,
        }
    }

    /// Requests lost.
    pub fn lost(&self) -> usize {
        self.errors.iter().map(|(_, count)| count).sum()
    }

    /// By how much the longest latency exceeds the outage. `None` when a request was lost: then the
    /// longest wait is not known.
    pub fn added(&self) -> Option<Duration> {
        if self.lost() > 0 {
            return None;
        }
        Some(self.max?.saturating_sub(self.outage))
    }

    /// The errors in words: `200 refused, 1 reset`. Empty when there were none.
    pub fn errors_in_words(&self) -> String {
        let words: Vec<_> = self
            .errors
            .iter()
            .map(|(kind, count)| format!("{} {kind}", grouped(*count)))
            .collect();
        words.join(", ")
    }

    /// The same as JSON; times in milliseconds.
    pub fn to_json(&self) -> Value {
        let ms = |time: Option<Duration>| time.map(|t| (t.as_secs_f64() * 1e6).round() / 1e3);
        let errors: serde_json::Map<_, _> = self
            .errors
            .iter()
            .map(|(kind, count)| (kind.to_string().replace(' ', "_"), json!(count)))
            .collect();
        json!({
            "requests": self.requests,
            "lost": self.lost(),
            "errors": errors,
            "p50_ms": ms(self.p50),
            "p99_ms": ms(self.p99),
            "max_ms": ms(self.max),
            "outage_ms": ms(Some(self.outage)),
            "added_ms": ms(self.added()),
        })
    }
}

/// The least value that `percent` of the values do not exceed. `sorted` ascends.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn request(latency_ms: u32, outcome: Outcome) -> Request {
        Request {
            at: Duration::ZERO,
            latency: MS * latency_ms,
            outcome,
        }
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<_> = (1..=100).map(|i| MS * i).collect();
        assert_eq!(percentile(&values, 50), Some(MS * 50));
        assert_eq!(percentile(&values, 99), Some(MS * 99));
        assert_eq!(percentile(&values, 100), Some(MS * 100));
        assert_eq!(percentile(&values[..1], 50), Some(MS));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn added_is_what_exceeds_the_outage() {
        let requests = [request(5, Outcome::Ok), request(1_004, Outcome::Ok)];
        assert_eq!(Summary::new(&requests, MS * 1_000).added(), Some(MS * 4));
        assert_eq!(
            Summary::new(&requests, MS * 2_000).added(),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn a_lost_request_has_no_known_latency() {
        let requests = [request(5, Outcome::Ok), request(9, Outcome::Refused)];
        let summary = Summary::new(&requests, MS);
        assert_eq!((summary.requests, summary.lost()), (2, 1));
        assert_eq!(summary.max, Some(MS * 5));
        assert_eq!(summary.added(), None);
        assert_eq!(summary.errors_in_words(), "1 refused");
        assert_eq!(summary.to_json()["errors"], json!({ "refused": 1 }));
    }

    #[test]
    fn no_requests_are_no_reason_to_panic() {
        let summary = Summary::new(&[], MS);
        assert_eq!(
            (summary.p50, summary.max, summary.added()),
            (None, None, None)
        );
    }
}
