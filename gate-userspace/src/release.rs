//! Release: open gates and replay what they hold, oldest first.
//!
//! Order: what is held is injected while the gates are still closed, so that no newer SYN
//! overtakes it; then the words are set to open; then sweeps, with an RCU barrier between,
//! take what a data path that had read the old word was just putting in.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, IterableMap as _, Map, MapData};
use aya::programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use gate_common::abi::{FRAME_LEN, HeldSyn, REPLAY_BATCH, ReplayFrame};
use gate_common::checksum;
use gate_common::flow::{AttemptKey, FlowKey, GateId};
use gate_common::parse::{Frame, locate};
use gate_common::state::{BootTime, StateWord};

use crate::clock;
use crate::datapath;
use crate::error::{Error, Result};
use crate::pins::{Lock, Pins};
use crate::sys;
use crate::tables::Tables;

/// Rounds of injection before the gate opens. Each takes what came during the one before;
/// under a flood that would never end.
const ROUNDS: usize = 8;

/// Frames that the kernel keeps in flight in one test run.
const LIVE_BATCH: u32 = 64;

/// Shortest frame that is injected, and only even lengths are: others have met kernel bugs
/// (CVE-2022-49840, CVE-2025-21867).
const MIN_FRAME: usize = 60;

/// What a release did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// SYNs injected.
    pub injected: usize,
    /// SYNs dropped, because their checksum was wrong when they came.
    pub damaged: usize,
    /// SYNs dropped, because their interface is gone.
    pub gone: usize,
    /// The longest time that one of the injected was held.
    pub longest_wait: Duration,
    /// When the gates were open.
    pub opened_at: BootTime,
}

/// The replay program and its private maps.
pub struct Replayer {
    ebpf: Ebpf,
    frames: Array<MapData, ReplayFrame>,
    cursor: Array<MapData, u32>,
}

