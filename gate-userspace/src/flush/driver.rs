//! Drives a flush: takes each turn when it is due, and ends early by a signal.

use std::time::Duration;

use tokio::time::sleep;

use super::{Flush, Flushed, Options};
use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::signals::Signals;

/// Longest time without an update of the live line.
const REFRESH: Duration = Duration::from_millis(100);

/// Told of what goes on.
pub trait Progress {
    /// Some time has passed.
    fn flush_moment(&mut self, elapsed: Duration, flushed: Flushed, left: usize);
}

/// How a flush went.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// What it did.
    pub flushed: Flushed,
    /// Connections whose turn didn't come.
    pub left: usize,
    /// The signal that ended it early, where one did.
    pub signal: Option<i32>,
    /// How long it took.
    pub took: Duration,
}

impl Summary {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.signal
            .map_or(0, |signal| 128 + u8::try_from(signal).unwrap_or(0))
    }
}

/// Runs a flush to its end.
///
/// # Errors
/// Those of [`Flush::begin`] and [`Flush::step`].
pub async fn run(
    endpoints: &[Endpoint],
    options: Options,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let mut signals = Signals::new()?;
    let start = clock::now();
    let mut flush = Flush::begin(endpoints, options, start)?;
    let mut signal = None;
    while let (Some(due), None) = (flush.due(), signal) {
        let pause = clock::between(clock::now(), due).min(REFRESH);
        tokio::select! {
            biased;
            arrived = signals.next() => signal = Some(arrived),
            () = sleep(pause) => flush.step(clock::now())?,
        }
        let elapsed = clock::between(start, clock::now());
        progress.flush_moment(elapsed, flush.flushed(), flush.left());
    }
    Ok(Summary {
        flushed: flush.flushed(),
        left: flush.left(),
        signal,
        took: clock::between(start, clock::now()),
    })
}
