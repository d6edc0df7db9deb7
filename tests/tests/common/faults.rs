//! What faults have in common: at which calls a command dies, and what must be so whatever happened.

use std::iter;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use gate_tests::extent::Extent;
use gate_tests::load::{Endless, Outcome};
use gate_tests::syscalls::Seen;
use gate_tests::topology::{Output, Topology};
use gate_userspace::error::exit;

/// How many calls a short run tries.
const SPREAD: usize = 25;

/// A command whose number of calls differs from run to run has none of this number, once so many runs
/// in a row did not come to it.
const ENDS: usize = 3;

/// Runs this on as many threads as there are CPUs when all is tried, and on one in a short run. Each is to
/// take its cases from a list that all share, to a topology of its own.
pub fn side_by_side(work: impl Fn() + Sync) {
    let cpus = available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let all: Vec<_> = (0..Extent::wanted().pick(1, cpus))
            .map(|_| scope.spawn(&work))
            .collect();
        for one in all {
            one.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
}

/// The calls at which a command dies: a spread of those that change something, or all there are. Several
/// threads may go through them together.
pub struct Calls {
    chosen: Option<Vec<usize>>,
    so_far: Mutex<SoFar>,
    began: Instant,
    what: &'static str,
}

/// How far all of them came.
#[derive(Default)]
struct SoFar {
    given: usize,
    missed: usize,
    reached: usize,
    has_failed: bool,
}

/// A call that is being tried.
pub struct Call<'a> {
    calls: &'a Calls,
    /// Its number, counted from 1.
    pub number: usize,
}

impl Calls {
    /// All calls of a run that was seen to its end, however many the next ones make; a spread of those
    /// that change something in a short run.
    pub fn of(what: &'static str, seen: &Seen) -> Self {
        Self::of_fewer(what, seen, SPREAD)
    }

    /// As [`of`](Self::of), with so many of them in a short run.
    pub fn of_fewer(what: &'static str, seen: &Seen, short: usize) -> Self {
        println!(
            "{what}: {} calls, {} of them change something",
            seen.calls.len(),
            seen.changing().len()
        );
        Self {
            chosen: Extent::wanted().pick(Some(spread(&seen.changing(), short)), None),
            so_far: Mutex::default(),
            began: Instant::now(),
            what,
        }
    }

    /// Those that change something, with so many of them in a short run.
    pub fn changing(what: &'static str, seen: &Seen, short: usize) -> Self {
        let changing = seen.changing();
        let count = Extent::wanted().pick(short, changing.len());
        Self::these(what, spread(&changing, count))
    }

    /// Those of these numbers.
    pub fn these(what: &'static str, chosen: Vec<usize>) -> Self {
        Self {
            chosen: Some(chosen),
            so_far: Mutex::default(),
            began: Instant::now(),
            what,
        }
    }

    fn so_far(&self) -> MutexGuard<'_, SoFar> {
        self.so_far.lock().unwrap()
    }

    /// This thread's calls, each with how many it tried before.
    pub fn rounds(&self) -> impl Iterator<Item = (usize, Call<'_>)> {
        iter::from_fn(|| self.next()).enumerate()
    }

    /// The next call; none once all were tried, or where one failed.
    fn next(&self) -> Option<Call<'_>> {
        let mut so_far = self.so_far();
        let round = so_far.given;
        let number = match &self.chosen {
            Some(chosen) => chosen.get(round).copied(),
            None => (so_far.missed < ENDS).then_some(round + 1),
        };
        let number = number.filter(|_| !so_far.has_failed)?;
        so_far.given += 1;
        Some(Call {
            calls: self,
            number,
        })
    }

    /// All were tried.
    #[track_caller]
    pub fn finish(&self) {
        let so_far = self.so_far();
        println!(
            "{}: died at {} calls in turn, in {:.0} s",
            self.what,
            so_far.reached,
            self.began.elapsed().as_secs_f64()
        );
        let (reached, given) = (so_far.reached, so_far.given);
        assert!(reached > given / 2, "{reached} of {given}");
    }
}

impl Call<'_> {
    /// It was tried. Where the command did not come to it, it must have ended well.
    #[track_caller]
    pub fn tried(self, output: &Output, seen: &Seen) {
        assert!(!output.stderr.contains("panicked"), "{output}");
        let code = if seen.reached { 128 + 9 } else { 0 };
        assert_eq!(output.code(), code, "{}: {output}", self.calls.what);
        self.count(seen);
    }

    /// It was tried, and whatever it came to was looked at.
    pub fn count(self, seen: &Seen) {
        let mut so_far = self.calls.so_far();
        so_far.reached += usize::from(seen.reached);
        so_far.missed = match seen.reached {
            true => 0,
            false => so_far.missed + 1,
        };
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}: it failed at call {}", self.calls.what, self.number);
            self.calls.so_far().has_failed = true;
        }
    }
}

/// So many of them, from the first to the last.
fn spread(calls: &[usize], count: usize) -> Vec<usize> {
    assert!(calls.len() >= count, "{calls:?}");
    let nth = |index| calls[index * (calls.len() - 1) / (count - 1)];
    (0..count).map(nth).collect()
}

/// It ended with a code that is documented, and did not panic.
#[track_caller]
pub fn assert_documented(output: &Output) {
    assert!(!output.stderr.contains("panicked"), "{output}");
    let known = [
        exit::DONE,
        exit::FAILURE,
        exit::USAGE,
        exit::STATE,
        exit::RIGHTS,
        exit::TAKEN,
        exit::LEASE,
        exit::NOT_EXECUTABLE,
        exit::NOT_FOUND,
    ];
    assert!(
        known.map(i32::from).contains(&output.code()),
        "{}: {output}",
        output.code()
    );
}

/// `gate` must end well or with this code, and complain in no more than one line.
#[track_caller]
pub fn gate_or(topology: &Topology, args: &[&str], code: u8) -> Output {
    let output = topology.gate(args).unwrap();
    assert_documented(&output);
    let codes = [exit::DONE, code].map(i32::from);
    assert!(codes.contains(&output.code()), "{output}");

    output
}

/// Whatever a load's requests met, none was lost, and none waited for longer than this.
#[track_caller]
pub fn assert_none_lost(load: Endless, limit: Duration) {
    let (_, requests) = load.finish().unwrap();
    let lost: Vec<_> = requests
        .iter()
        .filter(|it| it.outcome != Outcome::Ok)
        .collect();
    let latest = requests.iter().map(|it| it.latency).max().unwrap();
    println!(
        "{} requests, {} lost, the latest after {latest:.1?}",
        requests.len(),
        lost.len()
    );
    let slow = requests
        .iter()
        .filter(|it| it.latency > Duration::from_secs(2));
    for request in slow {
        println!("due at {:.1?}, took {:.1?}", request.at, request.latency);
    }
    assert!(lost.is_empty(), "of {}: {lost:?}", requests.len());
    assert!(latest < limit, "{latest:?}");
}
