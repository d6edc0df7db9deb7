//! The restart as a state machine: events and the time in, actions out.

use std::time::Duration;

use gate_common::state::BootTime;

use super::{AtEnd, CommandEnd, Outcome, Phase, Plan, Then};
use crate::clock;

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The listener was looked at.
    Queues {
        /// Nothing is in the accept queues.
        accepted: bool,
        /// No client's handshake is under way.
        settled: bool,
    },
    /// That many connections are established.
    Connections(usize),
    /// The command ended.
    Ended(CommandEnd),
    /// The backend listens and every check passed.
    Healthy,
    /// A signal came.
    Signal(i32),
    /// Time has passed.
    Tick,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the command.
    Start,
    /// Begin to check.
    Check,
    /// Open the gate.
    Open,
    /// Close it in another way: new connections are rejected.
    Reject,
    /// Leave the gate to its lease.
    Keep,
    /// Reset the connections that are left.
    Flush,
    /// Stop the command, which still runs.
    Stop,
}

/// How long the queues must stay empty: a SYN that had just passed has reached its queue by
/// then, and a connection that was just accepted has had time to send its request.
const SETTLE: Duration = Duration::from_millis(2);

/// How long handshakes under way are waited for: a client whose packets were lost on the way sends its
/// request again after 200 ms (`TCP_RTO_MIN`) and a round trip. One that is further away than that, or
/// that never was there, keeps nobody waiting.
const HANDSHAKE: Duration = Duration::from_millis(300);

/// The state of one restart.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    phase: Phase,
    deadline: BootTime,
    plan: Plan,
    quiesce_until: BootTime,
    handshakes_until: BootTime,
    drain_until: BootTime,
    empty_since: Option<BootTime>,
    outcome: Option<Outcome>,
}

impl Machine {
    /// The machine of a gate that was closed at `now` until `deadline`.
    #[must_use]
    pub fn new(now: BootTime, deadline: BootTime, plan: Plan) -> Self {
        Self {
            phase: Phase::Quiesce,
            deadline,
            plan,
            quiesce_until: clock::after(now, plan.quiesce),
            handshakes_until: clock::after(now, HANDSHAKE.min(plan.quiesce)),
            drain_until: deadline,
            empty_since: None,
            outcome: None,
        }
    }

    /// What it waits for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// Takes an event and says what to do, in order. After the end nothing is done any more.
    #[must_use]
    pub fn on(&mut self, event: Event, now: BootTime) -> &'static [Action] {
        if self.outcome.is_some() {
            return &[];
        }
        if let Event::Signal(signal) = event {
            return self.end(Outcome::Interrupted(signal));
        }
        // An end that is due now goes before the lease that runs out now.
        match (self.phase, event) {
            (Phase::Command, Event::Ended(CommandEnd::Code(0))) => {
                self.phase = Phase::Health;
                return &[Action::Check];
            }
            (Phase::Command, Event::Ended(end)) => return self.end(Outcome::CommandFailed(end)),
            (Phase::Health, Event::Healthy) => return self.end(Outcome::Healthy),
            _ => {}
        }
        if now >= self.deadline {
            return self.end(Outcome::LeaseOver(self.phase));
        }
        match (self.phase, event) {
            (Phase::Quiesce, Event::Queues { accepted, settled }) => {
                if accepted && (settled || now >= self.handshakes_until) {
                    let since = *self.empty_since.get_or_insert(now);
                    if clock::between(since, now) >= SETTLE {
                        return self.quiet(now);
                    }
                } else {
                    self.empty_since = None;
                }
            }
            (Phase::Drain, Event::Connections(0)) => return self.start(&[Action::Start]),
            _ => {}
        }
        match (self.phase, self.plan.drain) {
            (Phase::Quiesce, _) if now >= self.quiesce_until => self.quiet(now),
            (Phase::Drain, Some(drain)) if now >= self.drain_until => match drain.then {
                Then::Leave => self.start(&[Action::Start]),
                Then::Flush => self.start(&[Action::Flush, Action::Start]),
            },
            _ => &[],
        }
    }

    /// The queues are empty, or were waited for long enough.
    fn quiet(&mut self, now: BootTime) -> &'static [Action] {
        match self.plan.drain {
            None => self.start(&[Action::Start]),
            Some(drain) => {
                self.phase = Phase::Drain;
                self.drain_until = clock::after(now, drain.timeout);
                &[]
            }
        }
    }

    fn start(&mut self, actions: &'static [Action]) -> &'static [Action] {
        self.phase = Phase::Command;
        actions
    }

    fn end(&mut self, outcome: Outcome) -> &'static [Action] {
        self.outcome = Some(outcome);
        let runs = self.phase == Phase::Command && !matches!(outcome, Outcome::CommandFailed(_));
        match (outcome.gate(self.plan.on_failure), runs) {
            (AtEnd::Opens, true) => &[Action::Open, Action::Stop],
            (AtEnd::Opens, false) => &[Action::Open],
            (AtEnd::Rejects, true) => &[Action::Reject, Action::Stop],
            (AtEnd::Rejects, false) => &[Action::Reject],
            (AtEnd::Stays, true) => &[Action::Keep, Action::Stop],
            (AtEnd::Stays, false) => &[Action::Keep],
        }
    }
}

#[cfg(test)]
mod tests;
