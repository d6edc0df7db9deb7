//! The replay program: putting held SYNs back where they were taken from.
//!
//! A SYN goes back into the interface that it came in on, or out of the one that it was leaving
//! by. On loopback the kernel would take it for a forged one, because the route that it came with
//! is lost, so there user space sends it again, through the firewall, as its client would.

use std::io;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{Array, IterableMap as _, MapData};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use gate_common::abi::{
    Block, Cursor, Direction, FRAME_LEN, HeldSyn, REPLAY_BATCH, ReplayFrame, Way,
};
use gate_common::checksum;
use gate_common::flow::{AttemptKey, FlowKey};
use gate_common::parse::{Frame, locate};

use crate::attach;
use crate::error::{Error, Result};
use crate::interfaces::LOOPBACK;
use crate::object;
use crate::pins::{Lock, Pins};
use crate::resend::Resend;
use crate::sys;
use crate::tables::{Tables, typed};

/// Shortest frame that is injected, and only even lengths are: others have met kernel bugs
/// (CVE-2022-49840, CVE-2025-21867).
const MIN_FRAME: usize = 60;

/// Bytes of the two Ethernet addresses, before the EtherType.
const ADDRESSES: usize = 12;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// How far an injection got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Injection {
    /// Frames that were dealt with; the next one, if there is one, can't go now.
    pub done: usize,
    /// Those that went.
    pub injected: usize,
    /// Those that were dropped, because a firewall refused them.
    pub lost: usize,
    /// Whether the next one can't go because nobody listens for it.
    pub awaits: bool,
}

impl Injection {
    /// This one and the one that went on from there.
    pub fn and(self, next: Self) -> Self {
        Self {
            done: self.done + next.done,
            injected: self.injected + next.injected,
            lost: self.lost + next.lost,
            awaits: next.awaits,
        }
    }
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

    /// Puts frames back, in order, as far as they can go now; one call takes `REPLAY_BATCH` of them.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn inject(&mut self, frames: &[ReplayFrame]) -> Result<Injection> {
        let frames = &frames[..frames.len().min(REPLAY_BATCH as usize)];
        sys::update_array(self.frames.map().fd().as_fd(), frames)
            .map_err(Error::call("bpf batch update in", "REPLAY"))?;
        let mut injection = Injection::default();
        while let Some(frame) = frames.get(injection.done) {
            self.seek(injection.done as u32)?;
            self.run(&frame.frame, run_len(&frames[injection.done..]))?;
            let cursor = self
                .cursor
                .get(&0, 0)
                .map_err(Error::aya("read the replay cursor"))?;
            if frame.way != Way::Claim as u32 {
                injection.injected += cursor.injected as usize;
            } else if cursor.injected > 0 {
                match self.resend.send(frame) {
                    Ok(()) => injection.injected += 1,
                    Err(_) => injection.lost += 1,
                }
            }
            // Blocked after some is a full backlog, which is mostly worked off by now; a run that a
            // signal ended early is not blocked. Both just go on.
            if cursor.blocked != Block::No as u32 && cursor.next as usize == injection.done {
                injection.awaits = cursor.blocked == Block::Nobody as u32;
                break;
            }
            injection.done = cursor.next as usize;
        }
        Ok(injection)
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

/// A held SYN as it is injected: checksum whole, tagged, padded; none where it was damaged.
pub(super) fn frame(flow: &FlowKey, syn: &HeldSyn) -> Option<ReplayFrame> {
    let mut frame = syn.frame.get(..syn.len as usize)?.to_vec();
    let Frame::Tcp(at) = locate(frame.as_slice()) else {
        return None;
    };
    checksum::complete(&mut frame, &at).ok()?;
    if syn.tag != 0 {
        // The tag that came beside the frame goes where it was on the wire.
        frame.splice(ADDRESSES..ADDRESSES, syn.tag.to_be_bytes());
    }
    let way = match Direction::from_number(syn.direction) {
        Direction::Egress => Way::Out,
        Direction::Ingress if syn.ifindex == LOOPBACK => Way::Claim,
        Direction::Ingress => Way::In,
    };
    let mut replay = ReplayFrame {
        attempt: AttemptKey {
            flow: *flow,
            isn: syn.isn,
        },
        gate: syn.gate,
        ifindex: syn.ifindex,
        way: way as u32,
        mark: syn.mark,
        priority: syn.priority,
        awaits: 0,
        len: frame.len().max(MIN_FRAME).next_multiple_of(2) as u32,
        frame: [0; FRAME_LEN],
    };
    replay.frame.get_mut(..frame.len())?.copy_from_slice(&frame);
    Some(replay)
}
