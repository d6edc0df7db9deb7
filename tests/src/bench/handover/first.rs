//! From the command to the first connection at the new backend: from right before `gate` is forked
//! until a connection that is made after that has its SYN-ACK from there. A client connects all the
//! time, one connection after the other, and asks each time who it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::SockRef;

use super::Options;
use super::pair::{Backend, Kind, Which};
use crate::bench::endurance::load_average;
use crate::bench::path::Path;
use crate::bench::throughput::undisturbed;
use crate::exe;
use crate::topology::{Side, Topology};

/// Between two connections of the client.
const PAUSE: Duration = Duration::from_micros(100);
/// Before each command: what the one before left to be cleared up is done by then.
const SETTLE: Duration = Duration::from_millis(10);
/// What a command may take.
const LIMIT: Duration = Duration::from_secs(10);
/// A gate that nobody connects to: its handover keeps the program attached.
const OTHER: [&str; 4] = ["handover", "10.0.0.5:9998", "--to", "127.0.0.1:8082"];

/// What is there before the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Another gate is handed over, and new connections go to A.
    Attached,
    /// As before, but they go to B, and the command takes them back.
    AttachedToB,
    /// Nothing is handed over; a gate is attached to the interface.
    Up,
    /// Nothing at all.
    Nothing,
}

impl Before {
    /// In the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::Attached, Self::AttachedToB, Self::Up, Self::Nothing];

    fn words(self) -> &'static str {
        match self {
            Self::Attached => "to B",
            Self::AttachedToB => "back to A",
            Self::Up => "to B, the first that is handed over",
            Self::Nothing => "to B, the first command of all",
        }
    }

    fn to(self) -> Which {
        match self {
            Self::AttachedToB => Which::A,
            Self::Attached | Self::Up | Self::Nothing => Which::B,
        }
    }

    fn arrange(self, topology: &Topology, path: Path) -> Result<()> {
        match self {
            Self::Attached => Which::A.hand_over(topology).map(drop),
            Self::AttachedToB => Which::B.hand_over(topology).map(drop),
            Self::Up => {
                topology.gate(["down"])?.ok()?;
                topology.gate(["up", path.interface()])?.ok().map(drop)
            }
            Self::Nothing => topology.gate(["down"])?.ok().map(drop),
        }
    }
}

/// A connection of the client.
#[derive(Clone, Copy, Debug)]
struct Made {
    before: Instant,
    after: Instant,
    at: Which,
}

/// The client, connecting all the time.
struct Client {
    wanted: Arc<AtomicBool>,
    made: Arc<Mutex<Vec<Made>>>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Client {
    fn start(topology: &Topology, path: Path) -> Result<Self> {
        let wanted = Arc::new(AtomicBool::new(true));
        let made = Arc::new(Mutex::new(Vec::new()));
        let (is_wanted, all) = (Arc::clone(&wanted), Arc::clone(&made));
        let thread = topology.start(path.client(), move || {
            while is_wanted.load(Ordering::Relaxed) {
                let one = connect(Which::A.address())?;
                all.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                sleep(PAUSE);
            }
            Ok(())
        })?;
        Ok(Self {
            wanted,
            made,
            thread,
        })
    }

    /// What was made since it was last asked.
    fn take(&self) -> Vec<Made> {
        std::mem::take(&mut self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn finish(self) -> Result<()> {
        self.wanted.store(false, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Connects, and asks who it is.
fn connect(target: SocketAddr) -> Result<Made> {
    let before = Instant::now();
    let mut stream = TcpStream::connect(target).context("connect")?;
    let after = Instant::now();
    // It is reset in the end, so that neither side keeps its port.
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .context("SO_LINGER")?;
    stream
        .set_read_timeout(Some(LIMIT))
        .context("SO_RCVTIMEO")?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "closed without an answer");
    }
    let mut name = [0];
    reader.read_exact(&mut name)?;
    let at = match &name {
        b"a" => Which::A,
        _ => Which::B,
    };
    Ok(Made { before, after, at })
}

/// The times of one kind, in ascending order.
pub fn measure(options: &Options, path: Path, before: Before) -> Result<Vec<Duration>> {
    let topology = Topology::new()?;
    let _backends = [
        Backend::start(&topology, Kind::Lab, Which::A)?,
        Backend::start(&topology, Kind::Lab, Which::B)?,
    ];
    if matches!(before, Before::Attached | Before::AttachedToB) {
        topology.gate(OTHER)?.ok()?;
    }
    let client = Client::start(&topology, path)?;
    let mut times = Vec::new();
    for _ in 0..options.switches.max(1) {
        before.arrange(&topology, path)?;
        sleep(SETTLE);
        client.take();
        let mut command = std::process::Command::new(exe::gate()?);
        let gate = topology.spawn(Side::Server, command.args(before.to().command()))?;
        let begin = gate.started();
        gate.wait(LIMIT)?.ok()?;
        sleep(SETTLE);
        let mut made = client.take();
        made.retain(|one| one.before >= begin);
        let first = made.iter().position(|one| one.at == before.to());
        let first = first.context("no connection got there")?;
        ensure!(
            made[first..].iter().all(|one| one.at == before.to()),
            "a connection strayed"
        );
        times.push(made[first].after - begin);
    }
    client.finish()?;
    times.sort_unstable();
    Ok(times)
}

/// Measures, prints, and returns it as JSON.
pub(super) fn print(options: &Options, path: Path) -> Result<Value> {
    undisturbed();
    if !options.json {
        println!(
            "{}: from the command to the first connection, {} times each; load average {}",
            path.name(),
            options.switches,
            load_average(),
        );
        println!("{:<40}{:>9}{:>9}{:>9}", "", "median", "p99", "latest");
    }
    let mut rows = Vec::new();
    for before in Before::ALL {
        let times = measure(options, path, before)?;
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let [median, p99, max] = [at(50), at(99), at(100)].map(ms);
        if !options.json {
            println!(
                "  {:<38}{median:>6.2} ms{p99:>6.2} ms{max:>6.2} ms",
                before.words()
            );
        }
        rows.push(json!({
            "case": before.words(),
            "median_ms": median,
            "p99_ms": p99,
            "max_ms": max,
        }));
    }
    Ok(json!({
        "part": "first",
        "path": path.name(),
        "switches": options.switches,
        "load_average": load_average(),
        "cases": rows,
    }))
}
