//! What the daemon does about a gate whose backend goes down or comes up. Pure: it is told what is, and
//! says what is to be done.

use std::time::Duration;

use gate_common::state::{BootTime, Closed, Effective, Mode, StateWord};

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
    /// Whether what is to be done about this outage was begun.
    is_handled: bool,
}

impl Default for Control {
    /// Of which nothing is known yet.
    fn default() -> Self {
        Self {
            health: Health::Unknown,
            is_handled: false,
        }
    }
}

impl Control {
    /// What the checks said last.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// The checks say this from now on; `word` is the gate's, as far as there is one.
    pub fn on_health(&mut self, health: Health, word: StateWord) {
        let before = std::mem::replace(&mut self.health, health);
        if before != health {
            // Of an outage that began under another daemon the word tells.
            let is_known = before == Health::Unknown && word.is_by_health();
            self.is_handled = health == Health::Down && is_known;
        }
    }

    /// What was begun failed, and is to be tried again.
    pub fn on_failure(&mut self) {
        self.is_handled = false;
    }

    /// What is to be done as things are, while nothing else is under way for the gate. What another
    /// command closed is left alone.
    pub fn act(&mut self, policy: &Policy, word: StateWord, now: BootTime) -> Vec<Action> {
        let state = word.at(|| now);
        let is_closed = matches!(state, Effective::Closed(_));
        match self.health {
            Health::Unknown => Vec::new(),
            Health::Up if word.is_by_health() && is_closed && policy.on_up.release => {
                vec![Action::Open {
                    rate: policy.on_up.rate,
                }]
            }
            Health::Up => Vec::new(),
            Health::Down if is_closed && !word.is_by_health() => {
                // Whoever closed it knows why, and what comes after.
                self.is_handled = true;
                Vec::new()
            }
            Health::Down if !self.is_handled => {
                self.is_handled = true;
                closed(policy)
            }
            Health::Down => renewed(policy, word, now),
        }
    }

    /// The gate has no checks any more, or is configured no more: whether it is to be opened.
    #[must_use]
    pub fn on_forgotten(word: StateWord, now: BootTime) -> bool {
        word.is_by_health() && matches!(word.at(|| now), Effective::Closed(_))
    }
}

fn closed(policy: &Policy) -> Vec<Action> {
    let closing = |mode, lease| Action::Close { mode, lease };
    let mut actions = Vec::new();
    match policy.on_down.new {
        Down::Nothing => {}
        Down::Hold => actions.push(closing(Closed::Hold, policy.max_hold)),
        Down::Reject => actions.push(closing(Closed::Reject, REJECT_LEASE)),
    }
    if policy.on_down.flush {
        actions.push(Action::Flush);
    }
    actions
}

/// A rejection goes on as long as the backend is down, also where its lease ran out on the way. A hold is
/// made once.
fn renewed(policy: &Policy, word: StateWord, now: BootTime) -> Vec<Action> {
    let is_due = clock::between(now, word.deadline()) < RENEW_BELOW;
    let rejects = word.is_by_health() && word.mode() == Mode::Reject;
    match policy.on_down.new {
        Down::Reject if rejects && is_due => vec![Action::Close {
            mode: Closed::Reject,
            lease: REJECT_LEASE,
        }],
        Down::Reject | Down::Nothing | Down::Hold => Vec::new(),
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

    fn told(
        control: &mut Control,
        health: Health,
        policy: &Policy,
        word: StateWord,
    ) -> Vec<Action> {
        control.on_health(health, word);
        control.act(policy, word, NOW)
    }

    const OPEN: Action = Action::Open { rate: None };

    #[test]
    fn a_backend_that_goes_down_is_held_once_and_flushed_once() {
        let mut control = Control::default();
        let policy = policy(Down::Hold);
        let hold = Action::Close {
            mode: Closed::Hold,
            lease: policy.max_hold,
        };
        let actions = told(&mut control, Health::Down, &policy, StateWord::OPEN);
        assert_eq!(actions, [hold, Action::Flush]);
        // The hold is over, and it is down still.
        let over = past(Closed::Hold).by_health();
        assert_eq!(told(&mut control, Health::Down, &policy, over), []);
        // Up, and down once more: another outage, whatever the word says of the last.
        assert_eq!(told(&mut control, Health::Up, &policy, over), []);
        let actions = told(&mut control, Health::Down, &policy, over);
        assert_eq!(actions, [hold, Action::Flush]);
    }

    #[test]
    fn what_failed_or_came_too_late_is_made_good() {
        let mut control = Control::default();
        let policy = policy(Down::Hold);
        let first = told(&mut control, Health::Down, &policy, StateWord::OPEN);
        assert_eq!(control.act(&policy, StateWord::OPEN, NOW), []);
        control.on_failure();
        assert_eq!(control.act(&policy, StateWord::OPEN, NOW), first);
        // It is up before it was closed.
        assert_eq!(told(&mut control, Health::Up, &policy, StateWord::OPEN), []);
        let held = word(Closed::Hold, 20).by_health();
        assert_eq!(control.act(&policy, held, NOW), [OPEN]);
    }

    #[test]
    fn the_next_daemon_goes_on_from_the_word() {
        let held = word(Closed::Hold, 20).by_health();
        let policy = policy(Down::Hold);
        let mut control = Control::default();
        assert_eq!(told(&mut control, Health::Down, &policy, held), []);
        let mut control = Control::default();
        assert_eq!(told(&mut control, Health::Up, &policy, held), [OPEN]);
        // It is not held a second time, nor flushed.
        let mut control = Control::default();
        let over = past(Closed::Hold).by_health();
        assert_eq!(told(&mut control, Health::Down, &policy, over), []);
    }

    #[test]
    fn a_rejecting_gate_is_renewed_as_long_as_it_is_down() {
        let policy = policy(Down::Reject);
        let mut control = Control::default();
        let reject = Action::Close {
            mode: Closed::Reject,
            lease: REJECT_LEASE,
        };
        let actions = told(&mut control, Health::Down, &policy, StateWord::OPEN);
        assert_eq!(actions, [reject, Action::Flush]);
        let fresh = word(Closed::Reject, 9).by_health();
        assert_eq!(control.act(&policy, fresh, NOW), []);
        let old = word(Closed::Reject, 4).by_health();
        assert_eq!(control.act(&policy, old, NOW), [reject]);
        let over = past(Closed::Reject).by_health();
        assert_eq!(control.act(&policy, over, NOW), [reject]);
        // Another's is not.
        assert_eq!(control.act(&policy, word(Closed::Reject, 4), NOW), []);
    }

    #[test]
    fn without_release_it_stays_closed_for_its_lease() {
        let mut policy = policy(Down::Hold);
        policy.on_up.release = false;
        let mut control = Control::default();
        let held = word(Closed::Hold, 20).by_health();
        assert_eq!(told(&mut control, Health::Up, &policy, held), []);
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
                let actions = told(&mut control, health, &policy, word);
                if is_closed {
                    prop_assert_eq!(actions, vec![]);
                }
            }
        }
    }
}
