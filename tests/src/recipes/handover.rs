//! One of the names behind an Apache gets another backend, again and again, under load.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::names::{self, Backend, NAMES, Reuse, Seen, Who, apache_address, backend_address};
use super::{CALM, LIMIT};
use crate::apache::Apache;
use crate::load::{Outcome, Request};
use crate::summary::Summary;
use crate::topology::{Output, Side, Topology};
use crate::visit::Visit;

/// Kept connections over which nothing went for this long are flushed.
const IDLE: &str = "200ms";
/// How long the backend before may take to become empty.
const EMPTY: &str = "5s";
/// The exit code of a drain that leaves connections.
const LEFT: i32 = 3;

/// How the monitor sends new connections to the new backend, once that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Another configuration for Apache, and `apachectl graceful`.
    Graceful,
    /// `gate handover`.
    Gate,
}

/// What it does then about the backend before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Tells it at once to finish what it has.
    Stop,
    /// `gate drain --backend`, and the same.
    Drain,
    /// `gate flush --idle` before that.
    Flush,
    /// Leaves it to `gate handover --then`.
    Then,
}

/// A way to hand over.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Apache's connections.
    pub reuse: Reuse,
    /// The new connections.
    pub switch: Switch,
    /// The ones before.
    pub finish: Finish,
}

/// How one handover went.
#[derive(Clone, Copy, Debug)]
struct Turn {
    to: Who,
    /// When the command was given.
    begun: Instant,
    /// From when on every new connection goes to the new backend.
    switched: Instant,
    /// From the command to the end of the backend before.
    took: Duration,
    /// Whether the backend before was empty when it was stopped.
    empty: bool,
}

/// What came of many.
#[derive(Clone, Debug)]
pub struct Handovers {
    /// What the clients saw, of all names.
    pub summary: Summary,
    /// The same for each name.
    pub names: Vec<Summary>,
    /// How many handovers there were.
    pub times: usize,
    /// How often the backend before was empty when it was stopped.
    pub empty: usize,
    /// The longest time from the command to the end of the backend before.
    pub longest: Duration,
    /// Requests for the first name that A answered, and B.
    pub answered: [usize; 2],
    /// Downloads that came whole, and the longest time that one took.
    pub downloads: (usize, Duration),
    /// Requests that were made while new connections went to the new backend, and that the one before
    /// answered.
    pub late: usize,
}

struct Site<'a> {
    topology: &'a Topology,
    case: Case,
    apache: Apache<'a>,
    a: Backend<'a>,
    b: Backend<'a>,
    _others: Vec<Backend<'a>>,
}

impl<'a> Site<'a> {
    fn start(topology: &'a Topology, case: Case) -> Result<Self> {
        let others = NAMES[1..].iter();
        let site = Self {
            topology,
            case,
            a: Backend::start(topology, NAMES[0], Who::A)?,
            b: Backend::start(topology, NAMES[0], Who::B)?,
            _others: others
                .map(|name| Backend::start(topology, name, Who::A))
                .collect::<Result<_>>()?,
            apache: names::start_apache(topology, case.reuse)?,
        };
        site.b.nginx.stop()?;
        if case.switch == Switch::Gate {
            let address = site.a.address.to_string();
            topology.gate(["define", NAMES[0], &address])?.ok()?;
        }
        Ok(site)
    }

