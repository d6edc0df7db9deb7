//! One restart under load by one way, in a topology of its own.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::rig::{Claim, Rig};
use crate::backend::most_files;
use crate::listener::{Gap, Watch};
use crate::load::{Load, Outcome, Request, exchange, runtime};
use crate::topology::{Side, Topology};

/// From the load's start to the restart.
const CALM: Duration = Duration::from_millis(500);
/// From the end of the outage to the load's end.
const REST: Duration = Duration::from_secs(1);
/// What a request may take beyond the outage.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one request may take when all is well.
const LIMIT: Duration = Duration::from_secs(5);

/// Open files of a process that are not connections.
pub const OTHER_FILES: u64 = 500;

/// What bounds how many connections may wait for the backend, on the server.
pub const QUEUES: [&str; 2] = ["net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"];
/// How many they may be.
pub const QUEUE: usize = 65_535;

/// A load, and a restart under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// New connections a second.
    pub rate: u32,
    /// How long the backend is to be away.
    pub outage: Duration,
}

impl Case {
    /// How many threads the load takes, so that each may have its connections open, also those of
    /// an outage and the second after it.
    fn threads(self) -> Result<u32> {
        let at_once = f64::from(self.rate) * (self.outage.as_secs_f64() + 1.0);
        let room = most_files()?.saturating_sub(OTHER_FILES).max(1) as f64;
        let least = (at_once / room).ceil() as u32;
        (least.max(1)..=self.rate)
            .find(|&threads| self.rate.is_multiple_of(threads))
            .context("more connections at once than files")
    }
}

/// What was seen of a restart.
pub struct Seen {
    /// The requests, in the order they were due.
    pub requests: Vec<Request>,
    /// When the first was due.
    pub begin: Instant,
    /// When the backend was away.
    pub gap: Gap,
    /// The address that the backend saw a client at.
    pub source: IpAddr,
    /// How many packets the way kept from the backend, where it counts them.
    pub kept: Option<u64>,
    /// What else is to be told.
    pub remark: Option<String>,
}

/// Restarts the backend by this way, under load.
pub fn run(rig: &Rig, case: Case) -> Result<Seen> {
    let topology = Topology::new()?;
    for name in QUEUES {
        topology.sysctl(Side::Server, name, &QUEUE.to_string())?;
    }
    let mut way = (rig.set_up)(&topology).with_context(|| format!("set up {}", rig.title))?;
    let target = way.target();
    let source = topology.run(Side::Client, || source(target))?;
    let watch = Watch::start(&topology, super::rig::backend().listen[0])?;
    let load = Load {
        timeout: case.outage + PATIENCE,
        ..Load::new(target, case.rate, CALM + case.outage + REST)
    };
    let load = load.start_in_parts(&topology, Side::Client, case.threads()?)?;
    let begin = load.begin();
    sleep((begin + CALM).saturating_duration_since(Instant::now()));
    let known = way.restart(case.outage)?;
    let requests = load.finish()?;
    let gap = gap(known, &watch.finish()?)?;
    Ok(Seen {
        requests,
        begin,
        gap,
        source,
        kept: way.kept()?,
        remark: way.remark()?,
    })
}

/// When the backend was away: by the way's word where its listener never closed, else as it was seen.
fn gap(known: Option<Gap>, seen: &[Gap]) -> Result<Gap> {
    match (known, seen) {
        (Some(gap), []) | (None, &[gap]) => Ok(gap),
        (Some(_), _) => Err(anyhow!("the listener closed, and was not to")),
        (None, _) => Err(anyhow!("the backend was away {} times", seen.len())),
    }
}

/// The address of the client as the backend sees it.
fn source(target: SocketAddr) -> Result<IpAddr> {
    let request = format!("GET /source HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    let late = Instant::now() + LIMIT;
    let answer = runtime()?.block_on(exchange(target, &request, late));
    let answer = answer.map_err(|outcome| anyhow!("ask the backend: {outcome}"))?;
    let text = String::from_utf8_lossy(&answer);
    let body = text.rsplit("\r\n\r\n").next().unwrap_or_default().trim();
    body.parse()
        .with_context(|| format!("read the source from {text:?}"))
}

impl Seen {
    /// When a request was due.
    fn due(&self, request: &Request) -> Instant {
        self.begin + request.at
    }

    /// Those that were due while the backend was away.
    pub fn due_meanwhile(&self) -> impl Iterator<Item = &Request> {
        let gap = self.gap;
        let is_away = move |due| gap.from <= due && due < gap.to;
        self.requests
            .iter()
            .filter(move |request| is_away(self.due(request)))
    }

    /// How much later a request ended than it could at the best: when it was due, or when the
    /// backend was back. Zero for what ended before that.
    pub fn late(&self, request: &Request) -> Duration {
        let due = self.due(request);
        (due + request.latency).saturating_duration_since(due.max(self.gap.to))
    }

    /// What is to be known of each request that failed.
    pub fn lost(&self) -> impl Iterator<Item = String> {
        let failed = self.requests.iter().filter(|it| it.outcome != Outcome::Ok);
        failed.map(|request| {
            let due = self.due(request);
            let since = match due.checked_duration_since(self.gap.from) {
                Some(since) => format!("{since:.1?} after the listener closed"),
                None => format!("{:.1?} before the listener closed", self.gap.from - due),
            };
            format!(
                "a request due {since} was {} after {:.1?}",
                request.outcome, request.latency
            )
        })
    }

    /// Whether what counts SYNs on the way counted those of the requests that came while the backend was
    /// away. A way that answers for the backend, or breaks, need not see each of them.
    pub fn check_count(&self, claim: Claim) -> Result<()> {
        let Some(kept) = self.kept else {
            return Ok(());
        };
        let due = self.due_meanwhile().count() as u64;
        let least = match claim {
            Claim::Kept | Claim::Retried => due / 10 * 9,
            Claim::Refused | Claim::Broken => 1,
        };
        ensure!(
            kept >= least.max(1),
            "{due} requests came while the backend was away, and its counter says {kept}"
        );
        Ok(())
    }

    /// Whether the way did what is claimed of it.
    pub fn check(&self, claim: Claim) -> Result<()> {
        /// A retransmission comes after a second.
        const RETRY: Duration = Duration::from_millis(900);
        /// Well before one.
        const SOON: Duration = Duration::from_millis(700);
        // The first moments belong to those that were under way when it closed.
        let edge = Duration::from_millis(30);
        let inside: Vec<&Request> = self
            .due_meanwhile()
            .filter(|request| {
                let due = self.due(request);
                due > self.gap.from + edge && due + edge < self.gap.to
            })
            .collect();
        ensure!(!inside.is_empty(), "no request was due meanwhile");
        let bad = inside.iter().find(|request| match claim {
            Claim::Refused => request.outcome != Outcome::Refused,
            Claim::Retried => request.outcome != Outcome::Ok || request.latency < RETRY,
            Claim::Kept => request.outcome != Outcome::Ok || self.late(request) > SOON,
            Claim::Broken => request.outcome == Outcome::Ok,
        });
        if let Some(request) = bad {
            return Err(anyhow!(
                "claimed was {claim:?}, and a request was {request:?}"
            ));
        }
        self.check_count(claim)?;
        if claim == Claim::Broken {
            ensure!(self.remark.is_some(), "it failed, and nobody knows why");
        }
        Ok(())
    }
}
