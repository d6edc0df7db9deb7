//! Differential fuzzing: frames made by chance through the kernel's program and through the pure
//! function, with the same tables made by chance. Whatever they do not do alike is made small, told
//! with its seed, and kept.
//!
//! Frames are run in batches. Each frame's action and answer is compared at once; the counters and
//! what is held, released and missing once a batch, which is bisected where that differs.

mod corpus;
mod frames;
mod setups;
mod shrink;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use gate_common::abi::{Counter, GateStats};
use gate_common::flow::GateId;
use gate_userspace::clock;
use gate_userspace::hooks::Slot;

use crate::kernel::{Action, Kernel, Link, Pure, Ran, Runner, Setup};

pub use corpus::{Example, hex, read_all};
pub use frames::Frames;
pub use setups::setup;

/// Frames that go through one set of tables.
const BATCH: u64 = 2048;

/// How far a run came.
#[derive(Clone, Debug)]
pub struct Report {
    /// Frames that were judged by both.
    pub frames: u64,
    /// How many moved each counter.
    pub counted: [u64; Counter::ALL.len()],
    /// How many were answered.
    pub answered: u64,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Frames a second.
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.took.as_secs_f64()
    }
}

/// What is expected of a frame: the action, and the counter that moves.
pub type Expected = (Action, Option<(GateId, Counter)>);

/// A hook's program, and what is needed to run it often.
pub struct Differ {
    kernel: Kernel,
    runner: Runner,
    counted: [u64; Counter::ALL.len()],
    answered: u64,
}

/// What the two do not do alike: after so many frames, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    frames: usize,
    text: String,
}

impl Differ {
    /// Loads the program, and moves the calling thread as [`Kernel::load`] does.
    pub fn load(slot: Slot, link: Link) -> Result<Self> {
        let kernel = Kernel::load_for(slot, link)?;
        let runner = kernel.runner()?;
        Ok(Self {
            kernel,
            runner,
            counted: [0; Counter::ALL.len()],
            answered: 0,
        })
    }

    /// Runs this many frames; an error tells of the first difference.
    pub fn run(&mut self, seed: u64, frames: u64) -> Result<Report> {
        let begin = Instant::now();
        (self.counted, self.answered) = ([0; Counter::ALL.len()], 0);
        let mut seeds = Rng::with_seed(seed);
        let mut done = 0;
        while done < frames {
            let batch = seeds.u64(..);
            let count = BATCH.min(frames - done);
            self.batch(batch, count)?;
            done += count;
        }
        Ok(Report {
            frames,
            counted: self.counted,
            answered: self.answered,
            took: begin.elapsed(),
        })
    }

