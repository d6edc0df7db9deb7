//! What the daemon does about a gate whose backend goes down or comes up. Pure: it is told what is, and
//! says what is to be done.

use std::time::Duration;

use gate_common::state::{BootTime, Closed, Effective, StateWord};

use crate::clock;
use crate::config::{Down, OnDown, OnUp};
use crate::health::Health;
use crate::release::Rate;

/// The lease of a gate that rejects for as long as its backend is down. It is renewed, so that without a
/// daemon it is over soon.
const REJECT_LEASE: Duration = Duration::from_secs(10);

/// What is left of a lease when it is renewed.
const RENEW_BELOW: Duration = Duration::from_secs(5);

/// What a gate's configuration says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Once it is down.
    pub on_down: OnDown,
    /// Once it is up.
    pub on_up: OnUp,
    /// The longest that connections are held.
    pub max_hold: Duration,
}

/// What is to be done to a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Close it, or renew its lease.
    Close {
        /// In which mode.
        mode: Closed,
        /// For how long.
        lease: Duration,
    },
    /// Reset its established connections.
    Flush,
    /// Open it, and release what it holds.
    Open {
        /// No faster than this.
        rate: Option<Rate>,
    },
}

/// One gate, as the daemon knows it. What it did itself stands in the gate's word, so the next daemon goes
/// on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    health: Health,
}

impl Default for Control {
    /// Of which nothing is known yet.
    fn default() -> Self {
        Self {
            health: Health::Unknown,
        }
    }
}

impl Control {
    /// What the checks said last.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// The checks say something else than before. What another command closed is left alone.
    pub fn on_health(
        &mut self,
        health: Health,
        policy: &Policy,
        word: StateWord,
        now: BootTime,
    ) -> Vec<Action> {
        let before = std::mem::replace(&mut self.health, health);
        let state = word.at(|| now);
        match (before, health) {
            (Health::Down, Health::Down) | (Health::Up, Health::Up) | (_, Health::Unknown) => {
                Vec::new()
            }
            (_, Health::Up) => opened(policy, word),
            (_, Health::Down) if word.is_by_health() => {
                // By the daemon before this one, which flushed as well.
                match state {
                    Effective::Closed(_) => Vec::new(),
                    Effective::Open | Effective::Expired => closed(policy, false),
                }
            }
            (_, Health::Down) => match state {
                Effective::Closed(_) => Vec::new(),
                Effective::Open | Effective::Expired => closed(policy, true),
            },
        }
    }

    /// Time has passed, or somebody else has changed the gate.
    #[must_use]
    pub fn on_tick(&self, policy: &Policy, word: StateWord, now: BootTime) -> Option<Action> {
        let Effective::Closed(mode) = word.at(|| now) else {
            return None;
        };
        let is_due = clock::between(now, word.deadline()) < RENEW_BELOW;
        let renews = mode == Closed::Reject && policy.on_down.new == Down::Reject;
        match self.health {
            Health::Down if word.is_by_health() && is_due && renews => Some(Action::Close {
                mode,
                lease: REJECT_LEASE,
            }),
            Health::Down | Health::Up | Health::Unknown => None,
        }
    }

    /// The gate has no checks any more, or is configured no more: whether it is to be opened.
    #[must_use]
    pub fn on_forgotten(word: StateWord, now: BootTime) -> bool {
        word.is_by_health() && matches!(word.at(|| now), Effective::Closed(_))
    }
}

fn closed(policy: &Policy, is_first: bool) -> Vec<Action> {
    let closing = |mode, lease| Action::Close { mode, lease };
    let mut actions = Vec::new();
    match policy.on_down.new {
        Down::Nothing => {}
        Down::Hold if is_first => actions.push(closing(Closed::Hold, policy.max_hold)),
        // The lease of the hold is over: it was held for as long as it may be.
        Down::Hold => {}
        Down::Reject => actions.push(closing(Closed::Reject, REJECT_LEASE)),
    }
    if policy.on_down.flush && is_first {
        actions.push(Action::Flush);
    }
    actions
}

