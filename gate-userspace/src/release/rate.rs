//! A limit on new connections a second, and the token bucket that keeps to it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use gate_common::state::BootTime;

use crate::clock;

/// New connections a second, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rate(NonZeroU32);

/// Why a text is no rate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// 0.
    #[error(
        "a rate of 0 would release nothing: leave --rate out for no limit, or leave the gate closed"
    )]
    Zero,
    /// Not a number of connections a second.
    #[error("{0:?} is no rate: write connections a second, as in 500/s or 500")]
    NoRate(String),
}

impl Rate {
    /// That many a second; none for 0.
    #[must_use]
    pub const fn per_second(count: u32) -> Option<Self> {
        match NonZeroU32::new(count) {
            Some(count) => Some(Self(count)),
            None => None,
        }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix("/s").unwrap_or(text);
        let is_plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let count: u32 = match number.parse() {
            Ok(count) if is_plain => count,
            _ => return Err(RateError::NoRate(text.to_owned())),
        };
        Self::per_second(count).ok_or(RateError::Zero)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// A token bucket that is full at first. It holds what the rate gives in 10 ms, and at least one.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Nanoseconds between two tokens, rounded up: never faster than the rate.
    interval: u64,
    /// Most tokens.
    depth: u64,
    /// When the bucket is full again.
    full_at: BootTime,
}

/// The part of a second whose tokens may go at once.
const BURST: u32 = 100;

impl Bucket {
    /// The bucket of that rate.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let count = rate.0.get();
        Self {
            interval: 1_000_000_000_u64.div_ceil(count.into()),
            depth: count.div_ceil(BURST).into(),
            full_at: BootTime(0),
        }
    }

    /// How many may go at `now`.
    #[must_use]
    pub fn ready(&self, now: BootTime) -> usize {
        let missing = self.full_at.0.saturating_sub(now.0).div_ceil(self.interval);
        self.depth.saturating_sub(missing) as usize
    }

    /// Takes note that so many went at `now`.
    pub fn went(&mut self, count: usize, now: BootTime) {
        let spent = self.interval.saturating_mul(count as u64);
        self.full_at = BootTime(self.full_at.0.max(now.0).saturating_add(spent));
    }

    /// How long it is until one may go; zero where one may now.
    #[must_use]
    pub fn wait(&self, now: BootTime) -> Duration {
        let others = self.interval.saturating_mul(self.depth - 1);
        clock::between(now, BootTime(self.full_at.0.saturating_sub(others)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, count) in [("500/s", 500), ("500", 500), ("1", 1), ("0007/s", 7)] {
            assert_eq!(text.parse(), Ok(Rate::per_second(count).unwrap()), "{text}");
        }
        assert_eq!(Rate::per_second(500).unwrap().to_string(), "500/s");
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["0", "0/s", "00/s"] {
            assert_eq!(text.parse::<Rate>(), Err(RateError::Zero), "{text}");
        }
        for text in [
            "",
            "/s",
            "-1",
            "+5",
            "5/m",
            "5 /s",
            "1.5",
            "5/s/s",
            "4294967296",
            "five",
        ] {
            let error = RateError::NoRate(text.to_owned());
            assert_eq!(text.parse::<Rate>(), Err(error), "{text}");
        }
        let remedy = RateError::Zero.to_string();
        assert!(remedy.contains("--rate"), "{remedy}");
    }

    #[test]
    fn a_full_bucket_gives_ten_milliseconds_worth_at_once() {
        for (count, burst) in [
            (1, 1),
            (100, 1),
            (101, 2),
            (1_000, 10),
            (u32::MAX, 42_949_673),
        ] {
            let bucket = Bucket::new(Rate::per_second(count).unwrap());
            assert_eq!(bucket.ready(BootTime(0)), burst, "{count}");
        }
    }

    proptest! {
        /// Whoever takes all that is ready whenever he looks gets the rate, and one burst more.
        #[test]
        fn no_window_sees_more_than_the_rate(
            count in 1_u32..100_000,
            looks in prop::collection::vec(0_u64..50_000_000, 1..200),
        ) {
            let mut bucket = Bucket::new(Rate::per_second(count).unwrap());
            let (mut now, mut went) = (1_000_000, 0_u64);
            let start = now;
            for look in looks {
                now += look;
                let ready = bucket.ready(BootTime(now));
                bucket.went(ready, BootTime(now));
                went += ready as u64;
                let most = u128::from(now - start) * u128::from(count) / 1_000_000_000;
                prop_assert!(u128::from(went) <= most + u128::from(count.div_ceil(BURST)));
            }
        }

        /// Waiting as told is enough, and it never starves.
        #[test]
        fn after_the_wait_one_may_go(count in 1_u32..1_000_000, start: u32) {
            let mut bucket = Bucket::new(Rate::per_second(count).unwrap());
            let mut now = BootTime(start.into());
            for _ in 0..300 {
                let wait = bucket.wait(now);
                prop_assert_eq!(wait.is_zero(), bucket.ready(now) > 0);
                now = clock::after(now, wait);
                prop_assert!(bucket.ready(now) > 0);
                bucket.went(1, now);
            }
            let spent = Duration::from_nanos(now.0 - u64::from(start)).as_secs_f64();
            let fair = 300.0 / f64::from(count);
            prop_assert!(spent <= fair * 1.01 + 0.001, "{spent} s, not {fair}");
        }
    }
}
