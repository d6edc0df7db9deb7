//! Waits until an endpoint's connections are gone.
//!
//! A connection counts for as long as a process, or an accept queue, has one of its sockets, and may
//! still send or receive: `ESTABLISHED`, `CLOSE_WAIT`, and `FIN_WAIT` where it was only shut down
//! for writing. See [`Socket::is_open`](crate::sockets::Socket::is_open).

use std::time::Duration;

use gate_common::state::BootTime;

use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result, exit};
use crate::pins::Pins;
use crate::rights;
use crate::sockets::{Found, Lister};
use crate::tables::handovers::Handovers;

pub mod driver;
mod meant;
mod whose;

pub use meant::{Meant, MeantBackends, of_backends, resolve};
pub use whose::Whose;

/// Between two looks, at the least and at the most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A pause is that many times as long as the look before it took, so that a drain takes no more
/// than a tenth of a CPU where a look is costly.
const PAUSE_FACTOR: u32 = 9;

/// Looks at the connections of endpoints. Every look is one short call.
pub struct Watch {
    lister: Lister,
    of: Option<OfBackends>,
}

/// What it takes to tell one backend's connections from another's.
struct OfBackends {
    whose: Whose,
    /// Where the marks are, once there was a handover.
    pins: Option<Pins>,
}

impl Watch {
    /// Begins to watch, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(endpoints: &[Endpoint]) -> Result<Self> {
        let lister = Lister::new(endpoints).map_err(Error::call("open", "sock_diag"))?;
        Ok(Self { lister, of: None })
    }

    /// As [`Self::new`], but only for what is certain backends'. Where nothing was ever handed over,
    /// that is what has their addresses.
    ///
    /// # Errors
    /// [`Error::Rights`]; those of the pins and maps; the kernel's.
    pub fn of_backends(whose: Whose) -> Result<Self> {
        rights::check()?;
        let pins = match Pins::here() {
            Err(Error::NoBpffs { .. }) => None,
            pins => Some(pins?),
        };
        let mut endpoints = whose.backends.clone();
        // Beside the marks, by which connections are found, their clients and half-open requests are
        // looked for: where they arrive.
        endpoints.extend(match whose.by.is_empty() {
            true => meant::all_endpoints(pins.as_ref())?,
            false => whose.by.clone(),
        });
        endpoints.sort_unstable();
        endpoints.dedup();
        let of = Some(OfBackends { whose, pins });
        Ok(Self {
            of,
            ..Self::new(&endpoints)?
        })
    }

    /// What is connected at this moment.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> Result<Found> {
        if let Some(pins) = self.of.as_ref().and_then(|of| of.pins.as_ref())
            && !self.lister.reads_marks()
            && let Some(tables) = Handovers::open(pins)?
        {
            let map = tables.served().try_clone_to_owned();
            self.lister
                .read_marks(map.map_err(Error::call("duplicate", "SERVED"))?);
        }
        let mut found = self
            .lister
            .look()
            .map_err(Error::call("ask", "sock_diag"))?;
        if let Some(of) = &mut self.of {
            of.whose.keep(&mut found);
        }
        Ok(found)
    }
}

/// The connections of endpoints, by one look. See [`Watch`].
///
/// # Errors
/// The kernel's.
pub fn connections(endpoints: &[Endpoint]) -> Result<Found> {
    Watch::new(endpoints)?.look()
}

/// How long to wait after a look that took so long.
#[must_use]
pub fn pause(took: Duration) -> Duration {
    (took * PAUSE_FACTOR).clamp(PAUSE_MIN, PAUSE_MAX)
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
                let pause = pause(took);
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
