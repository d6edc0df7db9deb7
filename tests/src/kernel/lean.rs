//! The same with next to no bookkeeping: one system call a frame, and what is left behind is looked
//! at after many.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result};
use aya::maps::IterableMap as _;
use aya::programs::{Program, ProgramFd};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use gate_common::abi::{GateStats, Guard, HeldSyn, Missing};
use gate_common::flow::{AttemptKey, EndpointKey, FlowKey, GateId, Isn};
use gate_common::shares::TOTAL;
use gate_userspace::hooks::Slot;
use gate_userspace::sys;
use std::os::fd::AsFd as _;

use super::{Kernel, Pure, Setup, WATCHED, action};
use crate::bpf;

/// A SYN that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFrame {
    /// By this gate.
    pub gate: GateId,
    /// Its sequence number.
    pub isn: Isn,
    /// Its frame, without padding.
    pub frame: Vec<u8>,
}

/// All that frames leave behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How often each counter moved, by gate.
    pub counts: Vec<GateStats>,
    /// What is held.
    pub held: HashMap<FlowKey, HeldFrame>,
    /// The attempts that must not be injected any more.
    pub released: HashSet<AttemptKey>,
    /// Where a listener is missing, and whose that is.
    pub missing: HashMap<EndpointKey, GateId>,
    /// Which gates are marked as dirty.
    pub dirty: Vec<bool>,
    /// How much of the room each share has that has any, and all together.
    pub shares: BTreeMap<u32, u64>,
}

impl Pure {
    /// What the frames since [`Pure::new`] left behind; the counters are the caller's.
    pub fn kept(&self, counts: Vec<GateStats>) -> Kept {
        let guards = (0..WATCHED).map(|gate| {
            let mut own = self.setup.guards.iter().filter(|(id, _)| id.0 == gate);
            own.any(|(_, guard)| guard.dirty != 0)
        });
        let missing = self.setup.missing.iter();
        let mut shares = BTreeMap::new();
        for flow in self.held.keys() {
            let share = self.setup.room.share_of(&flow.source);
            for index in [share, TOTAL] {
                *shares.entry(index).or_insert(0) += 1;
            }
        }
        Kept {
            shares,
            counts,
            held: self.held.clone(),
            released: self.setup.released.iter().copied().collect(),
            missing: missing.map(|(key, it)| (*key, it.gate)).collect(),
            dirty: guards.collect(),
        }
    }
}

impl Kept {
    /// What is here and not there, and the other way round.
    pub fn unlike(&self, other: &Self) -> String {
        let mut text = String::new();
        if self.counts != other.counts {
            text += &format!("counters {:?} are not {:?}; ", self.counts, other.counts);
        }
        let lacks = |it: &Self, than: &Self| {
            let held = it
                .held
                .iter()
                .filter(|(key, one)| than.held.get(key) != Some(one));
            let released = it.released.difference(&than.released);
            let missing = it.missing.iter();
            let missing = missing.filter(|(key, gate)| than.missing.get(key) != Some(gate));
            format!(
                "held {:02x?}, released {:?}, missing {:?}, dirty {:?}, shares {:?}",
                held.collect::<Vec<_>>(),
                released.collect::<Vec<_>>(),
                missing.collect::<Vec<_>>(),
                it.dirty,
                it.shares
            )
        };
        text + &format!("{} is not {}", lacks(self, other), lacks(other, self))
    }
}

impl Kernel {
    /// How many gates' counters are watched, from 0 on.
    pub fn watched(&self) -> usize {
        WATCHED as usize
    }

    /// Runs frames one after another.
    pub fn runner(&self) -> Result<Runner> {
        let program = self.ebpf.program(self.slot.program());
        let program = match program.context("no program")? {
            Program::Xdp(program) => program.fd()?,
            Program::SchedClassifier(program) => program.fd()?,
            _ => anyhow::bail!("no program on packets"),
        };
        Runner::new(self.slot, program.try_clone()?)
    }