    /// Runs the frames of one seed through the tables of the same seed.
    fn batch(&mut self, seed: u64, count: u64) -> Result<()> {
        let tables = setup(seed);
        let (slot, link) = (self.kernel.slot(), self.kernel.link());
        let mut made = Frames::new(seed, link);
        let mut frame = Vec::new();
        let next = |frame: &mut Vec<u8>| {
            made.next(frame, slot);
            true
        };
        if self
            .first_difference(&tables, count, next, &mut frame)?
            .is_none()
        {
            return Ok(());
        }
        let mut made = Frames::new(seed, link);
        let frames: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let mut frame = Vec::new();
                made.next(&mut frame, slot);
                frame
            })
            .collect();
        let (tables, frames, difference) = shrink::smallest(self, tables, &frames)?;
        let mut text = format!("{slot:?}, {link:?}, and the pure function differ: {difference}\n");
        writeln!(text, "seed {seed:#x}, {tables:#x?}")?;
        for frame in &frames {
            writeln!(text, "{}", hex(frame))?;
        }
        match corpus::keep(slot.program(), seed, &frames, &difference) {
            Ok(path) => bail!("{text}kept as {}; give it a name", path.display()),
            Err(error) => bail!("{text}not kept: {error:#}"),
        }
    }

    /// What the two do not do alike with these frames, one after another, if there is anything.
    fn difference(&mut self, tables: &Setup, frames: &[Vec<u8>]) -> Result<Option<Difference>> {
        let mut all = frames.iter();
        let next = |frame: &mut Vec<u8>| {
            let Some(next) = all.next() else { return false };
            frame.clone_from(next);
            true
        };
        self.first_difference(tables, frames.len() as u64, next, &mut Vec::new())
    }

    fn first_difference(
        &mut self,
        tables: &Setup,
        count: u64,
        mut next: impl FnMut(&mut Vec<u8>) -> bool,
        frame: &mut Vec<u8>,
    ) -> Result<Option<Difference>> {
        self.kernel.reset(tables)?;
        let pure = Pure::new(self.kernel.slot(), tables.clone(), clock::now());
        let mut pure = pure.at(self.kernel.link());
        let mut counts = self.kernel.no_counts();
        for index in 0..count {
            if !next(frame) {
                break;
            }
            let (expected, counted) = pure.step(frame);
            if let Some((gate, counter)) = counted {
                counts[gate.0 as usize].counts[counter as usize] += 1;
                self.counted[counter as usize] += 1;
            }
            self.answered += u64::from(matches!(expected, Action::Reply(_)));
            let ran = self.runner.run(frame).with_context(|| hex(frame))?;
            if !is_alike(ran, &expected) {
                return Ok(Some(Difference {
                    frames: index as usize + 1,
                    text: format!("{ran:02x?} is not {expected:02x?}"),
                }));
            }
        }
        let (kernel, pure) = (self.kernel.kept()?, pure.kept(counts));
        Ok((kernel != pure).then(|| Difference {
            frames: count as usize,
            text: kernel.unlike(&pure),
        }))
    }

    /// Frames that both must judge alike, and as expected, one after another.
    pub fn expect(&mut self, tables: &Setup, cases: &[(Vec<u8>, Expected)]) -> Result<()> {
        self.expect_of_the_pure_function(tables, cases)?;
        let frames: Vec<Vec<u8>> = cases.iter().map(|(frame, _)| frame.clone()).collect();
        match self.difference(tables, &frames)? {
            None => Ok(()),
            Some(Difference {
                frames: count,
                text,
            }) => {
                bail!("after {}: {text}", hex(&frames[count - 1]))
            }
        }
    }

    /// As [`expect`](Self::expect), of the pure function alone.
    pub fn expect_of_the_pure_function(
        &self,
        tables: &Setup,
        cases: &[(Vec<u8>, Expected)],
    ) -> Result<()> {
        let pure = Pure::new(self.kernel.slot(), tables.clone(), clock::now());
        let mut pure = pure.at(self.kernel.link());
        for (frame, expected) in cases {
            let found = pure.step(frame);
            ensure!(
                found == *expected,
                "{}: {found:?} is not {expected:?}",
                hex(frame)
            );
        }
        Ok(())
    }

    /// An example of the corpus must be judged alike.
    pub fn replay(&mut self, tables: &Setup, frames: &[Vec<u8>]) -> Result<()> {
        match self.difference(tables, frames)? {
            None => Ok(()),
            Some(difference) => bail!("{}", difference.text),
        }
    }

    /// Whether the kernel takes a frame for a test run.
    pub fn takes(&self, frame: &[u8]) -> bool {
        self.kernel.takes(frame)
    }
}

fn is_alike(ran: Ran<'_>, expected: &Action) -> bool {
    match (ran, expected) {
        (Ran::Pass, Action::Pass) | (Ran::Drop, Action::Drop) => true,
        (Ran::Reply(frame), Action::Reply(expected)) => frame == expected,
        _ => false,
    }
}

impl Kernel {
    fn no_counts(&self) -> Vec<GateStats> {
        vec![GateStats::default(); self.watched()]
    }
}
