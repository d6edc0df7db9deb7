//! Waits until an endpoint's connections are gone.
//!
//! A connection counts for as long as a process, or an accept queue, has one of its sockets, and may
//! still send or receive: `ESTABLISHED`, `CLOSE_WAIT`, and `FIN_WAIT` where it was only shut down
//! for writing. See [`Socket::is_open`](crate::sockets::Socket::is_open).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use gate_common::state::{BootTime, Closed, Effective, StateWord};

use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result, exit};
use crate::gates::{self, Target};
use crate::pins::Pins;
use crate::rights;
use crate::sockets::{Found, Lister};
use crate::tables::Tables;

pub mod driver;

/// Between two looks, at the least and at the most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A pause is that many times as long as the look before it took, so that a drain takes no more
/// than a tenth of a CPU where a look is costly.
const PAUSE_FACTOR: u32 = 9;

/// Looks at the connections of endpoints. Every look is one short call.
pub struct Watch(Lister);

impl Watch {
    /// Begins to watch, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(endpoints: &[Endpoint]) -> Result<Self> {
        let lister = Lister::new(endpoints).map_err(Error::call("open", "sock_diag"))?;
        Ok(Self(lister))
    }

    /// What is connected at this moment.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> Result<Found> {
        self.0.look().map_err(Error::call("ask", "sock_diag"))
    }
}

/// The connections of endpoints, by one look. See [`Watch`].
///
/// # Errors
/// The kernel's.
pub fn connections(endpoints: &[Endpoint]) -> Result<Found> {
    Watch::new(endpoints)?.look()
}

/// What a command was told to work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meant {
    /// The endpoints, each once.
    pub endpoints: Vec<Endpoint>,
    /// The word that decides over each of them; none where this process may not look.
    words: Option<Vec<StateWord>>,
}

impl Meant {
    /// Those that are known to be open, to which new connections go on coming in.
    #[must_use]
    pub fn open(&self, now: BootTime) -> Vec<Endpoint> {
        let words = self.words.iter().flatten();
        let all = self.endpoints.iter().zip(words);
        all.filter(|(_, word)| !matches!(word.at(|| now), Effective::Closed(_)))
            .map(|(endpoint, _)| *endpoint)
            .collect()
    }

    /// Whether a gate may hold attempts to connect, so that they are to go on waiting.
    #[must_use]
    pub fn may_hold(&self, now: BootTime) -> bool {
        let holds = |word: &StateWord| {
            word.is_guarded() || word.at(|| now) == Effective::Closed(Closed::Hold)
        };
        self.words
            .as_ref()
            .is_none_or(|words| words.iter().any(holds))
    }
}

/// Looks up what is meant. A name needs gate's pins, and the rights to read them; an endpoint
/// stands for itself, also where gate is not up.
///
/// # Errors
/// [`Error::NoGate`], [`Error::Rights`], and those of the pins and the maps.
pub fn resolve(targets: &[Target], now: BootTime) -> Result<Meant> {
    let mut endpoints: BTreeSet<Endpoint> = BTreeSet::new();
    let mut is_by_name = false;
    for target in targets {
        match target {
            Target::Endpoint(endpoint) => {
                endpoints.insert(*endpoint);
            }
            Target::Named(_) => is_by_name = true,
        }
    }
    let may_look = rights::missing()?.is_empty();
    if is_by_name {
        rights::check()?;
    }
    let pins = match Pins::here() {
        Err(Error::NoBpffs { .. }) if !is_by_name => None,
        pins => Some(pins?),
    };
    if let Some(pins) = pins.as_ref().filter(|_| is_by_name) {
        endpoints.extend(gates::meant(pins, targets)?);
    }
    let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
    let words = match pins {
        _ if !may_look => None,
        None => Some(vec![StateWord::OPEN; endpoints.len()]),
        Some(pins) => Some(words(&pins, &endpoints, now)?),
    };
    Ok(Meant { endpoints, words })
}

