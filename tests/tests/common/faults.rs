//! What faults have in common: at which calls a command dies, and what must be so whatever happened.

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

/// The calls at which a command dies: a spread of those that change something, or all there are.
pub struct Calls {
    chosen: Option<Vec<usize>>,
    tried: usize,
    missed: usize,
    reached: usize,
    began: Instant,
    what: &'static str,
}

impl Calls {
    /// All calls of a run that was seen to its end, however many the next ones make; a spread of those
    /// that change something in a short run.
    pub fn of(what: &'static str, seen: &Seen) -> Self {
        Self::of_fewer(what, seen, SPREAD)
    }

    /// As [`of`](Self::of), with so many of them in a short run.
    pub fn of_fewer(what: &'static str, seen: &Seen, short: usize) -> Self {
        let chosen = Extent::wanted().pick(Some(spread(&seen.changing(), short)), None);
        Self::new(what, seen, chosen)
    }

    fn new(what: &'static str, seen: &Seen, chosen: Option<Vec<usize>>) -> Self {
        println!(
            "{what}: {} calls, {} of them change something",
            seen.calls.len(),
            seen.changing().len()
        );
        Self {
            chosen,
            tried: 0,
            missed: 0,
            reached: 0,
            began: Instant::now(),
            what,
        }
    }

    /// How many were tried before this one.
    pub fn round(&self) -> usize {
        self.tried
    }

    /// The next call; none once all were tried.
    pub fn next(&self) -> Option<usize> {
        match &self.chosen {
            Some(chosen) => chosen.get(self.tried).copied(),
            None => (self.missed < ENDS).then_some(self.tried + 1),
        }
    }

    /// It was tried. Where the command did not come to it, it must have ended well.
    #[track_caller]
    pub fn tried(&mut self, output: &Output, seen: &Seen) {
        assert!(!output.stderr.contains("panicked"), "{output}");
        let code = if seen.reached { 128 + 9 } else { 0 };
        assert_eq!(output.code(), code, "{}: {output}", self.what);
        self.tried += 1;
        self.reached += usize::from(seen.reached);
        self.missed = match seen.reached {
            true => 0,
            false => self.missed + 1,
        };
    }

    /// All were tried.
    pub fn finish(self) {
        println!(
            "{}: died at {} calls in turn, in {:.0} s",
            self.what,
            self.reached,
            self.began.elapsed().as_secs_f64()
        );
        assert!(
            self.reached > self.tried / 2,
            "{} of {}",
            self.reached,
            self.tried
        );
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
