//! How tests ended, counted.

use std::fmt;
use std::ops::AddAssign;
use std::process::ExitCode;

/// How many lines tell of a test that found that it can't run: `SKIPPED name: needs …`.
pub fn skipped(text: &str) -> u64 {
    text.lines()
        .map(|line| u64::from(line.starts_with("SKIPPED ")))
        .sum()
}

/// How tests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// They did what they should.
    pub passed: u64,
    /// They did not, or could not be run.
    pub failed: u64,
    /// They were not meant to be run, or need what this kernel does not have.
    pub skipped: u64,
}

impl Tally {
    /// A whole run that came to nothing counts as one failure.
    pub const fn broken() -> Self {
        Self {
            passed: 0,
            failed: 1,
            skipped: 0,
        }
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut tally = Self::default();
        for count in counts.split("; ") {
            let Some((number, word)) = count.split_once(' ') else {
                continue;
            };
            match word {
                "passed" => tally.passed = number.parse().ok()?,
                "failed" => tally.failed = number.parse().ok()?,
                "ignored" => tally.skipped = number.parse().ok()?,
                _ => {}
            }
        }
        Some(tally)
    }

    /// `tests` of those that passed had only found that they can't run: libtest has no word for
    /// that.
    pub fn skip(&mut self, tests: u64) {
        let tests = tests.min(self.passed);
        self.passed -= tests;
        self.skipped += tests;
    }

    /// Nothing run is no success either.
    pub fn code(self) -> ExitCode {
        if self.failed == 0 && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(out, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 5 filtered out; finished in 0.01s";
        let tally = Tally::parse(line).unwrap();
        assert_eq!(tally.to_string(), "12 passed, 3 failed, 4 skipped");
        assert_eq!(Tally::parse("test a::b ... ok"), None);
        assert_eq!(Tally::parse("     test result: ok. 1 passed"), None);
    }

    #[test]
    fn sums_add_up() {
        let mut total = Tally::parse("test result: ok. 2 passed; 0 failed; 0 ignored").unwrap();
        total += Tally::broken();
        assert_eq!(total.to_string(), "2 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let mut tally = Tally::parse("test result: ok. 5 passed; 0 failed; 1 ignored").unwrap();
        tally.skip(skipped(
            "SKIPPED a: needs TCX\nmore\nSKIPPED b: needs TCX\n",
        ));
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 3 skipped");
        tally.skip(9);
        assert_eq!(tally.to_string(), "0 passed, 0 failed, 6 skipped");
    }

    #[test]
    fn only_passing_tests_make_a_success() {
        let code = |passed, failed| {
            format!(
                "{:?}",
                Tally {
                    passed,
                    failed,
                    skipped: 1
                }
                .code()
            )
        };
        let success = format!("{:?}", ExitCode::SUCCESS);
        assert_eq!(code(1, 0), success);
        assert_ne!(code(0, 0), success);
        assert_ne!(code(1, 1), success);
    }
}
