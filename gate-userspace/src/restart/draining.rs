//! The drain of a restart: looks at the established connections, and resets what is to be reset.

use std::time::Duration;

use gate_common::state::BootTime;

use super::{Drain, Then};
use crate::clock;
use crate::drain::{self, Watch};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::flush::{self, Flush, Options};

/// What a drain has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were there when the command started.
    pub left: usize,
    /// Connections that were reset.
    pub flushed: usize,
}

/// A drain that goes on.
pub(super) struct Draining {
    watch: Watch,
    endpoints: Vec<Endpoint>,
    idle: Option<Duration>,
    next: BootTime,
    drained: Drained,
}

impl Draining {
    /// Begins, in the calling thread's network namespace. What the kernel can't do shows here, before
    /// anything is closed.
    ///
    /// # Errors
    /// [`Error::NoDestroy`](crate::Error::NoDestroy), and the kernel's.
    pub fn new(endpoints: &[Endpoint], drain: Drain) -> Result<Self> {
        if drain.then == Then::Flush || drain.idle.is_some() {
            flush::check()?;
        }
        Ok(Self {
            watch: Watch::new(endpoints)?,
            endpoints: endpoints.to_vec(),
            idle: drain.idle,
            next: clock::now(),
            drained: Drained::default(),
        })
    }

    /// How many connections there are, those that were idle for too long left out: they are reset.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> Result<usize> {
        let start = clock::now();
        let looked = self.look_now();
        let end = clock::now();
        self.next = clock::after(end, drain::pause(clock::between(start, end)));
        looked
    }

    /// When it is time for the next look.
    pub fn next_look(&self) -> BootTime {
        self.next
    }

    fn look_now(&mut self) -> Result<usize> {
        let found = self.watch.look()?.connections;
        let mut left = found.len();
        let is_idle = |time| found.iter().any(|connection| connection.is_idle_for(time));
        if self.idle.is_some_and(is_idle) {
            // One that was idle a moment ago may have been given a request since: the flush looks
            // again, and knows.
            left = self.flush(Options {
                idle: self.idle,
                ..Options::default()
            })?;
        }
        self.drained.left = left;
        Ok(left)
    }

    /// Resets what is left.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flush_all(&mut self) -> Result<()> {
        let _busy = self.flush(Options::default())?;
        self.drained.left = self.watch.look()?.connections.len();
        Ok(())
    }

    /// Resets connections; how many were too busy.
    fn flush(&mut self, options: Options) -> Result<usize> {
        let now = clock::now();
        let mut flush = Flush::begin(&self.endpoints, options, now)?;
        while flush.left() > 0 {
            flush.step(now)?;
        }
        let flushed = flush.flushed();
        self.drained.flushed += flushed.reset();
        Ok(flushed.busy)
    }

    /// What it has come to.
    pub fn drained(&self) -> Drained {
        self.drained
    }
}
