//! How long a release takes: real clients, each from a network of its own, are held, and `gate open`
//! hands all of them over to a listener that accepts as fast as it can, and closes at once.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gate_common::abi::Counter;
use gate_userspace::pins::Pins;
use gate_userspace::status;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::{Options, timed};
use crate::bench::rig::{ENDPOINT, GATE, Hook, Rig};
use crate::dial::{self, monotonic};
use crate::exe;
use crate::topology::{INTERFACE, Process, Side, Topology, server_v4};

/// One number of held connections; all times in ms, one for each release.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Release {
    /// Held connections.
    pub held: usize,
    /// `gate open`, from its start to its end.
    pub open_ms: Vec<f64>,
    /// From the start of `gate open` to the first handshake's end.
    pub first_ms: Vec<f64>,
    /// From the first handshake's end, which comes with the first injection, to the last's.
    pub handshakes_ms: Vec<f64>,
}

/// What must come within this.
const LIMIT: Duration = Duration::from_secs(60);
/// Room beyond a quarter more than is held: what one network may take depends on what is free.
const SPARE: usize = 64;
/// The listener's backlog, and what the server's sysctls allow.
pub(super) const BACKLOG: i32 = 131_072;

/// Measures each number in turn, round after round.
pub fn measure(options: &Options) -> Result<Vec<Release>> {
    let mut all: Vec<Release> = options
        .held
        .iter()
        .map(|&held| Release {
            held,
            ..Release::default()
        })
        .collect();
    for _ in 0..options.releases.max(1) {
        for release in &mut all {
            let held = release.held;
            once(release).with_context(|| format!("release {held} connections"))?;
        }
    }
    Ok(all)
}

fn once(release: &mut Release) -> Result<()> {
    let count = release.held;
    let topology = Topology::new()?;
    topology.route_many_clients()?;
    for (name, value) in [
        ("net.core.somaxconn", BACKLOG.to_string()),
        ("net.ipv4.tcp_max_syn_backlog", BACKLOG.to_string()),
        ("net.ipv4.tcp_syncookies", "0".to_owned()),
    ] {
        topology.sysctl(Side::Server, name, &value)?;
    }
    let rig = Rig::Gate {
        hook: Hook::Tc,
        endpoints: 1,
        held: (count + count / 4 + SPARE) as u32,
        close: "hold bench --for 10m",
    };
    let _standing = rig.set_up(&topology, INTERFACE)?;
    let server = Arc::new(AtomicUsize::new(0));
    let accepting = accept(&topology, count, Arc::clone(&server))?;
    let clients = connect(&topology, count)?;
    let held = || topology.run(Side::Server, || counted(Counter::Held));
    wait_for("all connections to be held", || Ok(held()? >= count as u64))?;
    ensure!(
        server.load(Ordering::SeqCst) == 0,
        "a connection was not held"
    );

    let started = monotonic()?;
    let ran = timed(&topology, &["open", GATE])?;
    let (mut first, mut last) = (u64::MAX, 0);
    for process in &clients {
        let output = process.wait(LIMIT)?.ok()?;
        let mut ends = output.stdout.split_whitespace().map(str::parse::<u64>);
        let mut next = || {
            ends.next()
                .context("no time from the clients")?
                .context("a time")
        };
        (first, last) = (first.min(next()?), last.max(next()?));
    }
    join(accepting)?;
    let released = topology.run(Side::Server, || counted(Counter::Released))?;
    ensure!(
        released == count as u64,
        "{released} of {count} were released"
    );
    release.open_ms.push(ran.took.as_secs_f64() * 1e3);
    release
        .first_ms
        .push(first.saturating_sub(started) as f64 / 1e6);
    release.handshakes_ms.push((last - first) as f64 / 1e6);
    Ok(())
}

/// Accepts so many connections, and closes each.
fn accept(
    topology: &Topology,
    count: usize,
    accepted: Arc<AtomicUsize>,
) -> Result<JoinHandle<Result<()>>> {
    let listener = topology.run(Side::Server, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("open a socket")?;
        socket.bind(&server_v4(port()).into()).context("bind")?;
        socket.listen(BACKLOG).context("listen")?;
        Ok(socket)
    })?;
    topology.start(Side::Server, move || {
        for _ in 0..count {
            // Closed at once, so that this process has few files open.
            listener.accept().context("accept")?;
            accepted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    })
}

/// Connects that many clients, in as many processes as it takes.
fn connect(topology: &Topology, count: usize) -> Result<Vec<Process>> {
    let most = dial::most()? as usize;
    let starts = (0..count).step_by(most);
    starts
        .map(|first| {
            let some = most.min(count - first).to_string();
            let target = server_v4(port()).to_string();
            let mut command = Command::new(exe::lab()?);
            command.args([
                "dial",
                &target,
                "--count",
                &some,
                "--first",
                &first.to_string(),
            ]);
            topology.spawn(Side::Client, &mut command)
        })
        .collect()
}

fn port() -> u16 {
    let port = ENDPOINT
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok());
    port.expect("the endpoint has a port")
}

/// What the gates have counted so far.
fn counted(counter: Counter) -> Result<u64> {
    let status = status::read(&Pins::here()?)?.context("gate is not up")?;
    let gates = status.gates.iter();
    Ok(gates.map(|gate| gate.stats.counts[counter as usize]).sum())
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Waits until something is so.
fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let late = Instant::now() + LIMIT;
    while !is_so()? {
        ensure!(Instant::now() < late, "waited for {what} in vain");
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
