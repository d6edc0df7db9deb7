//! How long a restart's phases took.

use std::time::Duration;

use gate_common::state::BootTime;

use super::Phase;
use crate::clock;

/// How long each phase took.
pub(super) struct Phases {
    done: Vec<(Phase, Duration)>,
    now_in: Phase,
    since: BootTime,
}

impl Phases {
    pub fn new(phase: Phase, now: BootTime) -> Self {
        Self {
            done: Vec::new(),
            now_in: phase,
            since: now,
        }
    }

    /// Whether it is another than before.
    pub fn enter(&mut self, phase: Phase, now: BootTime) -> bool {
        if phase == self.now_in {
            return false;
        }
        let took = clock::between(self.since, now);
        self.done.push((self.now_in, took));
        (self.now_in, self.since) = (phase, now);
        true
    }

    pub fn finish(mut self, now: BootTime) -> Vec<(Phase, Duration)> {
        let took = clock::between(self.since, now);
        self.done.push((self.now_in, took));
        self.done
    }
}