    fn backend(&self, who: Who) -> &Backend<'a> {
        match who {
            Who::A => &self.a,
            Who::B => &self.b,
        }
    }

    /// Starts this backend, makes it that of the first name, and stops the other.
    fn hand_over(&self, to: Who) -> Result<Turn> {
        let (new, old) = (self.backend(to), self.backend(to.other()));
        new.nginx.start_again()?;
        let file = names::handover_file();
        let file = Path::new(&file);
        if self.case.reuse == Reuse::Dropped {
            self.topology
                .run(Side::Server, || Ok(std::fs::write(file, "")?))?;
        }
        let begun = Instant::now();
        let (switched, empty) = self.switch(to, old)?;
        if self.case.reuse == Reuse::Dropped {
            self.topology
                .run(Side::Server, || Ok(std::fs::remove_file(file)?))?;
        }
        Ok(Turn {
            to,
            begun,
            switched,
            took: begun.elapsed(),
            empty,
        })
    }

    /// Returns when new connections went to the new backend, and whether the old one, which is
    /// stopped by then, was empty.
    fn switch(&self, to: Who, old: &Backend) -> Result<(Instant, bool)> {
        match self.case.switch {
            Switch::Graceful => {
                let new = self.backend(to).address;
                let more = names::configuration(self.case.reuse, new);
                self.apache.reconfigure(&more)?;
                self.wait_until_it_answers(to)?;
            }
            Switch::Gate => self.gate_switch(to, old)?,
        }
        let switched = Instant::now();
        let empty = match self.case.finish {
            Finish::Then => return Ok((switched, true)),
            Finish::Stop => false,
            Finish::Drain => self.drain(old)?,
            Finish::Flush => {
                sleep(Duration::from_millis(200));
                self.gate(&["flush", NAMES[0], "--idle", IDLE])?.ok()?;
                self.drain(old)?
            }
        };
        old.nginx.stop()?;
        Ok((switched, empty))
    }

    fn gate_switch(&self, to: Who, old: &Backend) -> Result<()> {
        let address = backend_address(NAMES[0], to).to_string();
        let mut words = match to {
            Who::A => vec!["handover", NAMES[0], "--back"],
            Who::B => vec!["handover", NAMES[0], "--to", &address],
        };
        let stop = old.nginx.stop_and_wait_line();
        if self.case.finish == Finish::Then {
            words.extend(["--then", &stop, "--timeout", EMPTY]);
        }
        self.gate(&words)?.ok()?;
        Ok(())
    }

    /// Whether this backend became empty.
    fn drain(&self, old: &Backend) -> Result<bool> {
        let old = old.address.to_string();
        let drain = self.gate(&["drain", "--backend", &old, "--timeout", EMPTY])?;
        if drain.code() == LEFT {
            return Ok(false);
        }
        drain.ok()?;
        Ok(true)
    }

    fn gate(&self, words: &[&str]) -> Result<Output> {
        self.topology.gate(words)
    }

    /// Asks Apache until this backend of the first name answers.
    fn wait_until_it_answers(&self, who: Who) -> Result<()> {
        let visit = Visit {
            target: apache_address(),
            host: format!("{}.test", NAMES[0]),
            path: "/".to_owned(),
            cookies: String::new(),
        };
        let late = Instant::now() + LIMIT;
        loop {
            let answer = self.topology.run(Side::Client, || visit.once(late))?;
            if answer.is_ok_and(|answer| names::author(&answer, NAMES[0], false) == Some(who)) {
                return Ok(());
            }
            if Instant::now() > late {
                bail!(
                    "{who:?} does not answer after {LIMIT:?}: {}",
                    self.apache.errors()
                );
            }
            sleep(Duration::from_millis(10));
        }
    }
}

impl Case {
    /// Hands over so many times under load: to B, to A, and so on.
    pub fn run(self, times: usize, rate: u32) -> Result<Handovers> {
        let topology = Topology::new()?;
        let site = Site::start(&topology, self)?;
        let load = names::visit(&topology, rate)?;
        let begin = load.begin();
        sleep(CALM);
        let mut turns = Vec::with_capacity(times);
        let mut to = Who::B;
        for number in 1..=times {
            let turn = site.hand_over(to);
            turns.push(turn.with_context(|| format!("handover {number}"))?);
            to = to.other();
        }
        sleep(CALM);
        let (_, seen) = load.finish()?;
        Ok(Handovers::new(&seen, &turns, begin))
    }
}

impl Handovers {
    fn new(seen: &[Seen], turns: &[Turn], begin: Instant) -> Self {
        let summary = |seen: &mut dyn Iterator<Item = &Seen>| {
            let requests: Vec<Request> = seen.map(|one| one.request).collect();
            Summary::new(&requests, Duration::ZERO)
        };
        let first = || seen.iter().filter(|one| one.name == 0);
        let by = |who| first().filter(|one| one.who == Some(who)).count();
        let whole = || {
            seen.iter()
                .filter(|one| one.download && one.request.outcome == Outcome::Ok)
        };
        let late = |one: &&Seen| {
            let due = begin + one.request.at;
            let done = due + one.request.latency;
            let at = turns.partition_point(|turn| turn.switched <= due);
            // Before the first handover it is A's, and from each command on it may be either's.
            let next = turns.get(at).map(|next| next.begun);
            let settled = next.is_none_or(|next| done < next);
            let now = turns[..at].last().map_or(Who::A, |turn| turn.to);
            settled && one.who == Some(now.other())
        };
        Self {
            summary: summary(&mut seen.iter()),
            names: (0..NAMES.len())
                .map(|name| summary(&mut seen.iter().filter(|one| one.name == name)))
                .collect(),
            times: turns.len(),
            empty: turns.iter().filter(|turn| turn.empty).count(),
            longest: turns.iter().map(|turn| turn.took).max().unwrap_or_default(),
            answered: [by(Who::A), by(Who::B)],
            downloads: (
                whole().count(),
                whole()
                    .map(|one| one.request.latency)
                    .max()
                    .unwrap_or_default(),
            ),
            late: first().filter(late).count(),
        }
    }
}