fn opened(policy: &Policy, word: StateWord) -> Vec<Action> {
    match word.is_by_health() && policy.on_up.release {
        true => vec![Action::Open {
            rate: policy.on_up.rate,
        }],
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: BootTime = BootTime(1_000_000_000_000);

    fn policy(new: Down) -> Policy {
        Policy {
            on_down: OnDown { new, flush: true },
            on_up: OnUp {
                release: true,
                rate: None,
            },
            max_hold: Duration::from_secs(30),
        }
    }

    fn word(mode: Closed, left: u64) -> StateWord {
        StateWord::closed(mode, clock::after(NOW, Duration::from_secs(left)))
    }

    fn past(mode: Closed) -> StateWord {
        StateWord::closed(mode, BootTime(NOW.0 - 1_000_000_000))
    }

    #[test]
    fn a_backend_that_goes_down_is_held_once_and_flushed_once() {
        let mut control = Control::default();
        let policy = policy(Down::Hold);
        let hold = Action::Close {
            mode: Closed::Hold,
            lease: policy.max_hold,
        };
        let actions = control.on_health(Health::Down, &policy, StateWord::OPEN, NOW);
        assert_eq!(actions, [hold, Action::Flush]);
        // The hold is over, and it is down still.
        let over = past(Closed::Hold).by_health();
        assert_eq!(control.on_health(Health::Down, &policy, over, NOW), []);
        assert_eq!(control.on_tick(&policy, over, NOW), None);
        let actions = control.on_health(Health::Up, &policy, over, NOW);
        assert_eq!(actions, [Action::Open { rate: None }]);
    }

    #[test]
    fn the_next_daemon_goes_on_from_the_word() {
        let held = word(Closed::Hold, 20).by_health();
        let mut control = Control::default();
        let policy = policy(Down::Hold);
        assert_eq!(control.on_health(Health::Down, &policy, held, NOW), []);
        let mut control = Control::default();
        let actions = control.on_health(Health::Up, &policy, held, NOW);
        assert_eq!(actions, [Action::Open { rate: None }]);
        // It is not held a second time, nor flushed.
        let mut control = Control::default();
        let over = past(Closed::Hold).by_health();
        assert_eq!(control.on_health(Health::Down, &policy, over, NOW), []);
    }

    #[test]
    fn a_rejecting_gate_is_renewed_as_long_as_it_is_down() {
        let policy = policy(Down::Reject);
        let mut control = Control::default();
        let reject = Action::Close {
            mode: Closed::Reject,
            lease: REJECT_LEASE,
        };
        let actions = control.on_health(Health::Down, &policy, StateWord::OPEN, NOW);
        assert_eq!(actions, [reject, Action::Flush]);
        let fresh = word(Closed::Reject, 9).by_health();
        assert_eq!(control.on_tick(&policy, fresh, NOW), None);
        let old = word(Closed::Reject, 4).by_health();
        assert_eq!(control.on_tick(&policy, old, NOW), Some(reject));
        // Another's is not.
        assert_eq!(control.on_tick(&policy, word(Closed::Reject, 4), NOW), None);
    }

    #[test]
    fn without_release_it_stays_closed_for_its_lease() {
        let mut policy = policy(Down::Hold);
        policy.on_up.release = false;
        let mut control = Control::default();
        let held = word(Closed::Hold, 20).by_health();
        assert_eq!(control.on_health(Health::Up, &policy, held, NOW), []);
    }

    fn any_word() -> impl Strategy<Value = StateWord> {
        (0..3_u8, 0..40_u64).prop_map(|(mode, left)| {
            let mode = [Closed::Hold, Closed::Drop, Closed::Reject][usize::from(mode)];
            match left {
                0 => StateWord::OPEN,
                1..10 => past(mode),
                left => word(mode, left),
            }
        })
    }

    fn any_health() -> impl Strategy<Value = Health> {
        prop_oneof![Just(Health::Unknown), Just(Health::Up), Just(Health::Down)]
    }

    proptest! {
        #[test]
        fn what_others_closed_is_left_alone(
            word in any_word(),
            healths in proptest::collection::vec(any_health(), 1..8),
            new in prop_oneof![Just(Down::Nothing), Just(Down::Hold), Just(Down::Reject)],
        ) {
            let mut control = Control::default();
            let policy = policy(new);
            let is_closed = matches!(word.at(|| NOW), Effective::Closed(_));
            for health in healths {
                let actions = control.on_health(health, &policy, word, NOW);
                if is_closed {
                    prop_assert_eq!(actions, vec![]);
                }
                prop_assert_eq!(control.on_tick(&policy, word, NOW), None);
            }
        }
    }
}
