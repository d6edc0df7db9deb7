//! Which HTTP statuses count as healthy.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// HTTP statuses, from and to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(RangeInclusive<u16>);

impl Default for Statuses {
    fn default() -> Self {
        Self(200..=299)
    }
}

impl Statuses {
    /// Whether this one is among them.
    pub(super) fn contains(&self, status: u16) -> bool {
        self.0.contains(&status)
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|status| (100..=599).contains(status))
        };
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => Ok(Self(from..=to)),
            _ => Err("write a status like 200, or a range like 200-399".to_owned()),
        }
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (from, to) if from == to => from.fmt(f),
            (from, to) => write!(f, "{from}-{to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_statuses() {
        assert_eq!("200".parse(), Ok(Statuses(200..=200)));
        assert_eq!("200-399".parse(), Ok(Statuses(200..=399)));
        for text in ["", "99", "600", "300-200", "2xx", "200-"] {
            assert!(text.parse::<Statuses>().is_err(), "{text}");
        }
        for text in ["204", "200-299"] {
            let statuses: Statuses = text.parse().expect(text);
            assert_eq!(statuses.to_string(), text);
        }
    }
}