/// A closed wildcard's gate goes before an endpoint's own, as in the data path. What has no gate is
/// open.
fn words(pins: &Pins, endpoints: &[Endpoint], now: BootTime) -> Result<Vec<StateWord>> {
    let tables = match Tables::open(pins) {
        Err(Error::NotUp) => return Ok(vec![StateWord::OPEN; endpoints.len()]),
        tables => tables?,
    };
    let mut words = HashMap::new();
    for gate in gates::list(pins, &tables)? {
        let word = tables.state(gate.id)?;
        words.extend(gate.endpoints.iter().map(|it| (*it, word)));
    }
    let word = |endpoint: &Endpoint| {
        let any = words.get(&Endpoint {
            address: None,
            ..*endpoint
        });
        let closed = any.filter(|word| matches!(word.at(|| now), Effective::Closed(_)));
        let word = closed.or_else(|| words.get(endpoint)).or(any);
        word.copied().unwrap_or(StateWord::OPEN)
    };
    Ok(endpoints.iter().map(word).collect())
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection is left.
    Drained,
    /// Some were left at the deadline.
    Remaining,
    /// A signal came first.
    Interrupted(i32),
}

impl Outcome {
    /// Its name, for machines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Remaining => "remaining",
            Self::Interrupted(_) => "interrupted",
        }
    }

    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Drained => exit::DONE,
            Self::Remaining => exit::STATE,
            Self::Interrupted(signal) => 128 + u8::try_from(signal).unwrap_or(0),
        }
    }
}

/// What a drain waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connections are there.
    Connections,
    /// None is there, but half-open requests may become some.
    HalfOpen,
}

/// What happens to a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A look was taken.
    Looked {
        /// The connections that it found.
        connections: usize,
        /// The half-open requests.
        half_open: usize,
        /// How long it took.
        took: Duration,
    },
    /// A signal arrived.
    Signal(i32),
}

/// A drain, without its clock and its looks. It ends by a look at or after the deadline, or before
/// it by one that finds nothing.
#[derive(Clone, Debug)]
pub struct Machine {
    deadline: BootTime,
    next: BootTime,
    phase: Phase,
    outcome: Option<Outcome>,
}

impl Machine {
    /// Begins; the first look is due at once.
    #[must_use]
    pub fn new(now: BootTime, timeout: Duration) -> Self {
        Self {
            deadline: clock::after(now, timeout),
            next: now,
            phase: Phase::Connections,
            outcome: None,
        }
    }

    /// How it ended; none while it goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// When the next look is due.
    #[must_use]
    pub fn next_look(&self) -> BootTime {
        self.next
    }

    /// When it gives up.
    #[must_use]
    pub fn deadline(&self) -> BootTime {
        self.deadline
    }

