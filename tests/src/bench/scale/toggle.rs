//! How soon a gate is closed, and open again: by the command, and by the store of the one word that
//! it comes to. A thread sends SYNs to a tap device, one by one, and reads the gate's counters after
//! each: they tell which SYN was the first to be judged anew.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use gate_common::abi::{Counter, GateStats};
use gate_common::flow::GateId;
use gate_common::state::{BootTime, Closed, StateWord};
use gate_userspace::pins::Pins;
use gate_userspace::status;
use serde::{Deserialize, Serialize};

use super::{Options, timed};
use crate::bench::rig::{GATE, Hook, Rig};
use crate::ethertap::{self, EtherTap};
use crate::packet::Spec;
use crate::topology::{Side, Topology, server_v4};

/// What was measured with so many endpoints; all times in µs, one for each round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Toggle {
    /// Endpoints of the gate.
    pub endpoints: usize,
    /// `gate hold`, from its start to its end.
    pub hold_us: Vec<f64>,
    /// From the start of `gate hold` to the end of the first SYN that is withheld.
    pub held_us: Vec<f64>,
    /// `gate open`, with one SYN held.
    pub open_us: Vec<f64>,
    /// From the start of `gate open` to the end of the first SYN that passes.
    pub passed_us: Vec<f64>,
    /// From the store of the word of a closed gate to the end of the first SYN that is dropped.
    pub store_closed_us: Vec<f64>,
    /// From the store of the word of an open gate to the end of the first SYN that passes.
    pub store_open_us: Vec<f64>,
    /// What the thread takes from one SYN to the next: no time above is finer.
    pub step_us: f64,
}

const TAP: &str = "tap0";
/// For an effect that must come.
const LIMIT: Duration = Duration::from_secs(5);

/// Measures with one endpoint, and with the most that were asked for.
pub fn measure(options: &Options) -> Result<Vec<Toggle>> {
    let mut counts: Vec<usize> = options.endpoints.clone();
    counts.sort_unstable();
    counts.dedup();
    if let [first, .., last] = counts[..] {
        counts = vec![first, last];
    }
    counts
        .iter()
        .map(|count| with(*count, options.toggles.max(1)))
        .collect()
}

/// What the sender saw last.
struct Watch {
    is_over: AtomicBool,
    /// Whether the last SYN passed, since when that is so, and how many SYNs were sent.
    seen: Mutex<(bool, Instant, u64)>,
}

fn with(endpoints: usize, rounds: u32) -> Result<Toggle> {
    let topology = Topology::new()?;
    let tap = topology.run(Side::Server, || {
        let tap = EtherTap::open(TAP, Side::Server.mac())?;
        ethertap::set_up(TAP)?;
        Ok(tap)
    })?;
    let rig = Rig::Gate {
        hook: Hook::Tc,
        endpoints,
        held: 1_024,
        // Another gate is closed all the time, so that the word alone decides.
        close: "hold 10.9.9.9:9 --for 1h",
    };
    let _standing = rig.set_up(&topology, TAP)?;
    // An opening waits for a listener.
    let _listener = topology.run(Side::Server, || {
        std::net::TcpListener::bind(server_v4(8_080)).context("listen")
    })?;
    let (gate, mut words) = topology.run(Side::Server, || Ok((id()?, words()?)))?;
    let stats = topology.run(Side::Server, stats)?;
    let watch = Watch {
        is_over: AtomicBool::new(false),
        seen: Mutex::new((true, Instant::now(), 0)),
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&tap, &stats, gate, &watch));
        let toggled = toggle(&topology, endpoints, rounds, (gate, &mut words), &watch);
        watch.is_over.store(true, Ordering::Relaxed);
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        toggled
    })
}

fn toggle(
    topology: &Topology,
    endpoints: usize,
    rounds: u32,
    (gate, words): (GateId, &mut Array<MapData, StateWord>),
    watch: &Watch,
) -> Result<Toggle> {
    let mut all = Toggle {
        endpoints,
        ..Toggle::default()
    };
    let us = |time: Duration| time.as_nanos() as f64 / 1e3;
    for _ in 0..rounds {
        let ran = timed(topology, &["hold", GATE, "--for", "1h"])?;
        all.hold_us.push(us(ran.took));
        all.held_us.push(us(watch.until(false)? - ran.started));
        let ran = timed(topology, &["open", GATE])?;
        all.open_us.push(us(ran.took));
        all.passed_us.push(us(watch.until(true)? - ran.started));
    }
    let closed = StateWord::closed(Closed::Drop, BootTime(u64::MAX));
    let began = (Instant::now(), watch.sent());
    for _ in 0..rounds {
        for (word, passes, times) in [
            (closed, false, &mut all.store_closed_us),
            (StateWord::OPEN, true, &mut all.store_open_us),
        ] {
            let stored = Instant::now();
            words.set(gate.0, word, 0).context("store the word")?;
            times.push(us(watch.until(passes)? - stored));
            sleep(Duration::from_micros(200));
        }
    }
    let sent = watch.sent() - began.1;
    all.step_us = us(began.0.elapsed()) / sent.max(1) as f64;
    Ok(all)
}

impl Watch {
    /// Since when SYNs pass, or don't; waits until it is so.
    fn until(&self, passes: bool) -> Result<Instant> {
        let late = Instant::now() + LIMIT;
        loop {
            let (seen, since, _) = *self.lock();
            if seen == passes {
                return Ok(since);
            }
            ensure!(Instant::now() < late, "no effect, passing: {passes}");
            sleep(Duration::from_micros(50));
        }
    }

    fn sent(&self) -> u64 {
        self.lock().2
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (bool, Instant, u64)> {
        self.seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Sends one SYN after the other, and notes when one is judged otherwise than the one before.
fn send(
    tap: &EtherTap,
    stats: &PerCpuArray<MapData, GateStats>,
    gate: GateId,
    watch: &Watch,
) -> Result<()> {
    let frame = Spec::default().build();
    let withheld = || {
        let per_cpu = stats.get(&gate.0, 0).context("read the counters")?;
        let all = per_cpu.iter().map(|stats| {
            [Counter::Held, Counter::Refreshed, Counter::Dropped]
                .map(|counter| stats.counts[counter as usize])
                .iter()
                .sum::<u64>()
        });
        anyhow::Ok(all.sum::<u64>())
    };
    let mut before = withheld()?;
    while !watch.is_over.load(Ordering::Relaxed) {
        tap.write(&frame).context("write a frame")?;
        let at = Instant::now();
        let now = withheld()?;
        let mut seen = watch.lock();
        seen.2 += 1;
        let passed = now == before;
        if seen.0 != passed {
            (seen.0, seen.1) = (passed, at);
        }
        before = now;
    }
    Ok(())
}

/// The slot of the gate.
fn id() -> Result<GateId> {
    let status = status::read(&Pins::here()?)?.context("gate is not up")?;
    let named = status.gates.into_iter().find(|status| {
        let name = status.gate.name.as_ref();
        name.is_some_and(|name| name.to_string() == GATE)
    });
    Ok(named.context("no such gate")?.gate.id)
}

fn words() -> Result<Array<MapData, StateWord>> {
    let map = MapData::from_pin(Pins::here()?.map("GATES")).context("open GATES")?;
    Ok(Map::Array(map).try_into()?)
}

fn stats() -> Result<PerCpuArray<MapData, GateStats>> {
    let map = MapData::from_pin(Pins::here()?.map("STATS")).context("open STATS")?;
    Ok(Map::PerCpuArray(map).try_into()?)
}
