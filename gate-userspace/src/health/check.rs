//! What a check is, and how it is written.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use hyper::Uri;

/// What is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A TCP connection is accepted at `HOST:PORT`.
    Tcp(String),
    /// A GET of this URL (http or https) is answered with an expected status.
    Http(Uri),
    /// This shell command exits with 0.
    Exec(String),
}

/// Why a text is no check.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: write http://HOST/PATH, https://HOST/PATH, tcp://HOST:PORT or exec:COMMAND")]
pub struct CheckSyntax(String);

impl FromStr for Check {
    type Err = CheckSyntax;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: &str| Err(CheckSyntax(why.to_owned()));
        if let Some(command) = text.strip_prefix("exec:") {
            return match command.trim() {
                "" => refuse("the command is missing"),
                command => Ok(Self::Exec(command.to_owned())),
            };
        }
        let Ok(uri) = text.parse::<Uri>() else {
            return refuse("that is no URL");
        };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return refuse("the scheme or the host is missing");
        };
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return refuse("the host is missing, or has a user name");
        }
        match scheme {
            "http" | "https" => Ok(Self::Http(uri)),
            "tcp" => match authority.port_u16() {
                Some(1..) => Ok(Self::Tcp(authority.to_string())),
                _ => refuse("the port is missing"),
            },
            other => refuse(&format!("{other} is not a scheme that is checked")),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => write!(f, "tcp://{target}"),
            Self::Http(uri) => uri.fmt(f),
            Self::Exec(command) => write!(f, "exec:{command}"),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_checks() {
        for (text, shown) in [
            ("http://127.0.0.1:8080/healthz", None),
            ("https://[fd00::5]/", None),
            ("http://localhost", Some("http://localhost/")),
            ("tcp://127.0.0.1:5432", None),
            ("exec:pg_isready -q", None),
        ] {
            let check: Check = text.parse().expect(text);
            assert_eq!(check.to_string(), shown.unwrap_or(text));
        }
        for text in [
            "",
            "localhost:80",
            "/healthz",
            "ftp://host/",
            "http://",
            "http:///path",
            "http://user@host/",
            "tcp://host",
            "tcp://host:0",
            "exec:",
            "exec:  ",
            "http://a b/",
        ] {
            assert!(text.parse::<Check>().is_err(), "{text}");
        }
    }

    #[test]
    fn reads_statuses() {
        assert_eq!("200".parse(), Ok(Statuses(200..=200)));
        assert_eq!("200-399".parse(), Ok(Statuses(200..=399)));
        for text in ["", "99", "600", "300-200", "2xx", "200-"] {
            assert!(text.parse::<Statuses>().is_err(), "{text}");
        }
    }
}
