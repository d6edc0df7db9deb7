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
        let mut left = self.watch.look()?.connections;
        if let Some(time) = self.idle {
            let all = left.len();
            left.retain(|connection| !connection.is_idle_for(time));
            if left.len() < all {
                self.flush(Options {
                    idle: self.idle,
                    ..Options::default()
                })?;
            }
        }
        self.drained.left = left.len();
        Ok(left.len())
    }

    /// Resets what is left.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flush_all(&mut self) -> Result<()> {
        self.flush(Options::default())?;
        self.drained.left = self.watch.look()?.connections.len();
        Ok(())
    }

    fn flush(&mut self, options: Options) -> Result<()> {
        let now = clock::now();
        let mut flush = Flush::begin(&self.endpoints, options, now)?;
        while flush.left() > 0 {
            flush.step(now)?;
        }
        self.drained.flushed += flush.flushed().reset();
        Ok(())
    }

    /// What it has come to.
    pub fn drained(&self) -> Drained {
        self.drained
    }
}