    /// What it waits for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes what happened until `now`. Nothing changes an end.
    pub fn on(&mut self, event: Event, now: BootTime) {
        if self.outcome.is_some() {
            return;
        }
        match event {
            Event::Signal(signal) => self.outcome = Some(Outcome::Interrupted(signal)),
            Event::Looked {
                connections: 0,
                half_open: 0,
                ..
            } => self.outcome = Some(Outcome::Drained),
            Event::Looked {
                connections, took, ..
            } => {
                self.phase = match connections {
                    0 => Phase::HalfOpen,
                    _ => Phase::Connections,
                };
                if now >= self.deadline {
                    // A half-open request is no connection: what could wait for it has waited.
                    self.outcome = Some(match connections {
                        0 => Outcome::Drained,
                        _ => Outcome::Remaining,
                    });
                }
                let pause = (took * PAUSE_FACTOR).clamp(PAUSE_MIN, PAUSE_MAX);
                self.next = clock::after(now, pause).min(self.deadline);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn at(ms: u64) -> BootTime {
        BootTime((5_000 + ms) * 1_000_000)
    }

    #[test]
    fn what_a_gate_may_hold_goes_on_waiting() {
        let until = |ms| StateWord::closed(Closed::Hold, at(ms));
        let dropping = StateWord::closed(Closed::Drop, at(10));
        for (words, may_hold, open) in [
            (Some(vec![StateWord::OPEN, StateWord::OPEN]), false, 2),
            (Some(vec![StateWord::OPEN, until(10)]), true, 1),
            // Its lease is over.
            (Some(vec![StateWord::OPEN, until(1)]), false, 2),
            (Some(vec![dropping, dropping]), false, 0),
            (
                Some(vec![StateWord::OPEN, StateWord::OPEN.guarded(true)]),
                true,
                2,
            ),
            (None, true, 0),
        ] {
            let meant = Meant {
                endpoints: ["10.0.0.5:80", "10.0.0.6:80"]
                    .map(|text| text.parse().expect(text))
                    .to_vec(),
                words,
            };
            assert_eq!(meant.may_hold(at(5)), may_hold, "{meant:?}");
            assert_eq!(meant.open(at(5)).len(), open, "{meant:?}");
        }
    }

    fn looked(connections: usize, half_open: usize) -> Event {
        Event::Looked {
            connections,
            half_open,
            took: Duration::from_micros(100),
        }
    }

    #[test]
    fn it_ends_when_nothing_is_left() {
        let mut machine = Machine::new(at(0), TIMEOUT);
        assert_eq!(machine.next_look(), at(0));
        machine.on(looked(2, 0), at(1));
        assert_eq!((machine.outcome(), machine.next_look()), (None, at(11)));
        machine.on(looked(0, 1), at(11));
        assert_eq!(
            (machine.outcome(), machine.phase()),
            (None, Phase::HalfOpen)
        );
        machine.on(looked(1, 0), at(21));
        assert_eq!(machine.phase(), Phase::Connections);
        machine.on(looked(0, 0), at(31));
        assert_eq!(machine.outcome(), Some(Outcome::Drained));
        assert_eq!(Outcome::Drained.exit_code(), 0);
    }

    #[test]
    fn nothing_to_wait_for_ends_it_with_the_first_look() {
        let mut machine = Machine::new(at(0), TIMEOUT);
        machine.on(looked(0, 0), at(1));
        assert_eq!(machine.outcome(), Some(Outcome::Drained));
    }

    #[test]
    fn it_looks_a_last_time_at_the_deadline() {
        let mut machine = Machine::new(at(0), TIMEOUT);
        machine.on(looked(1, 0), at(29_995));
        assert_eq!((machine.outcome(), machine.next_look()), (None, at(30_000)));
        let mut late = machine.clone();
        machine.on(looked(0, 0), at(30_001));
        assert_eq!(machine.outcome(), Some(Outcome::Drained));
        late.on(looked(1, 0), at(30_001));
        assert_eq!(late.outcome(), Some(Outcome::Remaining));
        assert_eq!(Outcome::Remaining.exit_code(), 3);
    }

    #[test]
    fn a_half_open_request_is_not_waited_for_past_the_deadline() {
        let mut machine = Machine::new(at(0), TIMEOUT);
        machine.on(looked(0, 1), at(30_000));
        assert_eq!(machine.outcome(), Some(Outcome::Drained));
    }

    #[test]
    fn a_signal_ends_it_and_nothing_changes_that() {
        let mut machine = Machine::new(at(0), TIMEOUT);
        machine.on(Event::Signal(15), at(1));
        machine.on(looked(0, 0), at(2));
        machine.on(Event::Signal(2), at(3));
        assert_eq!(machine.outcome(), Some(Outcome::Interrupted(15)));
        assert_eq!(Outcome::Interrupted(15).exit_code(), 143);
    }

    #[test]
    fn a_costly_look_is_taken_less_often() {
        for (took, pause) in [(0, 10), (1, 10), (2, 18), (50, 450), (5_000, 1_000)] {
            let mut machine = Machine::new(at(0), TIMEOUT);
            machine.on(
                Event::Looked {
                    connections: 1,
                    half_open: 0,
                    took: Duration::from_millis(took),
                },
                at(100),
            );
            assert_eq!(machine.next_look(), at(100 + pause), "{took}");
        }
    }
}
