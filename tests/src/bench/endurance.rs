//! Many restarts in a row under a steady load of new connections.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use super::path::Path;
use crate::backend;
use crate::listener::{Gap, Watch};
use crate::load::{Load, Outcome, Request};
use crate::service::Service;
use crate::summary::{Summary, percentile};
use crate::text::{duration, grouped, parse_duration};
use crate::topology::{Side, Topology, server_v4};

/// The command line of `gate-lab bench endurance`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many restarts
    #[arg(long, default_value_t = 1_000)]
    pub restarts: u32,
    /// New connections a second
    #[arg(long, default_value_t = 500)]
    pub rate: u32,
    /// How long nothing listens, each time
    #[arg(long, default_value = "100ms", value_parser = parse_duration)]
    pub outage: Duration,
    /// What is between the clients and the backend
    #[arg(long, value_enum, default_value_t = Path::Veth)]
    pub path: Path,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The backend's port.
const PORT: u16 = 8080;
/// Before the first restart and after the last.
const CALM: Duration = Duration::from_millis(500);
/// What a restart may take beyond the outage.
const LIMIT: Duration = Duration::from_secs(30);
/// What the kernel counts where a listener could not take a SYN or a connection.
pub(super) const COUNTERS: [&str; 4] = [
    "ListenOverflows",
    "ListenDrops",
    "TCPReqQFullDrop",
    "TCPReqQFullDoCookies",
];

/// A client's SYNs that were sent again, after 1 s or more.
pub(super) const SENT_AGAIN: &str = "TCPSynRetrans";

/// What came of it.
#[derive(Clone, Debug)]
pub struct Endured {
    /// The requests, latencies as their clients saw them; the outage is the median one.
    pub summary: Summary,
    /// How much longer than the outages that it met each request took, in ascending order.
    pub beyond: Vec<Duration>,
    /// The times in which nothing listened.
    pub gaps: Vec<Gap>,
    /// The server's counters of what its listener could not take.
    pub counters: BTreeMap<&'static str, u64>,
    /// SYNs that the clients sent again.
    pub sent_again: u64,
    /// The restart that took longest, and what gate said of it.
    pub longest: (Duration, String),
    /// From the first restart's start to the last one's end.
    pub took: Duration,
}

/// Restarts a backend many times behind a gate and prints what its clients saw.
pub fn endurance(options: &Options) -> Result<()> {
    let before = load_average();
    let endured = endure(options)?;
    let after = load_average();
    if options.json {
        println!("{}", to_json(options, &endured, [&before, &after]));
        return Ok(());
    }
    let count = |outcome| count(&endured.summary, outcome);
    let ms = |time: Option<Duration>| time.map_or(f64::NAN, |it| it.as_secs_f64() * 1e3);
    let outage = endured.summary.outage;
    println!(
        "{}: {} restarts in {:.0} s under {} new connections/s, outage {:.0} ms (median); load \
         average {before} before, {after} after",
        options.path.name(),
        endured.gaps.len(),
        endured.took.as_secs_f64(),
        options.rate,
        ms(Some(outage)),
    );
    println!(
        "{} requests: {} refused, {} reset, {} timed out, {} failed otherwise",
        grouped(endured.summary.requests),
        count(Outcome::Refused),
        count(Outcome::Reset),
        count(Outcome::TimedOut),
        count(Outcome::BadStatus) + count(Outcome::Other),
    );
    let counters = endured.counters.iter();
    let counters: Vec<String> = counters
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    println!(
        "{}; SYNs sent again {}",
        counters.join(", "),
        endured.sent_again
    );
    println!(
        "latency p50 {:.1} ms, p99 {:.1} ms, latest {:.1} ms",
        ms(endured.summary.p50),
        ms(endured.summary.p99),
        ms(endured.summary.max),
    );
    println!(
        "beyond the outage p50 {:.1} ms, p99 {:.1} ms, latest {:.1} ms",
        ms(percentile(&endured.beyond, 50)),
        ms(percentile(&endured.beyond, 99)),
        ms(endured.beyond.last().copied()),
    );
    println!(
        "the longest restart took {:.0} ms: {}",
        ms(Some(endured.longest.0)),
        endured.longest.1.trim_end(),
    );
    Ok(())
}

