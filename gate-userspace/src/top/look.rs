//! What the threads of `gate top` look at.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gate_common::state::BootTime;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::model::{Connected, Daemon, Found, GateLabel, Sampled};
use crate::clock;
use crate::daemon::client::{Client, ClientError};
use crate::drain::{self, Whose};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::events::{Event, INTERVAL, Moment, Observer, Source};
use crate::health::Health;
use crate::pins::Pins;
use crate::report;
use crate::status::{self, Status};

/// Between two looks at all that is live, at the least, and as part of the time that one takes.
const STATUS: Duration = Duration::from_millis(500);
const STATUS_FACTOR: u32 = 19;

/// Between two questions to the daemon.
const ASK: Duration = Duration::from_secs(1);

/// For its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a thread has to tell.
pub(super) enum News {
    /// What is live, and when that was.
    Status(Box<Option<Status>>, BootTime),
    /// It could not be read.
    Trouble(String),
    /// Something happened.
    Event(Event),
    /// What the daemon says.
    Daemon(Daemon),
    /// Connections of a gate, and of each of its backends.
    Connections(Connected),
    /// Something that was asked for is under way, or has come to its end: what, and what came of it.
    Act(String, Option<(String, bool)>),
    /// A signal came.
    Signal,
}

/// The gate whose connections are counted: its label, endpoints and backends.
pub(super) type Wanted = Arc<Mutex<Option<(GateLabel, Vec<Endpoint>, Vec<Endpoint>)>>>;

/// Looks at what is live until nobody listens.
pub(super) fn at_gates(pins: &Pins, news: &Sender<News>) {
    let (mut source, mut observer) = (Source::new(pins), Observer::new());
    let mut due = Instant::now();
    loop {
        let happened = source.look();
        let happened = happened.map(|snapshot| observer.step(snapshot, Moment::now()));
        let mut told = Vec::new();
        match happened {
            Ok(events) => told.extend(events.into_iter().map(News::Event)),
            Err(error) => told.push(News::Trouble(error.to_string())),
        }
        if Instant::now() >= due {
            let start = Instant::now();
            told.push(match status::read(pins) {
                Ok(status) => News::Status(Box::new(status), clock::now()),
                // A `gate down` took it away meanwhile.
                Err(_) if !pins.exist() => News::Status(Box::new(None), clock::now()),
                Err(error) => News::Trouble(error.to_string()),
            });
            due = Instant::now() + STATUS.max(start.elapsed() * STATUS_FACTOR);
        }
        if told.into_iter().any(|one| news.send(one).is_err()) {
            return;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Counts the connections of the gate that is wanted, until nobody listens.
pub(super) fn at_connections(wanted: &Wanted, news: &Sender<News>) {
    loop {
        let start = Instant::now();
        let gate = wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((label, endpoints, backends)) = gate
            // What can't be counted is not shown.
            && let Ok(connected) = count(label, &endpoints, &backends)
            && news.send(News::Connections(connected)).is_err()
        {
            return;
        }
        std::thread::sleep(drain::pause(start.elapsed()).max(STATUS));
    }
}

fn count(label: GateLabel, endpoints: &[Endpoint], backends: &[Endpoint]) -> Result<Connected> {
    let all = drain::connections(endpoints)?.connections.len();
    let mut each = Vec::new();
    for backend in backends {
        let whose = Whose::new(vec![*backend], Vec::new());
        let found = drain::Watch::of_backends(whose)?.look()?;
        each.push((*backend, found.connections.len()));
    }
    Ok(Connected { label, all, each })
}

/// Asks the daemon what the checks say, until nobody listens.
pub(super) async fn at_health(socket: &Path, news: &Sender<News>) {
    let client = Client::new(socket);
    loop {
        let daemon = match timeout(PATIENCE, client.get("/v1/health")).await {
            Ok(Ok(answer)) => Daemon::Here(health(&answer)),
            Ok(Err(ClientError::NoDaemon { .. })) => Daemon::Away("none answers".to_owned()),
            Ok(Err(error)) => Daemon::Away(error.to_string()),
            Err(_) => Daemon::Away(format!("no answer within {}", report::span(PATIENCE))),
        };
        if news.send(News::Daemon(daemon)).is_err() {
            return;
        }
        sleep(ASK).await;
    }
}

/// The health of each gate, as [`health_json`](report::health_json) writes it.
fn health(answer: &Value) -> BTreeMap<String, Found> {
    let gates = answer["gates"].as_array().into_iter().flatten();
    gates
        .filter_map(|gate| Some((gate["gate"].as_str()?.to_owned(), found(gate))))
        .collect()
}

fn found(gate: &Value) -> Found {
    let state = |value: &Value| match value["state"].as_str() {
        Some("up") => Health::Up,
        Some("down") => Health::Down,
        _ => Health::Unknown,
    };
    let checks = gate["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let bad = checks.iter().find(|check| state(check) != Health::Up);
    let shown = bad.or(checks.first()).unwrap_or(&Value::Null);
    let history = shown["history"].as_array().into_iter().flatten();
    let health = state(gate);
    let why = shown["last_failure"].as_str().map(str::to_owned);
    Found {
        health,
        history: history
            .map(|sample| Sampled {
                passed: sample["passed"] == true,
                ms: sample["took_ms"].as_f64().unwrap_or(0.0),
            })
            .collect(),
        why: why.filter(|_| health == Health::Down),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{CheckHealth, GateHealth, Sample};

    #[test]
    fn what_the_daemon_says_of_health_is_read() {
        let check = |text: &str, health, passed| CheckHealth {
            check: text.parse().expect(text),
            health,
            since: Duration::ZERO,
            last: None,
            last_ago: None,
            streak: 1,
            last_failure: Some(("refused".to_owned(), Duration::ZERO)),
            history: vec![Sample::new(passed, Duration::from_millis(3))],
        };
        let gate = |name: &str, health, checks| GateHealth {
            name: name.parse().expect(name),
            health,
            since: Duration::ZERO,
            checks,
        };
        let up = check("tcp://127.0.0.1:1", Health::Up, true);
        let down = check("tcp://127.0.0.1:2", Health::Down, false);
        let gates = [
            gate("web", Health::Down, vec![up.clone(), down]),
            gate("api", Health::Up, vec![up]),
            gate("new", Health::Unknown, Vec::new()),
        ];
        let found = health(&report::health_json(&gates));
        let sampled = |passed| vec![Sampled { passed, ms: 3.0 }];
        let expected = |health, history, why: Option<&str>| Found {
            health,
            history,
            why: why.map(str::to_owned),
        };
        assert_eq!(
            found["web"],
            expected(Health::Down, sampled(false), Some("refused"))
        );
        assert_eq!(found["api"], expected(Health::Up, sampled(true), None));
        assert_eq!(found["new"], expected(Health::Unknown, Vec::new(), None));
        assert!(health(&Value::Null).is_empty());
    }
}
