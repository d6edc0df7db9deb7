//! What guards hold is released as soon as a socket listens.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Error, Result};
use crate::events::{self, What};
use crate::guard::{self, Watcher};
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
    pub(super) fn look(&mut self, tell: &mut dyn FnMut(events::Event)) {
        // What happened is seen by the observer, whoever watches.
        let looked = self.try_look(&mut |_| {});
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
                let why = error_line(&error);
                if self.failed.as_ref() != Some(&why) {
                    tell(failed(why.clone()));
                    self.failed = Some(why);
                }
                FAILED
            }
        };
        self.due = Instant::now() + pause;
    }

    fn try_look(&mut self, tell: &mut dyn FnMut(&guard::Event)) -> Result<Duration> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => none.insert(Watcher::of_all(&self.pins, self.told)?),
        };
        Ok(watcher.look(tell)?.unwrap_or(DOWN))
    }
}

/// A failure of the daemon's own, as an event.
pub(super) fn failed(why: String) -> events::Event {
    events::Event {
        at: SystemTime::now(),
        gate: None,
        what: What::Failed { why },
    }
}

/// An error with its sources.
pub(super) fn error_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        line = format!("{line}: {inner}");
        source = inner.source();
    }
    line
}