impl Replayer {
    /// Loads the replay program. Do it before closing a gate, so that nothing is in the way
    /// of opening it again.
    ///
    /// # Errors
    /// [`Error::Kernel`] where the kernel can't inject frames, and those of loading.
    pub fn load(pins: &Pins) -> Result<Self> {
        let held = Tables::open(pins)?.held_max();
        let mut ebpf = datapath::load_replay(pins, held)?;
        let mut map = |name: &'static str| {
            ebpf.take_map(name).ok_or_else(|| Error::Aya {
                what: format!("map {name}"),
                text: "it is not in the object".to_owned(),
            })
        };
        let frames = typed(map("REPLAY")?, "REPLAY")?;
        let cursor = typed(map("CURSOR")?, "CURSOR")?;
        let mut replayer = Self {
            ebpf,
            frames,
            cursor,
        };
        replayer.probe()?;
        Ok(replayer)
    }

    /// Runs once with nothing to inject, to see whether the kernel can.
    fn probe(&mut self) -> Result<()> {
        self.seek(REPLAY_BATCH)?;
        match self.run(LOOPBACK_IFINDEX, 1) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(datapath::kernel(
                "BPF_F_TEST_XDP_LIVE_FRAMES, by which held SYNs are replayed",
                "5.18",
            )),
            Err(error) => Err(Error::call("bpf test run of", "gate_replay")(error)),
        }
    }

    /// Injects frames on an interface, in order, in as few kernel calls as they fit in.
    ///
    /// # Errors
    /// `ENODEV` where the interface is gone.
    fn inject(&mut self, ifindex: u32, frames: &[ReplayFrame]) -> io::Result<()> {
        for batch in frames.chunks(REPLAY_BATCH as usize) {
            sys::update_array(self.frames.map().fd().as_fd(), batch)?;
            let count = batch.len() as u32;
            self.seek(0).map_err(io::Error::other)?;
            loop {
                let at = self.cursor.get(&0, 0).map_err(io::Error::other)?;
                if at >= count {
                    break;
                }
                match self.run(ifindex, count - at) {
                    // A signal ends a run early; the cursor knows how far it came.
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    fn seek(&mut self, at: u32) -> Result<()> {
        self.cursor
            .set(0, at, 0)
            .map_err(Error::aya("store the replay cursor"))
    }

    fn run(&mut self, ifindex: u32, repeat: u32) -> io::Result<()> {
        let program: &Xdp = self
            .ebpf
            .program("gate_replay")
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex. Queue 0 is always there, and the stack doesn't see which it was.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(FRAME_LEN as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&[0; FRAME_LEN]),
            ctx_in: Some(&context),
            repeat,
            attrs: TestRunAttrs::new().xdp_live_frames(LIVE_BATCH),
            ..TestRunOptions::new()
        };
        match program.test_run(options) {
            Ok(_) => Ok(()),
            Err(ProgramError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// Every network namespace has it, under this index.
const LOOPBACK_IFINDEX: u32 = 1;

fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(map: Map, name: &str) -> Result<T> {
    T::try_from(map).map_err(Error::aya(format!("map {name}")))
}

/// Opens gates and replays what they hold.
///
/// # Errors
/// Those of the maps and of the injection. The gates are open then all the same, as far as
/// the kernel still answers.
pub fn release(
    lock: &Lock,
    tables: &mut Tables,
    replayer: &mut Replayer,
    gates: &BTreeSet<GateId>,
) -> Result<Released> {
    let mut sweeper = Sweeper {
        gates,
        seen: HashSet::new(),
        released: Released::default(),
    };
    let mut early = Ok(());
    for _ in 0..ROUNDS {
        match sweeper.sweep(tables, replayer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                early = Err(error);
                break;
            }
        }
    }
    for gate in gates {
        tables.set_state(lock, *gate, StateWord::OPEN, clock::now())?;
    }
    sweeper.released.opened_at = clock::now();
    early?;
    sweeper.sweep(tables, replayer)?;
    sys::rcu_barrier();
    sweeper.sweep(tables, replayer)?;
    tables.discard(lock, gates)?;
    Ok(sweeper.released)
}

/// Injects what is held, each attempt once.
struct Sweeper<'a> {
    gates: &'a BTreeSet<GateId>,
    seen: HashSet<AttemptKey>,
    released: Released,
}

impl Sweeper<'_> {
    /// Injects what is held and was not seen before; returns how many that were.
    fn sweep(&mut self, tables: &Tables, replayer: &mut Replayer) -> Result<usize> {
        let done: HashSet<AttemptKey> = tables
            .released()?
            .into_iter()
            .map(|(attempt, _)| attempt)
            .collect();
        let mut held: Vec<_> = tables
            .held()?
            .into_iter()
            .filter(|(flow, syn)| {
                let attempt = attempt(flow, syn);
                self.gates.contains(&syn.gate)
                    && !done.contains(&attempt)
                    && self.seen.insert(attempt)
            })
            .collect();
        if held.is_empty() {
            return Ok(0);
        }
        held.sort_by_key(|(_, syn)| syn.arrived);
        let mut lanes: BTreeMap<u32, Vec<(u64, ReplayFrame)>> = BTreeMap::new();
        for (flow, syn) in &held {
            match frame(flow, syn) {
                Some(frame) => lanes
                    .entry(syn.ifindex)
                    .or_default()
                    .push((syn.arrived, frame)),
                None => self.released.damaged += 1,
            }
        }
        let now = clock::now();
        for (ifindex, lane) in lanes {
            let frames: Vec<_> = lane.iter().map(|(_, frame)| *frame).collect();
            match replayer.inject(ifindex, &frames) {
                Ok(()) => {
                    self.released.injected += frames.len();
                    let oldest = lane.first().map_or(now, |(arrived, _)| BootTime(*arrived));
                    self.released.longest_wait =
                        self.released.longest_wait.max(clock::between(oldest, now));
                }
                Err(error) if is_gone(&error) => self.released.gone += frames.len(),
                Err(error) => {
                    let what = format!("gate_replay on interface {ifindex}");
                    return Err(Error::call("bpf test run of", what)(error));
                }
            }
        }
        Ok(held.len())
    }
}

/// Whether a test run failed because its interface isn't there any more.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

fn attempt(flow: &FlowKey, syn: &HeldSyn) -> AttemptKey {
    AttemptKey {
        flow: *flow,
        isn: syn.isn,
    }
}

/// A held SYN as it is injected: checksum whole, padded; none where it was damaged.
fn frame(flow: &FlowKey, syn: &HeldSyn) -> Option<ReplayFrame> {
    let len = syn.len as usize;
    let mut replay = ReplayFrame {
        attempt: attempt(flow, syn),
        gate: syn.gate,
        len: 0,
        frame: [0; FRAME_LEN],
    };
    let bytes = replay.frame.get_mut(..len)?;
    bytes.copy_from_slice(syn.frame.get(..len)?);
    let Frame::Tcp(at) = locate(&*bytes) else {
        return None;
    };
    checksum::complete(bytes, &at).ok()?;
    replay.len = len.max(MIN_FRAME).next_multiple_of(2) as u32;
    Some(replay)
}
