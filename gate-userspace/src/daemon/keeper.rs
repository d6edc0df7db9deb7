//! What guards hold is released as soon as a socket listens.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::error::{self, Error, Result};
use crate::events::Event;
use crate::guard::Watcher;
use crate::pins::Pins;

/// Between two looks whether gate is up again.
const DOWN: Duration = Duration::from_millis(500);

/// While another command has the lock.
const BUSY: Duration = Duration::from_millis(20);

/// After a failure.
const FAILED: Duration = Duration::from_secs(1);

/// The watcher over all guarded gates, for as long as gate is up.
pub(super) struct Keeper {
    pins: Pins,
    /// Whether the kernel tells that a socket listens.
    told: bool,
    watcher: Option<Watcher>,
    /// When the next look is due.
    pub due: Instant,
    failed: Option<String>,
}

impl Keeper {
    pub(super) fn new(pins: &Pins, told: bool) -> Self {
        Self {
            pins: pins.clone(),
            told,
            watcher: None,
            due: Instant::now(),
            failed: None,
        }
    }

    /// Sockets began to listen at these ports.
    pub(super) fn tell(&mut self, ports: &BTreeSet<u16>) {
        if let Some(watcher) = &mut self.watcher {
            watcher.tell(ports);
            self.due = Instant::now();
        }
    }

    /// The kernel does not tell any more.
    pub(super) fn poll(&mut self) {
        self.told = false;
        self.watcher = None;
        self.due = Instant::now();
    }

    /// Somebody changed a gate.
    pub(super) fn hurry(&mut self) {
        self.due = Instant::now();
    }

    /// Looks, and releases. A failure is told to `tell`.
    pub(super) fn look(&mut self, tell: &mut dyn FnMut(Event)) {
        // What happened is seen by the observer, whoever watches.
        let looked = self.try_look();
        let pause = match looked {
            Ok(pause) => {
                self.failed = None;
                pause
            }
            Err(Error::NotUp) => {
                self.watcher = None;
                DOWN
            }
            // Another command is at work for a moment.
            Err(Error::Locked { .. }) => BUSY,
            Err(error) => {
                self.watcher = None;
                // Once: it may fail in the same way for long.
                let why = error::line(&error);
                if self.failed.as_ref() != Some(&why) {
                    tell(Event::failed(why.clone()));
                    self.failed = Some(why);
                }
                FAILED
            }
        };
        self.due = Instant::now() + pause;
    }

    fn try_look(&mut self) -> Result<Duration> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => none.insert(Watcher::of_all(&self.pins, self.told)?),
        };
        Ok(watcher.look(&mut |_| {})?.unwrap_or(DOWN))
    }
}
