//! Resets the connections of endpoints, so that their owners reconnect.
//!
//! Which of the two sockets is destroyed, where both are on this host: the backend's. Its owner reads
//! `ECONNABORTED`, and the client is sent a reset and reads `ECONNRESET`, which is what a backend that
//! dies does to it, so that every proxy has an answer to it: to forget an idle connection, to repeat a
//! request that got no byte of an answer. A request that the client writes in the same moment meets no
//! socket, so that no process has begun with it. Destroyed at the client's side, that request could be
//! read by a backend that nobody waits for. Where only the client's socket is here (a backend on
//! another host, perhaps dead), that one is destroyed.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use gate_common::state::BootTime;

use crate::clock;
use crate::drain;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::features;
use crate::sockets::{Connection, Destroyer, Found, Socket, State, can_destroy};

pub mod driver;

/// Sockets destroyed by one [`Flush::step`], at about 10 µs each.
const STEP: usize = 256;

/// What to flush, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only connections over which nothing went for that long, and with nothing unread or
    /// unacknowledged at either side. None for all.
    pub idle: Option<Duration>,
    /// The time over which they are spread evenly.
    pub over: Duration,
    /// Whether those that are being made (`SYN_SENT`) are flushed, too. They wait for a backend that
    /// doesn't answer, unless a gate holds them. Never with `idle`.
    pub connecting: bool,
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Connections reset by destroying the backend's socket.
    pub backend: usize,
    /// By destroying the client's.
    pub client: usize,
    /// Attempts to connect that were ended.
    pub connecting: usize,
    /// Connections left alone, because they were not idle.
    pub busy: usize,
    /// Connections that ended by themselves before it was their turn.
    pub ended: usize,
}

impl Flushed {
    /// All that were reset.
    #[must_use]
    pub fn reset(&self) -> usize {
        self.backend + self.client + self.connecting
    }

    /// Whether there was no connection at all.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A flush that goes on. Every call is short; between two of them the caller waits until [`Self::due`].
pub struct Flush {
    destroyer: Destroyer,
    idle: Option<Duration>,
    spread: Spread,
    rest: VecDeque<Connection>,
    flushed: Flushed,
}

impl Flush {
    /// Lists what is to be flushed, in the calling thread's network namespace. Connections that are
    /// made later are not touched.
    ///
    /// # Errors
    /// [`Error::NoDestroy`] where the kernel can't destroy sockets; the kernel's.
    pub fn begin(endpoints: &[Endpoint], options: Options, now: BootTime) -> Result<Self> {
        check()?;
        Self::of(drain::connections(endpoints)?, options, now)
    }

    /// As [`Self::begin`], for what a look has found.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(found: Found, options: Options, now: BootTime) -> Result<Self> {
        let (rest, busy) = select(found, options);
        Ok(Self {
            destroyer: Destroyer::new().map_err(Error::call("open", "sock_diag"))?,
            idle: options.idle,
            spread: Spread {
                start: now,
                over: options.over,
                count: rest.len(),
            },
            rest: rest.into(),
            flushed: Flushed {
                busy,
                ..Flushed::default()
            },
        })
    }

    /// When the next connection is due; none when all are done.
    #[must_use]
    pub fn due(&self) -> Option<BootTime> {
        (!self.rest.is_empty()).then(|| self.spread.due(self.spread.count - self.rest.len()))
    }

    /// How many are still to come.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// What it has done so far.
    #[must_use]
    pub fn flushed(&self) -> Flushed {
        self.flushed
    }

