//! Release: open gates and replay what they hold, oldest first.
//!
//! Order: what is held is injected while the gates are still closed, so that no newer SYN
//! overtakes it; then the words are set to open; then sweeps, with an RCU barrier between,
//! take what a data path that had read the old word was just putting in.
//!
//! A SYN goes back to where it was taken from: into the interface that it came in on, or out of
//! the one that it was leaving by. On loopback the kernel would take it for a forged one, because
//! the route that it came with is lost, so there user space sends it again, through the firewall,
//! as its client would.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, IterableMap as _, MapData};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use gate_common::abi::{Cursor, Direction, FRAME_LEN, HeldSyn, REPLAY_BATCH, ReplayFrame, Way};
use gate_common::checksum;
use gate_common::flow::{AttemptKey, FlowKey, GateId};
use gate_common::parse::{Frame, locate};
use gate_common::state::{BootTime, StateWord};

use crate::attach;
use crate::clock;
use crate::error::{Error, Result};
use crate::interfaces::{self, LOOPBACK};
use crate::object;
use crate::pins::{Lock, Pins};
use crate::resend::Resend;
use crate::routes::Neighbours;
use crate::sys;
use crate::tables::{Tables, typed};

/// Rounds of injection before the gate opens. Each takes what came during the one before;
/// under a flood that would never end.
const ROUNDS: usize = 8;

/// How long a release waits for a backlog that stays full though its interface is up.
const PATIENCE: Duration = Duration::from_millis(500);

/// Shortest frame that is injected, and only even lengths are: others have met kernel bugs
/// (CVE-2022-49840, CVE-2025-21867).
const MIN_FRAME: usize = 60;

/// Bytes of the two Ethernet addresses, before the EtherType.
const ADDRESSES: usize = 12;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// What a release did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// SYNs injected.
    pub injected: usize,
    /// SYNs dropped, because their checksum was wrong when they came.
    pub damaged: usize,
    /// SYNs dropped, because their interface is gone or down, or took nothing for a while.
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
    cursor: Array<MapData, Cursor>,
    resend: Resend,
}

impl Replayer {
    /// Loads the replay program. Do it before closing a gate, so that nothing is in the way
    /// of opening it again.
    ///
    /// # Errors
    /// [`Error::Kernel`] where the kernel lacks something, and those of loading.
    pub fn load(pins: &Pins, _lock: &Lock) -> Result<Self> {
        let held = Tables::open(pins)?.held_max();
        let mut attached = attach::attachments(pins)?.into_iter();
        if attached.any(|attachment| attachment.ifindex == LOOPBACK) {
            Resend::check()?;
        }
        let mut ebpf = object::load_replay(pins, held)?;
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
            resend: Resend::default(),
        };
        // Run once with nothing to inject, so that what the kernel refuses shows now.
        replayer.seek(REPLAY_BATCH)?;
        replayer.run(&[0; FRAME_LEN], 1)?;
        Ok(replayer)
    }

    /// Puts frames back in order; returns how many went, and how many could not.
    fn inject(&mut self, frames: &[ReplayFrame]) -> Result<(usize, usize)> {
        let mut patience_ends = Instant::now() + PATIENCE;
        let (mut injected, mut lost) = (0, 0);
        for batch in frames.chunks(REPLAY_BATCH as usize) {
            sys::update_array(self.frames.map().fd().as_fd(), batch)
                .map_err(Error::call("bpf batch update in", "REPLAY"))?;
            let mut next = 0;
            while let Some(frame) = batch.get(next as usize) {
                self.seek(next)?;
                self.run(&frame.frame, run_len(&batch[next as usize..]))?;
                let cursor = self
                    .cursor
                    .get(&0, 0)
                    .map_err(Error::aya("read the replay cursor"))?;
                if frame.way != Way::Claim as u32 {
                    injected += cursor.injected as usize;
                } else if cursor.injected > 0 {
                    match self.resend.send(frame) {
                        Ok(()) => injected += 1,
                        Err(_) => lost += 1,
                    }
                }
                // Blocked after some is a full backlog, which is mostly worked off by now; a
                // run that a signal ended early is not blocked. Both just go on.
                if cursor.blocked == 0 || cursor.next > next {
                    patience_ends = Instant::now() + PATIENCE;
                    next = cursor.next;
                    continue;
                }
                // What goes out meets no backlog: whoever took it will do so again.
                let may_pass = frame.way != Way::Out as u32 && Instant::now() < patience_ends;
                if may_pass && is_up(frame.ifindex)? {
                    std::thread::sleep(Duration::from_millis(1));
                } else {
                    lost += 1;
                    next += 1;
                }
            }
        }
        Ok((injected, lost))
    }

    fn seek(&mut self, next: u32) -> Result<()> {
        self.cursor
            .set(
                0,
                Cursor {
                    next,
                    ..Cursor::default()
                },
                0,
            )
            .map_err(Error::aya("store the replay cursor"))
    }

    /// Runs the program `repeat` times with a packet that begins like `frame`: the kernel takes
    /// the packet's protocol from there.
    fn run(&mut self, frame: &[u8; FRAME_LEN], repeat: u32) -> Result<()> {
        let what = "bpf test run of gate_replay";
        let program: &SchedClassifier = self
            .ebpf
            .program("gate_replay")
            .ok_or_else(|| Error::Aya {
                what: what.to_owned(),
                text: "it is not in the object".to_owned(),
            })?
            .try_into()
            .map_err(Error::aya(what))?;
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::new()
        };
        match program.test_run(options) {
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::Interrupted =>
            {
                Ok(())
            }
            result => result.map(drop).map_err(Error::aya(what)),
        }
    }
}

