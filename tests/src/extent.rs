//! How much of a fault is tried: a little in every test run, all of it by `cargo xtask faults`.

use std::env;

/// The environment variable that asks for all of it, by the value `full`.
pub const EXTENT: &str = "GATE_TEST_EXTENT";

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What fits into every test run.
    Short,
    /// All.
    Full,
}

impl Extent {
    /// What the environment asks for.
    pub fn wanted() -> Self {
        match env::var(EXTENT) {
            Ok(value) if value == "full" => Self::Full,
            Ok(_) | Err(_) => Self::Short,
        }
    }

    /// The first when short, the second when full.
    pub fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extent_picks() {
        assert_eq!(Extent::Short.pick(1, 2), 1);
        assert_eq!(Extent::Full.pick(1, 2), 2);
    }
}
