//! How soon what a guard holds is released once a socket listens.

use std::net::{TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Options, configure, gate, ms, start, wait_for};
use crate::summary::percentile;
use crate::topology::{Side, Topology, server_v4};

const PORT: u16 = 8080;

/// What is promised.
const PROMISE: Duration = Duration::from_millis(5);

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options) -> Result<Value> {
    let topology = Topology::new()?;
    let at = server_v4(PORT);
    configure(
        &topology,
        &format!("[gate.web]\nendpoints = [\"{at}\"]\ninterfaces = [\"eth0\"]\nmode = \"guard\"\n"),
    )?;
    let _daemon = start(&topology)?;
    let mut times = Vec::new();
    for number in 0..options.times {
        let client = topology.start(Side::Client, move || {
            let stream = TcpStream::connect(at).context("connect")?;
            drop(stream);
            Ok(Instant::now())
        })?;
        wait_for("a held connection", || {
            ensure!(!client.is_finished(), "the connection was not held");
            let status: Value = serde_json::from_str(&gate(&topology, &["status", "--json"])?)?;
            Ok(status["gates"][0]["held"].as_u64() == Some(1))
        })?;
        // Not in step with anything that the daemon does by the clock.
        sleep(Duration::from_micros(u64::from(number) * 737 % 20_000));
        let listen = || {
            let began = Instant::now();
            let listener = TcpListener::bind(at)?;
            let _accepted = listener.accept()?;
            Ok(began)
        };
        let began = topology.run(Side::Server, listen)?;
        let made = client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        times.push(made.saturating_duration_since(began));
        sleep(Duration::from_millis(120));
    }
    times.sort_unstable();
    ensure!(!times.is_empty(), "nothing was measured");
    let at = |percent| percentile(&times, percent).unwrap_or_default();
    let late = times.iter().filter(|time| **time > PROMISE).count();
    if !options.json {
        println!(
            "listen: from listen(2) to the held connection made, {} times: p50 {:.2} ms, p99 {:.2} ms, \
             latest {:.2} ms; {late} later than {PROMISE:?}",
            times.len(),
            ms(at(50)),
            ms(at(99)),
            ms(at(100)),
        );
    }
    Ok(json!({
        "part": "listen",
        "times": times.len(),
        "p50_ms": ms(at(50)),
        "p99_ms": ms(at(99)),
        "max_ms": ms(at(100)),
        "later_than_promised": late,
    }))
}
