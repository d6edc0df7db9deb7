//! How values lie.

use serde_json::{Value, json};

/// The median of some values, and how far they are from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// A quarter is below.
    pub low: f64,
    /// Half is below.
    pub median: f64,
    /// A quarter is above.
    pub high: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these values; not a number where there are none.
    pub fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |quarters: usize| between(&values, quarters);
        Self {
            min: at(0),
            low: at(1),
            median: at(2),
            high: at(3),
            max: at(4),
        }
    }

    /// As JSON.
    pub fn to_json(self) -> Value {
        json!({
            "min": self.min,
            "low": self.low,
            "median": self.median,
            "high": self.high,
            "max": self.max,
        })
    }
}

/// The value that many quarters of the way up, on the line between its neighbours.
fn between(sorted: &[f64], quarters: usize) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let (at, rest) = (last * quarters / 4, last * quarters % 4);
    let (below, above) = (sorted[at], sorted[(at + 1).min(last)]);
    below + (above - below) * rest as f64 / 4.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_between_values() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        let expected = Spread {
            min: 1.0,
            low: 1.75,
            median: 2.5,
            high: 3.25,
            max: 4.0,
        };
        assert_eq!(spread, expected);
        assert_eq!(Spread::of(&[7.0, 9.0, 8.0]).median, 8.0);
    }

    #[test]
    fn one_value_is_all_and_none_is_nothing() {
        let one = Spread::of(&[5.0]);
        assert_eq!((one.min, one.median, one.max), (5.0, 5.0, 5.0));
        assert!(Spread::of(&[]).median.is_nan());
    }
}