/// As [`endurance`], without a word.
pub fn endure(options: &Options) -> Result<Endured> {
    let topology = Topology::new()?;
    // Where the clients are beside the backend, they need as many ports as elsewhere.
    topology.sysctl(Side::Server, "net.ipv4.ip_local_port_range", "1024 65535")?;
    let target = server_v4(PORT);
    let service = Service::start(&topology, backend::Options::new(target))?;
    topology.gate(["up", options.path.interface()])?.ok()?;
    let watch = Watch::start(&topology, target)?;
    let load = Load::new(target, options.rate, Duration::ZERO);
    let load = load.start_endless(&topology, options.path.client())?;
    sleep(CALM);
    let words = service.restart_command(options.outage)?;
    let mut longest = (Duration::ZERO, String::new());
    let start = Instant::now();
    for number in 1..=options.restarts {
        let began = Instant::now();
        let mut command = Command::new(crate::exe::gate()?);
        command
            .args(["restart", &target.to_string(), "--"])
            .args(&words);
        let output = topology
            .output(Side::Server, &mut command, options.outage + LIMIT)?
            .ok()
            .with_context(|| format!("restart {number}"))?;
        if began.elapsed() > longest.0 {
            longest = (began.elapsed(), output.stdout);
        }
    }
    let took = start.elapsed();
    sleep(CALM);
    let (begin, requests) = load.finish()?;
    let gaps = watch.finish()?;
    ensure!(
        gaps.len() == options.restarts as usize,
        "the backend was away {} times",
        gaps.len()
    );
    let mut lengths: Vec<Duration> = gaps.iter().map(Gap::length).collect();
    lengths.sort_unstable();
    let outage = percentile(&lengths, 50).unwrap_or_default();
    Ok(Endured {
        summary: Summary::new(&requests, outage),
        beyond: beyond(&requests, begin, &gaps),
        counters: counters(&topology, Side::Server, &COUNTERS)?,
        sent_again: counters(&topology, options.path.client(), &[SENT_AGAIN])?[SENT_AGAIN],
        gaps,
        longest,
        took,
    })
}

/// The answered requests' latencies without the parts in which nothing listened, in ascending order.
fn beyond(requests: &[Request], begin: Instant, gaps: &[Gap]) -> Vec<Duration> {
    let answered = requests.iter().filter(|it| it.outcome == Outcome::Ok);
    let mut beyond: Vec<Duration> = answered
        .map(|request| {
            let (from, to) = (begin + request.at, begin + request.at + request.latency);
            let first = gaps.partition_point(|gap| gap.to <= from);
            let met = gaps[first..].iter().take_while(|gap| gap.from < to);
            let away: Duration = met.map(|gap| gap.to.min(to) - gap.from.max(from)).sum();
            request.latency - away
        })
        .collect();
    beyond.sort_unstable();
    beyond
}

pub(super) fn counters(
    topology: &Topology,
    side: Side,
    names: &[&'static str],
) -> Result<BTreeMap<&'static str, u64>> {
    let path = "/proc/thread-self/net/netstat";
    let text = topology.run(side, || {
        std::fs::read_to_string(path).with_context(|| format!("read {path}"))
    })?;
    let value = |wanted: &str| {
        let lines: Vec<&str> = text.lines().collect();
        lines.chunks_exact(2).find_map(|pair| {
            let at = pair[0].split_whitespace().position(|name| name == wanted)?;
            pair[1].split_whitespace().nth(at)?.parse().ok()
        })
    };
    names
        .iter()
        .map(|name| {
            Ok((
                *name,
                value(name).with_context(|| format!("no {name} in {path}"))?,
            ))
        })
        .collect()
}

/// The machine's load over the last minute, as it says.
pub(super) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn count(summary: &Summary, outcome: Outcome) -> usize {
    let mut errors = summary.errors.iter();
    errors
        .find(|(other, _)| *other == outcome)
        .map_or(0, |(_, count)| *count)
}

fn to_json(options: &Options, endured: &Endured, load: [&str; 2]) -> serde_json::Value {
    let ms = |time: Option<Duration>| time.map(|it| (it.as_secs_f64() * 1e6).round() / 1e3);
    json!({
        "version": 1,
        "path": options.path.name(),
        "restarts": endured.gaps.len(),
        "rate": options.rate,
        "outage_asked": duration(options.outage),
        "longest_restart_ms": ms(Some(endured.longest.0)),
        "seconds": endured.took.as_secs_f64(),
        "load_average": load,
        "requests": endured.summary.to_json(),
        "beyond_p50_ms": ms(percentile(&endured.beyond, 50)),
        "beyond_p99_ms": ms(percentile(&endured.beyond, 99)),
        "beyond_max_ms": ms(endured.beyond.last().copied()),
        "counters": endured.counters,
        "syns_sent_again": endured.sent_again,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_which_somebody_listened_is_beyond() {
        let begin = Instant::now();
        let ms = Duration::from_millis;
        let gap = |from, to| Gap {
            from: begin + ms(from),
            to: begin + ms(to),
        };
        let gaps = [gap(100, 200), gap(300, 400)];
        let request = |at, latency, outcome| Request {
            at: ms(at),
            latency: ms(latency),
            outcome,
        };
        let requests = [
            request(10, 5, Outcome::Ok),
            request(90, 150, Outcome::Ok),
            request(150, 60, Outcome::Ok),
            request(150, 300, Outcome::Ok),
            request(150, 1, Outcome::Ok),
            request(150, 999, Outcome::Refused),
        ];
        let expected = [0, 5, 10, 50, 150].map(ms);
        assert_eq!(beyond(&requests, begin, &gaps), expected);
    }
}
