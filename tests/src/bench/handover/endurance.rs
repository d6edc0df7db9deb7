//! Many handovers in a row, to B, back to A, and so on, under a steady load of connections each of
//! which asks several times over more than one handover. Who answers is noted each time.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Options;
use super::pair::{Backend, Kind, Which};
use crate::bench::endurance::{COUNTERS, SENT_AGAIN, counters, load_average};
use crate::bench::path::Path;
use crate::bench::throughput::undisturbed;
use crate::load::Outcome;
use crate::summary::percentile;
use crate::talk::{Talk, Talks};
use crate::text::grouped;
use crate::topology::{Side, Topology};

/// Before the first handover and after the last.
const CALM: Duration = Duration::from_millis(500);
/// From one handover's end to the next one's start: time for connections at either.
const PACE: Duration = Duration::from_millis(50);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Endured {
    /// The connections.
    pub talks: Vec<Talk>,
    /// The server's counters of what its listeners could not take.
    pub counters: BTreeMap<&'static str, u64>,
    /// SYNs that the clients sent again.
    pub sent_again: u64,
    /// From the first handover's start to the last one's end.
    pub took: Duration,
}

impl Endured {
    /// How many connections ended so.
    #[must_use]
    pub fn ended(&self, outcome: Outcome) -> usize {
        let talks = self.talks.iter();
        talks.filter(|talk| talk.outcome == outcome).count()
    }

    /// Connections that did not get all of their answers.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.talks.len() - self.ended(Outcome::Ok)
    }

    /// Connections all of whose answers are this backend's.
    #[must_use]
    pub fn wholly_at(&self, which: Which) -> usize {
        let talks = self.talks.iter();
        talks.filter(|talk| talk.by == [which.name()]).count()
    }

    /// Connections that both backends answered.
    #[must_use]
    pub fn at_both(&self) -> usize {
        self.talks.iter().filter(|talk| talk.by.len() > 1).count()
    }

    /// From when a connection was due until its first answer, in ascending order.
    fn first_answers(&self) -> Vec<Duration> {
        let mut all: Vec<Duration> = self.talks.iter().filter_map(|talk| talk.first).collect();
        all.sort_unstable();
        all
    }
}

/// Hands over many times.
pub fn endure(options: &Options, path: Path, kind: Kind) -> Result<Endured> {
    let topology = Topology::new()?;
    // Where the clients are beside the backends, they need as many ports as elsewhere.
    topology.sysctl(Side::Server, "net.ipv4.ip_local_port_range", "1024 65535")?;
    let mut a = Backend::start(&topology, kind, Which::A)?;
    let mut b = Backend::start(&topology, kind, Which::B)?;
    let talks = Talks::new(Which::A.address(), options.rate).start(&topology, path.client())?;
    sleep(CALM);
    let start = Instant::now();
    for number in 1..=options.handovers {
        let (to, from) = match number % 2 {
            1 => (Which::B, Which::A),
            _ => (Which::A, Which::B),
        };
        to.hand_over(&topology)
            .with_context(|| format!("handover {number}"))?;
        if options.stop {
            let old = match from {
                Which::A => &mut a,
                Which::B => &mut b,
            };
            let gate = Which::A.address().to_string();
            let backend = from.address().to_string();
            let drain = ["drain", "--backend", &backend, &gate, "--timeout", "20s"];
            topology
                .gate(drain)?
                .ok()
                .with_context(|| format!("drain after handover {number}"))?;
            old.stop()?;
            *old = Backend::start(&topology, kind, from)?;
        }
        sleep(PACE);
    }
    let took = start.elapsed();
    sleep(CALM);
    Ok(Endured {
        talks: talks.finish()?,
        counters: counters(&topology, Side::Server, &COUNTERS)?,
        sent_again: counters(&topology, path.client(), &[SENT_AGAIN])?[SENT_AGAIN],
        took,
    })
}

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options, path: Path, kind: Kind) -> Result<Value> {
    undisturbed();
    let before = load_average();
    let endured = endure(options, path, kind)?;
    let after = load_average();
    if !options.json {
        print_words(options, (path, kind), &endured, [&before, &after]);
    }
    let first = endured.first_answers();
    let ms = |it: Option<Duration>| it.map(|it| (it.as_secs_f64() * 1e6).round() / 1e3);
    let errors = Outcome::ERRORS.map(|it| (it.to_string(), endured.ended(it)));
    Ok(json!({
        "part": "endurance",
        "path": path.name(),
        "backends": kind.name(),
        "stop": options.stop,
        "handovers": options.handovers,
        "rate": options.rate,
        "seconds": endured.took.as_secs_f64(),
        "load_average": [before, after],
        "connections": endured.talks.len(),
        "errors": BTreeMap::from(errors),
        "wholly_at_a": endured.wholly_at(Which::A),
        "wholly_at_b": endured.wholly_at(Which::B),
        "at_both": endured.at_both(),
        "first_answer_p50_ms": ms(percentile(&first, 50)),
        "first_answer_p99_ms": ms(percentile(&first, 99)),
        "first_answer_max_ms": ms(first.last().copied()),
        "counters": endured.counters,
        "syns_sent_again": endured.sent_again,
    }))
}

fn print_words(
    options: &Options,
    (path, kind): (Path, Kind),
    endured: &Endured,
    [before, after]: [&str; 2],
) {
    println!(
        "{}, {}{}: {} handovers in {:.0} s under {} new connections/s that ask 4 times over 120 ms; \
         load average {before} before, {after} after",
        path.name(),
        kind.name(),
        match options.stop {
            true => ", each drained, stopped and started again",
            false => "",
        },
        grouped(options.handovers as usize),
        endured.took.as_secs_f64(),
        options.rate,
    );
    println!(
        "  {} connections: {} refused, {} reset, {} timed out, {} failed otherwise; wholly at A {}, \
         wholly at B {}, at both {}",
        grouped(endured.talks.len()),
        endured.ended(Outcome::Refused),
        endured.ended(Outcome::Reset),
        endured.ended(Outcome::TimedOut),
        endured.ended(Outcome::BadStatus) + endured.ended(Outcome::Other),
        grouped(endured.wholly_at(Which::A)),
        grouped(endured.wholly_at(Which::B)),
        endured.at_both(),
    );
    let first = endured.first_answers();
    let ms = |time: Option<Duration>| time.map_or(f64::NAN, |it| it.as_secs_f64() * 1e3);
    let counters = endured.counters.iter();
    let counters: Vec<String> = counters.map(|(name, it)| format!("{name} {it}")).collect();
    println!(
        "  first answer p50 {:.1} ms, p99 {:.1} ms, latest {:.1} ms; SYNs sent again {}, {}",
        ms(percentile(&first, 50)),
        ms(percentile(&first, 99)),
        ms(first.last().copied()),
        endured.sent_again,
        counters.join(", "),
    );
}