    /// What the frames since [`Kernel::reset`] left behind.
    pub fn kept(&mut self) -> Result<Kept> {
        let now = self.stats()?;
        let moved = self.counts.iter().zip(&now).map(|((_, from), (_, to))| {
            let mut moved = *to;
            for (count, before) in moved.counts.iter_mut().zip(from.counts) {
                *count -= before;
            }
            moved
        });
        let counts = moved.collect();
        let held = self.held()?.into_iter().map(|(flow, held)| {
            let frame = held.frame[..held.len as usize].to_vec();
            let (gate, isn) = (held.gate, held.isn);
            (flow, HeldFrame { gate, isn, frame })
        });
        let held = held.collect();
        let released = self.released()?.into_iter().map(|(attempt, _)| attempt);
        let released = released.collect();
        let map = self.hash::<EndpointKey, Missing>("MISSING")?;
        let missing = sys::lookup_all::<EndpointKey, Missing>(map.map().fd().as_fd())?;
        let map = self.array::<u64>("SHARES")?;
        let mut shares: BTreeMap<u32, u64> = sys::lookup_all(map.map().fd().as_fd())?
            .into_iter()
            .collect();
        shares.retain(|_, share| *share != 0);
        let dirty = (0..WATCHED).map(|gate| Ok(self.guard(GateId(gate))?.dirty != 0));
        Ok(Kept {
            shares,
            counts,
            held,
            released,
            missing: missing
                .into_iter()
                .map(|(key, it)| (key, it.gate))
                .collect(),
            dirty: dirty.collect::<Result<_>>()?,
        })
    }

    /// As [`Kernel::set`], and nothing is left of what was before.
    pub fn reset(&mut self, setup: &Setup) -> Result<()> {
        let held: Vec<FlowKey> = self.held()?.into_iter().map(|(flow, _)| flow).collect();
        let map = self.hash::<FlowKey, HeldSyn>("HELD")?;
        sys::delete_all(map.map().fd().as_fd(), &held)?;
        let mut guards = self.array::<Guard>("GUARDS")?;
        for gate in 0..WATCHED {
            guards.set(gate, Guard::default(), 0)?;
        }
        self.set(setup)?;
        self.counts = self.stats()?;
        Ok(())
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran<'a> {
    /// It passed.
    Pass,
    /// It was dropped.
    Drop,
    /// This went back instead of it.
    Reply(&'a [u8]),
}

/// Runs a hook's program on one frame after another.
pub struct Runner {
    slot: Slot,
    _program: ProgramFd,
    attr: bpf_attr,
    out: Box<[u8; ROOM]>,
}

/// Longest frame that can come out.
const ROOM: usize = 4096;

impl Runner {
    fn new(slot: Slot, program: ProgramFd) -> Result<Self> {
        let mut attr = bpf::attr();
        attr.test.prog_fd = program.as_fd().as_raw_fd() as u32;
        attr.test.repeat = 1;
        Ok(Self {
            slot,
            _program: program,
            attr,
            out: Box::new([0; ROOM]),
        })
    }

    /// Runs one frame. One that passes must come out as it went in.
    pub fn run(&mut self, frame: &[u8]) -> Result<Ran<'_>> {
        self.attr.test.data_in = frame.as_ptr() as u64;
        self.attr.test.data_size_in = frame.len() as u32;
        self.attr.test.data_out = self.out.as_mut_ptr() as u64;
        self.attr.test.data_size_out = ROOM as u32;
        // SAFETY: both buffers are as large as the attribute says, and live through the call.
        unsafe { bpf::call(bpf_cmd::BPF_PROG_TEST_RUN, &mut self.attr) }
            .context("BPF_PROG_TEST_RUN")?;
        // SAFETY: the kernel filled in the test run's part.
        let (code, len) = unsafe { (self.attr.test.retval, self.attr.test.data_size_out) };
        let out = self
            .out
            .get(..len as usize)
            .context("a longer frame came out")?;
        let ran = action(self.slot, code, frame, out)?;
        anyhow::ensure!(
            ran != Ran::Pass || out == frame,
            "a frame was changed, and passed"
        );
        Ok(ran)
    }
}
