//! The lock during a release: taken for a moment, with a look at what others did meanwhile.

use std::ops::Deref;
use std::time::{Duration, Instant};

use gate_common::flow::GateId;
use gate_common::state::StateWord;

use super::{Phase, RETRY, Release, Step};
use crate::clock;
use crate::error::{Error, Result};
use crate::pins::{Lock, locked};
use crate::tables::Tables;

/// How long the lock is tried for at least; for as long as a lease runs in any case.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The lock, its own or its caller's.
pub(super) enum Locked<'a> {
    Own(Lock),
    Given(&'a Lock),
}

impl Deref for Locked<'_> {
    type Target = Lock;

    fn deref(&self) -> &Lock {
        match self {
            Self::Own(lock) => lock,
            Self::Given(lock) => lock,
        }
    }
}

impl Release {
    /// The lock, with a look at what other commands did meanwhile; none where one has it now.
    pub(super) fn lock<'a>(
        &mut self,
        given: Option<&'a Lock>,
        tables: &Tables,
    ) -> Result<Option<Locked<'a>>> {
        let lock = match given {
            Some(lock) => Locked::Given(lock),
            None => match self.try_lock() {
                Ok(Some(lock)) => Locked::Own(lock),
                Ok(None) => return Ok(None),
                Err(Error::NotUp) => {
                    // A `gate down` opened them.
                    self.take_over(|_, _| Ok(true))?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            },
        };
        self.locked_out_since = None;
        self.check(tables)?;
        Ok(Some(lock))
    }

    fn try_lock(&self) -> Result<Option<Lock>> {
        match &self.anchor {
            Some(anchor) => anchor.try_lock(),
            None => self.pins.try_lock(),
        }
    }

    /// Leaves alone what is not any more as this release knows it.
    pub(super) fn check(&mut self, tables: &Tables) -> Result<()> {
        let is_current = match &self.anchor {
            Some(anchor) => !tables.are_replaced(anchor.pins()),
            None => tables.are_current(&self.pins),
        };
        for (id, gate) in &mut self.gates {
            gate.is_guarded = tables.state(*id)?.is_guarded();
        }
        // A guard may come and go meanwhile.
        self.take_over(|id, word| {
            Ok(!is_current || tables.state(id)?.guarded(false) != word.guarded(false))
        })
    }

    pub(super) fn take_over(
        &mut self,
        is_taken: impl Fn(GateId, StateWord) -> Result<bool>,
    ) -> Result<()> {
        for (id, gate) in &mut self.gates {
            if gate.phase != Phase::TakenOver && is_taken(*id, gate.word)? {
                gate.phase = Phase::TakenOver;
                self.pacer.forget(|other| other == *id);
                self.pending.retain(|entry| entry.gate != *id);
                self.released.left += gate.waiting;
                gate.waiting = 0;
            }
        }
        Ok(())
    }

    /// What a step comes to that did not get the lock.
    pub(super) fn locked_out(&mut self) -> Result<Step> {
        if self
            .gates
            .values()
            .all(|gate| gate.phase == Phase::TakenOver)
        {
            return Ok(self.done());
        }
        let since = *self.locked_out_since.get_or_insert_with(Instant::now);
        let now = clock::now();
        let leases_run = self.gates.values().any(|gate| now < gate.deadline);
        if since.elapsed() >= LOCK_PATIENCE && !leases_run {
            return Err(locked());
        }
        Ok(Step::Wait(RETRY))
    }
}
