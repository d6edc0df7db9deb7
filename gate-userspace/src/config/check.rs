//! What a file says of one health check.

use std::path::PathBuf;
use std::time::Duration;

use super::file::{self, At};
use super::gate::Reading;
use crate::health::{Check, Spec, Statuses, Verify};

/// Between two checks where nothing else is said.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shortest and longest interval.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// For one check where nothing else is said.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Shortest and longest timeout.
const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(3600));

/// What is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Tcp,
    Grpc,
    Unix,
    Exec,
}

impl Kind {
    const fn key(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
            Self::Unix => "unix",
            Self::Exec => "exec",
        }
    }

    /// What its text begins with on a command line, where that is left out in a file.
    const fn prefix(self) -> Option<&'static str> {
        match self {
            Self::Http => None,
            Self::Tcp => Some("tcp://"),
            Self::Grpc => Some("grpc://"),
            Self::Unix => Some("unix:"),
            Self::Exec => Some("exec:"),
        }
    }
}

/// Reads one check; none where it is no use to go on.
pub(super) fn read(reading: &mut Reading<'_>, at: &At<file::Check>) -> Option<Spec> {
    let it = &at.value;
    let kinds = [
        (Kind::Http, &it.http),
        (Kind::Tcp, &it.tcp),
        (Kind::Grpc, &it.grpc),
        (Kind::Unix, &it.unix),
        (Kind::Exec, &it.exec),
    ];
    let mut given = kinds
        .into_iter()
        .filter_map(|(kind, text)| Some((kind, text.as_ref()?)));
    let what = given.next();
    for (kind, text) in given {
        let told = format!(
            "`{}` is a second thing to check: write a check of its own for it",
            kind.key()
        );
        reading.tell(&text.bytes, told);
    }
    let times = times(reading, it);
    let statuses = it.status.as_ref().and_then(|it| statuses(reading, it));
    let Some((kind, text)) = what else {
        let told = "this check has nothing to check: add one of http, tcp, grpc, unix and exec";
        reading.tell(&at.bytes, told);
        return None;
    };
    check_keys(reading, it, (kind, &text.value));
    let verify = verify(reading, it);
    let check = target(reading, kind, text)?;
    let (interval, timeout) = times;
    Some(Spec {
        check,
        statuses: statuses.unwrap_or_default(),
        host: it.host.as_ref().map(|it| it.value.clone()),
        body: it.body.as_ref().map(|it| it.value.clone()),
        verify,
        interval,
        timeout,
        rise: it.rise.as_ref().map_or(2, |it| it.value),
        fall: it.fall.as_ref().map_or(3, |it| it.value),
    })
}

fn times(reading: &mut Reading<'_>, it: &file::Check) -> (Duration, Duration) {
    let interval = it.interval.as_ref();
    let interval = interval.and_then(|it| reading.time(it, INTERVALS));
    let interval = interval.unwrap_or(INTERVAL);
    let Some(text) = &it.timeout else {
        return (interval, TIMEOUT.min(interval));
    };
    let timeout = reading.time(text, TIMEOUTS);
    if timeout.is_some_and(|it| it > interval) {
        let told = format!(
            "the timeout {} is longer than the interval {}: make it shorter, or the interval longer",
            text.value,
            humantime::format_duration(interval)
        );
        reading.tell(&text.bytes, told);
    }
    (interval, timeout.unwrap_or(TIMEOUT.min(interval)))
}

fn statuses(reading: &mut Reading<'_>, text: &At<String>) -> Option<Statuses> {
    let parsed = text.value.parse::<Statuses>();
    if let Err(remedy) = &parsed {
        let shown = super::shape::short(&text.value);
        reading.tell(&text.bytes, format!("\"{shown}\" is no status: {remedy}"));
    }
    parsed.ok()
}

/// What does not go with this kind of check.
fn check_keys(reading: &mut Reading<'_>, it: &file::Check, (kind, text): (Kind, &str)) {
    let of_http = [
        ("status", &it.status),
        ("host", &it.host),
        ("body", &it.body),
    ];
    for (key, value) in of_http {
        if let (Some(value), true) = (value, kind != Kind::Http) {
            let told = format!(
                "`{key}` is for an http check, and this one is {}: leave it out",
                kind.key()
            );
            reading.tell(&value.bytes, told);
        }
    }
    let is_tls = ["https://", "grpcs://"]
        .iter()
        .any(|it| text.starts_with(it));
    let verify = it.verify.as_ref().map(|it| ("verify", &it.bytes));
    let ca = it.ca.as_ref().map(|it| ("ca", &it.bytes));
    for (key, bytes) in [verify, ca].into_iter().flatten() {
        if !is_tls {
            let told = format!("`{key}` is for an https URL: leave it out, or write https://");
            reading.tell(bytes, told);
        }
    }
}

fn verify(reading: &mut Reading<'_>, it: &file::Check) -> Verify {
    let is_off = it.verify.as_ref().is_some_and(|it| !it.value);
    match (&it.ca, is_off) {
        (None, false) => Verify::System,
        (None, true) => Verify::Nothing,
        (Some(ca), true) => {
            let told = "`ca` verifies the certificate, and verify = false does not: leave one of them \
                        out";
            reading.tell(&ca.bytes, told);
            Verify::Nothing
        }
        (Some(ca), false) => {
            let path = PathBuf::from(&ca.value);
            if !path.is_absolute() {
                let told = "`ca` is no absolute path: write it from / on";
                reading.tell(&ca.bytes, told);
            }
            Verify::Against(path)
        }
    }
}

/// What is checked, in the form that the command line has for it.
fn target(reading: &mut Reading<'_>, kind: Kind, text: &At<String>) -> Option<Check> {
    let is_url = ["http://", "https://"]
        .iter()
        .any(|it| text.value.starts_with(it));
    if kind == Kind::Http && !is_url {
        let told = "`http` takes a URL: write http://HOST/PATH or https://HOST/PATH";
        reading.tell(&text.bytes, told);
        return None;
    }
    let has_scheme = match kind {
        Kind::Http => true,
        Kind::Exec => false,
        Kind::Tcp => text.value.starts_with("tcp://"),
        Kind::Grpc => text.value.starts_with("grpc://") || text.value.starts_with("grpcs://"),
        Kind::Unix => text.value.starts_with("unix:"),
    };
    let value = match kind.prefix() {
        Some(prefix) if !has_scheme => format!("{prefix}{}", text.value),
        _ => text.value.clone(),
    };
    let bytes = text.bytes.clone();
    reading.parse(&At { value, bytes })
}