    /// Flushes what is due at `now`, up to 256 of it.
    ///
    /// # Errors
    /// [`Error::Rights`] without `CAP_NET_ADMIN` over this network namespace; the kernel's.
    pub fn step(&mut self, now: BootTime) -> Result<()> {
        for _ in 0..STEP {
            if self.due().is_none_or(|due| due > now) {
                break;
            }
            if let Some(connection) = self.rest.pop_front() {
                self.flush(connection)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, connection: Connection) -> Result<()> {
        let connection = match self.idle {
            None => connection,
            Some(time) => {
                let connection = self.look_again(connection)?;
                if !connection.is_idle_for(time) {
                    self.flushed.busy += 1;
                    return Ok(());
                }
                connection
            }
        };
        let count = if self.destroy(connection.backend.as_ref())? {
            &mut self.flushed.backend
        } else if self.destroy(connection.client.as_ref())? {
            match connection.client.map(|client| client.state) {
                Some(State::SynSent) => &mut self.flushed.connecting,
                _ => &mut self.flushed.client,
            }
        } else {
            &mut self.flushed.ended
        };
        *count += 1;
        Ok(())
    }

    fn look_again(&mut self, connection: Connection) -> Result<Connection> {
        let mut look = |socket: Option<Socket>| match socket {
            None => Ok(None),
            Some(socket) => self
                .destroyer
                .look(&socket.name)
                .map_err(Error::call("ask", "sock_diag")),
        };
        Ok(Connection {
            endpoint: connection.endpoint,
            backend: look(connection.backend)?,
            client: look(connection.client)?,
        })
    }

    fn destroy(&mut self, socket: Option<&Socket>) -> Result<bool> {
        let Some(socket) = socket else {
            return Ok(false);
        };
        self.destroyer.destroy(&socket.name).map_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Error::Rights {
                    missing: "CAP_NET_ADMIN over this network namespace".to_owned(),
                };
            }
            Error::call(
                "SOCK_DESTROY",
                format!("{} to {}", socket.local, socket.peer),
            )(error)
        })
    }
}

/// Fails where the kernel can't destroy sockets.
///
/// # Errors
/// [`Error::NoDestroy`]; the kernel's.
pub fn check() -> Result<()> {
    match can_destroy().map_err(Error::call("ask", "sock_diag"))? {
        true => Ok(()),
        false => Err(Error::NoDestroy {
            release: features::release(),
        }),
    }
}

/// Flushes all connections of a look at once, also busy ones, but not those that are being made: a
/// gate may hold them. It blocks for about 10 µs for each.
///
/// # Errors
/// As [`Flush::begin`] and [`Flush::step`].
pub fn all(found: Found) -> Result<Flushed> {
    check()?;
    let now = clock::now();
    let mut flush = Flush::of(found, Options::default(), now)?;
    while flush.left() > 0 {
        flush.step(now)?;
    }
    Ok(flush.flushed())
}

/// What is to be flushed, the longest idle first, and how many are too busy.
fn select(found: Found, options: Options) -> (Vec<Connection>, usize) {
    let mut chosen = found.connections;
    let mut busy = 0;
    match options.idle {
        Some(time) => {
            let all = chosen.len();
            chosen.retain(|connection| connection.is_idle_for(time));
            busy = all - chosen.len();
        }
        None if options.connecting => chosen.extend(found.connecting),
        None => {}
    }
    chosen.sort_by_key(|connection| std::cmp::Reverse(connection.idle()));
    (chosen, busy)
}

/// Turns spread evenly over a time: the first at once, the last a share before its end.
#[derive(Clone, Copy, Debug)]
struct Spread {
    start: BootTime,
    over: Duration,
    count: usize,
}

impl Spread {
    fn due(&self, index: usize) -> BootTime {
        let count = self.count.max(1) as u128;
        let nanos = self.over.as_nanos() * index as u128 / count;
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        clock::after(self.start, Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spread_evenly_and_end_before_the_time_is_over() {
        let start = BootTime(1_000);
        let over = Duration::from_secs(10);
        for count in [1, 2, 3, 1_000, 65_536] {
            let spread = Spread { start, over, count };
            let dues: Vec<u64> = (0..count).map(|index| spread.due(index).0).collect();
            assert_eq!(dues[0], start.0);
            let share = over.as_nanos() as u64 / count as u64;
            for pair in dues.windows(2) {
                assert!(pair[1] - pair[0] - share <= 1, "{count}: {pair:?}");
            }
            let end = clock::after(start, over).0;
            assert!((end - share - 1..end).contains(&dues[count - 1]), "{count}");
        }
    }

    #[test]
    fn without_a_time_all_are_due_at_once() {
        let start = BootTime(1_000);
        let spread = Spread {
            start,
            over: Duration::ZERO,
            count: 3,
        };
        assert_eq!(spread.due(2), start);
    }
}