/// How many frames from the first on can go by one kernel call: those of one protocol. What user
/// space sends itself goes one by one.
fn run_len(frames: &[ReplayFrame]) -> u32 {
    let same = |frame: &&ReplayFrame| {
        frame.way != Way::Claim as u32
            && frame.frame[ADDRESSES..ETHERNET] == frames[0].frame[ADDRESSES..ETHERNET]
    };
    (frames.iter().take_while(same).count() as u32).max(1)
}

fn is_up(ifindex: u32) -> Result<bool> {
    let interfaces = interfaces::list()?;
    let mut same = interfaces.iter().filter(|it| it.index == ifindex);
    Ok(same.next().is_some_and(|interface| interface.is_up))
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
        neighbours: Neighbours::default(),
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
    // Each is tried, whatever became of the others.
    let opened: Vec<Result<()>> = gates
        .iter()
        .map(|gate| tables.set_state(lock, *gate, StateWord::OPEN, clock::now()))
        .collect();
    sweeper.released.opened_at = clock::now();
    early?;
    opened.into_iter().collect::<Result<()>>()?;
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
    neighbours: Neighbours,
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
        let mut frames: Vec<ReplayFrame> = held
            .iter()
            .filter_map(|(flow, syn)| frame(flow, syn, Direction::from_number(syn.direction)))
            .collect();
        // They have an address already, mostly the right one.
        let _unrefreshed = self.neighbours.refresh(&mut frames);
        let now = clock::now();
        let (injected, lost) = replayer.inject(&frames)?;
        self.released.injected += injected;
        self.released.gone += lost;
        self.released.damaged += held.len() - frames.len();
        let oldest = held.first().map_or(now, |(_, syn)| BootTime(syn.arrived));
        self.released.longest_wait = self.released.longest_wait.max(clock::between(oldest, now));
        Ok(held.len())
    }
}

fn attempt(flow: &FlowKey, syn: &HeldSyn) -> AttemptKey {
    AttemptKey {
        flow: *flow,
        isn: syn.isn,
    }
}

/// A held SYN as it is injected: checksum whole, tagged, padded; none where it was damaged.
fn frame(flow: &FlowKey, syn: &HeldSyn, direction: Direction) -> Option<ReplayFrame> {
    let mut frame = syn.frame.get(..syn.len as usize)?.to_vec();
    let Frame::Tcp(at) = locate(frame.as_slice()) else {
        return None;
    };
    checksum::complete(&mut frame, &at).ok()?;
    if syn.tag != 0 {
        // The tag that came beside the frame goes where it was on the wire.
        frame.splice(ADDRESSES..ADDRESSES, syn.tag.to_be_bytes());
    }
    let way = match direction {
        Direction::Egress => Way::Out,
        Direction::Ingress if syn.ifindex == LOOPBACK => Way::Claim,
        Direction::Ingress => Way::In,
    };
    let mut replay = ReplayFrame {
        attempt: attempt(flow, syn),
        gate: syn.gate,
        ifindex: syn.ifindex,
        way: way as u32,
        mark: syn.mark,
        priority: syn.priority,
        len: frame.len().max(MIN_FRAME).next_multiple_of(2) as u32,
        frame: [0; FRAME_LEN],
    };
    replay.frame.get_mut(..frame.len())?.copy_from_slice(&frame);
    Some(replay)
}
