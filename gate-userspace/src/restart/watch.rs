//! Waits for the backend to be healthy.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::endpoint::Endpoint;
use crate::health::{Checker, Passes};
use crate::nap::nap;
use crate::sockets;

/// Between a failed check and the next, at first and later: what is held waits for this, too. In
/// between it is a part of the time that the backend has taken already.
const POLL: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(1));

/// Between a failed command check and the next: a fork costs more than a connection.
const EXEC_POLL: Duration = Duration::from_millis(20);

/// Between a check that passed and the next, where several must pass in a row.
const RISE_PAUSE: Duration = Duration::from_millis(100);

/// Why a look failed.
#[derive(Clone)]
enum Failure {
    NothingListens(Endpoint),
    Other(String),
}

/// Why the last check failed, told from the checks to the live line.
#[derive(Clone, Default)]
pub(super) struct LastFailure(Arc<Mutex<Option<Failure>>>);

impl LastFailure {
    /// In words, with what may have been meant, which costs a look that not every failure is worth.
    pub fn get(&self) -> Option<String> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.clone();
        match last? {
            Failure::NothingListens(endpoint) => Some(nothing_listens(endpoint)),
            Failure::Other(text) => Some(text),
        }
    }

    fn set(&self, failure: Failure) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }
}

pub(super) type Watch = Pin<Box<dyn Future<Output = ()>>>;

/// Waits for the end of the watch, if there is one.
pub(super) async fn healthy(checks: &mut Option<Watch>) {
    match checks {
        Some(checks) => checks.await,
        None => std::future::pending().await,
    }
}

/// What must be done once the backend listens.
pub(super) type Renew = Box<dyn Fn() -> Result<(), String>>;

/// What a backend must do before its gate opens.
pub(super) struct Health {
    /// Endpoints that must have a listener here.
    pub must_listen: Vec<Endpoint>,
    /// Called once they have, to make the listeners known; why it can't be done now.
    pub renew: Renew,
    /// Endpoints that had one before.
    pub listening: Vec<Endpoint>,
    /// Checks that must pass.
    pub checks: Vec<Checker>,
    /// Lets a connection of its own pass the closed gates.
    pub passes: Passes,
    /// How long that may take.
    pub timeout: Duration,
    /// How often in a row.
    pub rise: u32,
    /// Told of each failure.
    pub last: LastFailure,
}

/// Waits until each local endpoint has a listener and every check has passed, as often in a row as
/// is asked for.
pub(super) fn watch(health: Health) -> Watch {
    Box::pin(async move {
        let began = Instant::now();
        let mut passed = 0;
        while passed < health.rise {
            match health.round().await {
                Ok(()) => {
                    passed += 1;
                    if passed < health.rise {
                        sleep(RISE_PAUSE).await;
                    }
                }
                Err((failure, pause)) => {
                    passed = 0;
                    health.last.set(failure);
                    nap(pause.unwrap_or_else(|| poll(began.elapsed()))).await;
                }
            }
        }
    })
}

/// The pause after so much time.
fn poll(elapsed: Duration) -> Duration {
    (elapsed / 20).clamp(POLL.0, POLL.1)
}

impl Health {
    /// Looks at everything once; why it failed, and when to look again where that is not the usual.
    async fn round(&self) -> Result<(), (Failure, Option<Duration>)> {
        for endpoint in &self.must_listen {
            if sockets::listeners(*endpoint).is_ok_and(|listeners| listeners == 0)
                && !self.is_published(*endpoint).await
            {
                return Err((Failure::NothingListens(*endpoint), None));
            }
        }
        (self.renew)().map_err(|failure| (Failure::Other(failure), None))?;
        for checker in &self.checks {
            let check = checker.check();
            let pause = match check.starts_a_process() {
                true => Some(EXEC_POLL),
                false => None,
            };
            if let Err(failure) = checker.run().await {
                return Err((Failure::Other(format!("{check}: {failure}")), pause));
            }
        }
        Ok(())
    }

    /// Whether an endpoint that never had a listener here takes connections all the same: a port that
    /// is published for a backend elsewhere.
    async fn is_published(&self, endpoint: Endpoint) -> bool {
        match endpoint.address {
            Some(address) if !self.listening.contains(&endpoint) => {
                let target = SocketAddr::new(address, endpoint.port);
                let mut checker = Checker::tcp(target, self.timeout);
                checker.pass(&self.passes);
                checker.run().await.is_ok()
            }
            _ => false,
        }
    }
}

/// What is missing, and what may have been meant.
fn nothing_listens(endpoint: Endpoint) -> String {
    let elsewhere = sockets::listeners_elsewhere(endpoint).unwrap_or_default();
    let elsewhere: Vec<String> = elsewhere.iter().map(ToString::to_string).collect();
    match elsewhere.is_empty() {
        true => format!("nothing listens on {endpoint}"),
        false => format!(
            "nothing listens on {endpoint}, but on {}",
            elsewhere.join(", ")
        ),
    }
}

/// The endpoints whose listener must be in this network namespace: those with an address of
/// this host. A wildcard may stand for hosts behind this one, so it counts only where there is
/// nothing else to check.
pub(super) fn must_listen(checks: &[Checker], endpoints: &[Endpoint]) -> Vec<Endpoint> {
    let is_local = |endpoint: &Endpoint| match endpoint.address {
        None => checks.is_empty(),
        Some(address) => match TcpListener::bind((address, 0)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        },
    };
    endpoints.iter().copied().filter(is_local).collect()
}

/// The checks that were asked for, or a connection to each endpoint with an address; their
/// connections pass the closed gates.
pub(super) fn effective_checks(
    checks: &[Checker],
    endpoints: &[Endpoint],
    timeout: Duration,
    passes: &Passes,
) -> Vec<Checker> {
    let connection = |endpoint: &Endpoint| {
        let target = SocketAddr::new(endpoint.address?, endpoint.port);
        Some(Checker::tcp(target, timeout))
    };
    let mut checks = match checks.is_empty() {
        true => endpoints.iter().filter_map(connection).collect(),
        false => checks.to_vec(),
    };
    for check in &mut checks {
        check.pass(passes);
    }
    checks
}
