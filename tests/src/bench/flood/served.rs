//! Who is served while a flood comes in, and after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::sender::{Frames, Sender};
use super::{FILLERS, FRAMES, IPTABLES, NFT_INPUT, gate, target};
use crate::backend;
use crate::bench::rig::{Hook, Rig};
use crate::load::{Load, Outcome, Request, Running};
use crate::service::Service;
use crate::topology::{INTERFACE, Side, Topology, server_v4};

/// What clients saw with one rig, over veth.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    /// The rig.
    pub name: String,
    /// SYNs a second that came in.
    pub flood: f64,
    /// Clients of another port, before the flood.
    pub calm: Clients,
    /// Clients of another port, during the flood.
    pub other_port: Clients,
    /// Clients of the flooded port whose address may pass, during the flood; none where the rig
    /// lets nobody pass.
    pub allowed: Option<Clients>,
    /// Clients of the flooded port after the flood, once it is let go.
    pub after: Clients,
}

/// Clients that connected and asked, each when it was due: the load is open-loop (see [`Load`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Clients {
    /// Those that got no answer.
    pub failed: u64,
    /// What the others took, from when they were due, in µs, ascending.
    pub latencies_us: Vec<u64>,
}

/// One of them, as data.
struct Plan {
    name: &'static str,
    rig: Rig,
    lets_pass: bool,
}

/// The endpoint that is flooded, and one that isn't.
const PORT: u16 = 8_080;
const OTHER: u16 = 9_090;
/// Clients a second.
const RATE: u32 = 200;

const ALLOW: &str = "drop bench --for 1h --allow 10.0.0.1";
const HOLD_ALLOW: &str = "hold bench --for 1h --allow 10.0.0.1";

const PLANS: [Plan; 5] = [
    Plan {
        name: "nothing (the listener gets the flood)",
        rig: Rig::Nothing,
        lets_pass: false,
    },
    Plan {
        name: "gate drop",
        rig: gate(Hook::Tc, 1, ALLOW),
        lets_pass: true,
    },
    Plan {
        name: "gate hold, table full",
        rig: gate(Hook::Tc, 1, HOLD_ALLOW),
        lets_pass: true,
    },
    Plan {
        name: "nft, input",
        rig: NFT_INPUT,
        lets_pass: false,
    },
    Plan {
        name: "iptables, INPUT",
        rig: IPTABLES,
        lets_pass: false,
    },
];

/// Measures all of them.
pub fn measure(time: Duration) -> Result<Vec<Served>> {
    let each = |plan: &Plan| one(plan, time).with_context(|| format!("serve with: {}", plan.name));
    PLANS.iter().map(each).collect()
}

fn one(plan: &Plan, time: Duration) -> Result<Served> {
    let topology = Topology::new()?;
    let _service = Service::start(&topology, backend())?;
    let standing = plan.rig.set_up(&topology, INTERFACE)?;
    let calm = Clients::wait(Clients::start(&topology, OTHER, time)?)?;

    let is_over = Arc::new(AtomicBool::new(false));
    let flood = flood(&topology, Arc::clone(&is_over))?;
    let other_port = Clients::start(&topology, OTHER, time)?;
    let allowed = match plan.lets_pass {
        true => Some(Clients::start(&topology, PORT, time)?),
        false => None,
    };
    let other_port = Clients::wait(other_port);
    let allowed = allowed.map(Clients::wait).transpose();
    is_over.store(true, Ordering::Relaxed);
    let flood = flood
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    if let Some(counted) = standing.counted(&topology)? {
        ensure!(counted > 0, "nothing of the flood was dropped");
    }
    standing.let_go(&topology)?;
    let after = Clients::start(&topology, PORT, time.min(Duration::from_secs(1)))?;
    let after = Clients::wait(after)?;
    Ok(Served {
        name: plan.name.to_owned(),
        flood,
        calm,
        other_port: other_port?,
        allowed: allowed?,
        after,
    })
}

fn backend() -> backend::Options {
    backend::Options {
        listen: vec![server_v4(PORT), server_v4(OTHER)],
        ..backend::Options::new(server_v4(PORT))
    }
}

impl Clients {
    /// Starts some, and returns those that are on their way.
    fn start(topology: &Topology, port: u16, time: Duration) -> Result<Running> {
        Load::new(server_v4(port), RATE, time).start(topology)
    }

    /// Waits for all of them.
    fn wait(running: Running) -> Result<Self> {
        let requests = running.finish()?;
        let is_ok = |request: &&Request| request.outcome == Outcome::Ok;
        let served = requests.iter().filter(is_ok);
        let mut latencies_us: Vec<u64> = served
            .map(|request| request.latency.as_micros() as u64)
            .collect();
        latencies_us.sort_unstable();
        Ok(Self {
            failed: (requests.len() - latencies_us.len()) as u64,
            latencies_us,
        })
    }
}

/// Floods until it is over; the SYNs a second.
fn flood(
    topology: &Topology,
    is_over: Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<Result<f64>>> {
    topology.start(Side::Client, move || {
        let sender = Sender::packet(INTERFACE)?;
        let to = [target(0)?];
        let frames = Frames::syns(FRAMES, 1, &to);
        sender.send(&Frames::syns(FILLERS, 2, &to))?;
        let start = Instant::now();
        let mut sent = 0;
        while !is_over.load(Ordering::Relaxed) {
            sender.send(&frames)?;
            sent += frames.count();
        }
        Ok(sent as f64 / start.elapsed().as_secs_f64())
    })
}
