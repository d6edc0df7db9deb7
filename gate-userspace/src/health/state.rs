//! What the results of one check come to: up or down, by rise and fall. Pure; time is passed in.
//!
//! As HAProxy counts (`rise` and `fall` in its configuration manual): only results in a row count, and
//! one of the other kind begins the count anew.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// Results that are kept.
pub const HISTORY: usize = 60;

/// Whether something is healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not decided yet.
    Unknown,
    /// It is.
    Up,
    /// It is not.
    Down,
}

impl Health {
    /// The word that people use for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    /// Of checks that must all be up: down where one is, unknown where one is not decided yet, or
    /// there is none.
    #[must_use]
    pub fn of_all(checks: impl IntoIterator<Item = Self>) -> Self {
        let worse = |all: Option<Self>, one| match (all, one) {
            (Some(Self::Down), _) | (_, Self::Down) => Some(Self::Down),
            (Some(Self::Unknown), _) | (_, Self::Unknown) => Some(Self::Unknown),
            (None | Some(Self::Up), Self::Up) => Some(Self::Up),
        };
        checks
            .into_iter()
            .fold(None, worse)
            .unwrap_or(Self::Unknown)
    }
}

/// One result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Whether the check passed.
    pub passed: bool,
    micros: u32,
}

impl Sample {
    /// A result, and how long it took, to the microsecond and an hour at the most.
    #[must_use]
    pub fn new(passed: bool, took: Duration) -> Self {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        Self { passed, micros }
    }

    /// How long the check took.
    #[must_use]
    pub fn took(self) -> Duration {
        Duration::from_micros(self.micros.into())
    }
}

/// One check's state.
#[derive(Clone, Debug)]
pub struct State {
    rise: NonZeroU32,
    fall: NonZeroU32,
    health: Health,
    since: Instant,
    streak: u32,
    history: VecDeque<Sample>,
    last: Option<Instant>,
    failure: Option<(Instant, String)>,
}

impl State {
    /// One that is unknown. Zero counts as one.
    #[must_use]
    pub fn new(rise: u32, fall: u32, now: Instant) -> Self {
        Self {
            rise: NonZeroU32::new(rise).unwrap_or(NonZeroU32::MIN),
            fall: NonZeroU32::new(fall).unwrap_or(NonZeroU32::MIN),
            health: Health::Unknown,
            since: now,
            streak: 0,
            history: VecDeque::with_capacity(HISTORY),
            last: None,
            failure: None,
        }
    }

    /// Takes a result, or why the check failed; returns the health where that changed it.
    pub fn record(
        &mut self,
        result: Result<(), String>,
        took: Duration,
        now: Instant,
    ) -> Option<Health> {
        let sample = Sample::new(result.is_ok(), took);
        self.streak = match self.history.back() {
            Some(last) if last.passed == sample.passed => self.streak.saturating_add(1),
            _ => 1,
        };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(sample);
        self.last = Some(now);
        if let Err(why) = result {
            self.failure = Some((now, why));
        }
        let (needed, health) = match sample.passed {
            true => (self.rise, Health::Up),
            false => (self.fall, Health::Down),
        };
        if self.health == health || self.streak < needed.get() {
            return None;
        }
        self.health = health;
        self.since = now;
        Some(health)
    }

    /// The health now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How many of the last results are alike.
    #[must_use]
    pub fn streak(&self) -> u32 {
        self.streak
    }

    /// The last results, oldest first, [`HISTORY`] at the most.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = Sample> + '_ {
        self.history.iter().copied()
    }

    /// When the last result came.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// When a check failed last, and why.
    #[must_use]
    pub fn failure(&self) -> Option<(Instant, &str)> {
        let (at, why) = self.failure.as_ref()?;
        Some((*at, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOOK: Duration = Duration::from_millis(3);

    fn result(passed: bool) -> Result<(), String> {
        match passed {
            true => Ok(()),
            false => Err("refused".to_owned()),
        }
    }

    /// The health after each of these results.
    fn healths(rise: u32, fall: u32, results: &[bool]) -> Vec<Health> {
        let now = Instant::now();
        let mut state = State::new(rise, fall, now);
        let mut all = Vec::new();
        for passed in results {
            let before = state.health();
            let turned = state.record(result(*passed), TOOK, now);
            assert_eq!(turned, Some(state.health()).filter(|it| *it != before));
            all.push(state.health());
        }
        all
    }

    #[test]
    fn rise_and_fall_count_what_comes_in_a_row() {
        use Health::{Down, Unknown, Up};
        let (ok, bad) = (true, false);
        for (rise, fall, results, expected) in [
            (1, 1, &[ok, bad, ok][..], &[Up, Down, Up][..]),
            (2, 3, &[ok, ok, bad, bad, bad], &[Unknown, Up, Up, Up, Down]),
            (2, 3, &[bad, bad, ok, bad], &[Unknown; 4]),
            (
                2,
                2,
                &[bad, bad, ok, bad, ok, ok],
                &[Unknown, Down, Down, Down, Down, Up],
            ),
            (0, 0, &[bad, ok], &[Down, Up]),
        ] {
            assert_eq!(
                healths(rise, fall, results),
                expected,
                "{rise} {fall} {results:?}"
            );
        }
    }

    #[test]
    fn a_gate_is_as_its_checks_are() {
        use Health::{Down, Unknown, Up};
        for (checks, all) in [
            (&[][..], Unknown),
            (&[Up], Up),
            (&[Up, Up], Up),
            (&[Up, Unknown], Unknown),
            (&[Up, Down], Down),
            (&[Unknown, Down], Down),
            (&[Down, Unknown, Up], Down),
        ] {
            assert_eq!(Health::of_all(checks.iter().copied()), all, "{checks:?}");
        }
    }

    #[test]
    fn the_last_results_and_the_last_failure_are_kept() {
        let start = Instant::now();
        let mut state = State::new(1, 1, start);
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            state.record(result(second != 50), Duration::from_millis(second), now);
        }
        let history: Vec<Sample> = state.history().collect();
        assert_eq!(history.len(), HISTORY);
        assert_eq!(history[0].took(), Duration::from_millis(40));
        assert_eq!(history.iter().filter(|sample| !sample.passed).count(), 1);
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(state.failure(), Some((at(50), "refused")));
        assert_eq!((state.since(), state.last()), (at(51), Some(at(99))));
        assert_eq!(state.streak(), 49);
    }

    proptest! {
        #[test]
        fn fewer_than_rise_or_fall_in_a_row_never_change_it(
            rise in 1_u32..6,
            fall in 1_u32..6,
            results in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            let healths = healths(rise, fall, &results);
            let mut before = Health::Unknown;
            for (at, health) in healths.into_iter().enumerate() {
                let passed = results[at];
                let alike = results[..=at].iter().rev().take_while(|it| **it == passed).count();
                let needed = if passed { rise } else { fall } as usize;
                let target = if passed { Health::Up } else { Health::Down };
                let expected = if alike >= needed { target } else { before };
                prop_assert_eq!(health, expected);
                before = health;
            }
        }

        #[test]
        fn alternating_results_never_change_it(
            rise in 2_u32..6,
            fall in 2_u32..6,
            up in any::<bool>(),
            count in 0_usize..100,
        ) {
            let settled = vec![up; 6];
            let alternating = (0..count).map(|at| (at % 2 == 0) != up);
            let results: Vec<bool> = settled.into_iter().chain(alternating).collect();
            let expected = if up { Health::Up } else { Health::Down };
            prop_assert!(healths(rise, fall, &results)[5..].iter().all(|it| *it == expected));
        }
    }
}
