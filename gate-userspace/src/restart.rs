//! The restart of a backend: a pure state machine, and the loop that drives it.

use std::fmt;
use std::time::Duration;

use gate_common::state::BootTime;

use crate::clock;

mod command;
pub mod driver;

/// How the restart's command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl CommandEnd {
    /// The exit code that a shell would give.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal_code(signal),
        }
    }
}

impl fmt::Display for CommandEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
        }
    }
}

fn signal_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// What the restart is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The gate is closed; the accept queues are to become empty.
    Quiesce,
    /// The command runs.
    Command,
    /// The command is done; the backend is to listen and pass its checks.
    Health,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiesce => "waiting for the accept queue",
            Self::Command => "the command was running",
            Self::Health => "the backend was not healthy",
        })
    }
}

/// What ends a restart; the gate opens in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend is healthy.
    Healthy,
    /// The command failed.
    CommandFailed(CommandEnd),
    /// The lease ran out in this phase.
    LeaseOver(Phase),
    /// A signal asked to stop.
    Interrupted(i32),
}

impl Outcome {
    /// The exit code of `gate restart`.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Healthy => crate::error::exit::DONE,
            Self::CommandFailed(end) => end.exit_code(),
            Self::LeaseOver(_) => crate::error::exit::LEASE,
            Self::Interrupted(signal) => signal_code(signal),
        }
    }

    /// One word for machines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::CommandFailed(_) => "command_failed",
            Self::LeaseOver(_) => "lease_over",
            Self::Interrupted(_) => "interrupted",
        }
    }
}

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
    /// Stop the command, which still runs.
    Stop,
}

/// How long the queues must stay empty: a SYN that had just passed has reached its queue by
/// then, and a connection that was just accepted has had time to send its request.
const SETTLE: Duration = Duration::from_millis(2);

/// How long handshakes under way are waited for. A client that is further away than that, or
/// that never was there, keeps nobody waiting.
const HANDSHAKE: Duration = Duration::from_millis(200);

/// The state of one restart.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    phase: Phase,
    deadline: BootTime,
    quiesce_until: BootTime,
    handshakes_until: BootTime,
    empty_since: Option<BootTime>,
    outcome: Option<Outcome>,
}

impl Machine {
    /// The machine of a gate that was closed at `now` until `deadline`. The queues are given
    /// `quiesce` at the most.
    #[must_use]
    pub fn new(now: BootTime, deadline: BootTime, quiesce: Duration) -> Self {
        Self {
            phase: Phase::Quiesce,
            deadline,
            quiesce_until: clock::after(now, quiesce),
            handshakes_until: clock::after(now, HANDSHAKE.min(quiesce)),
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
        if let (Phase::Quiesce, Event::Queues { accepted, settled }) = (self.phase, event) {
            if accepted && (settled || now >= self.handshakes_until) {
                let since = *self.empty_since.get_or_insert(now);
                if clock::between(since, now) >= SETTLE {
                    return self.start();
                }
            } else {
                self.empty_since = None;
            }
        }
        if self.phase == Phase::Quiesce && now >= self.quiesce_until {
            return self.start();
        }
        &[]
    }

    fn start(&mut self) -> &'static [Action] {
        self.phase = Phase::Command;
        &[Action::Start]
    }

    fn end(&mut self, outcome: Outcome) -> &'static [Action] {
        self.outcome = Some(outcome);
        match self.phase {
            Phase::Command if !matches!(outcome, Outcome::CommandFailed(_)) => {
                &[Action::Open, Action::Stop]
            }
            _ => &[Action::Open],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn machine() -> Machine {
        Machine::new(
            BootTime(0),
            BootTime(1_000 * MS),
            Duration::from_millis(100),
        )
    }

    fn at(ms: u64) -> BootTime {
        BootTime(ms * MS)
    }

    fn queues(accepted: bool, settled: bool) -> Event {
        Event::Queues { accepted, settled }
    }

    fn quiet(machine: &mut Machine) {
        let empty = queues(true, true);
        assert_eq!(machine.on(empty, at(0)), []);
        assert_eq!(machine.on(empty, at(1)), []);
        assert_eq!(machine.on(empty, at(2)), [Action::Start]);
        assert_eq!(machine.phase(), Phase::Command);
    }

    #[test]
    fn a_good_restart() {
        let mut machine = machine();
        quiet(&mut machine);
        let ended = Event::Ended(CommandEnd::Code(0));
        assert_eq!(machine.on(ended, at(300)), [Action::Check]);
        assert_eq!(machine.on(Event::Healthy, at(310)), [Action::Open]);
        assert_eq!(machine.outcome(), Some(Outcome::Healthy));
        assert_eq!(machine.on(Event::Signal(2), at(311)), []);
    }

    #[test]
    fn queues_must_stay_empty() {
        let mut machine = machine();
        for ms in 0..20 {
            let busy = queues(ms % 4 != 0, ms % 4 != 2);
            assert_eq!(machine.on(busy, at(ms)), [], "{ms}");
        }
        assert_eq!(machine.phase(), Phase::Quiesce);
    }

    #[test]
    fn queues_that_never_empty_are_bounded() {
        let mut machine = machine();
        let busy = queues(false, true);
        assert_eq!(machine.on(busy, at(99)), []);
        assert_eq!(machine.on(busy, at(100)), [Action::Start]);
    }

    #[test]
    fn a_handshake_that_never_ends_is_bounded_sooner() {
        let mut machine = Machine::new(at(0), at(9_000), Duration::from_secs(1));
        assert_eq!(machine.on(queues(true, false), at(199)), []);
        assert_eq!(machine.on(queues(true, false), at(200)), []);
        assert_eq!(machine.on(queues(true, false), at(202)), [Action::Start]);
    }

    #[test]
    fn a_failed_command_opens_and_passes_its_code_on() {
        for (end, code) in [(CommandEnd::Code(7), 7), (CommandEnd::Signal(9), 137)] {
            let mut machine = machine();
            quiet(&mut machine);
            assert_eq!(machine.on(Event::Ended(end), at(20)), [Action::Open]);
            assert_eq!(machine.outcome().map(Outcome::exit_code), Some(code));
        }
    }

    #[test]
    fn the_lease_ends_every_phase() {
        let mut waiting = machine();
        assert_eq!(waiting.on(Event::Tick, at(1_000)), [Action::Open]);
        assert_eq!(waiting.outcome(), Some(Outcome::LeaseOver(Phase::Quiesce)));

        let mut running = machine();
        quiet(&mut running);
        assert_eq!(running.on(Event::Tick, at(999)), []);
        assert_eq!(
            running.on(Event::Tick, at(1_000)),
            [Action::Open, Action::Stop]
        );
        assert_eq!(running.outcome().map(Outcome::exit_code), Some(124));

        let mut checking = machine();
        quiet(&mut checking);
        let _checks = checking.on(Event::Ended(CommandEnd::Code(0)), at(10));
        assert_eq!(checking.on(Event::Tick, at(1_000)), [Action::Open]);
        assert_eq!(checking.outcome(), Some(Outcome::LeaseOver(Phase::Health)));
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<(bool, bool)>().prop_map(|(accepted, settled)| queues(accepted, settled)),
            (0..3_u8).prop_map(|code| Event::Ended(CommandEnd::Code(code))),
            Just(Event::Ended(CommandEnd::Signal(9))),
            Just(Event::Healthy),
            Just(Event::Signal(15)),
            Just(Event::Tick),
        ]
    }

    proptest! {
        #[test]
        fn it_opens_once_whatever_happens(
            steps in prop::collection::vec((events(), 0_u64..200), 0..40)
        ) {
            let mut machine = machine();
            let mut now = 0;
            let mut done: Vec<Action> = Vec::new();
            for (event, wait) in steps {
                now += wait;
                done.extend(machine.on(event, at(now)));
            }
            done.extend(machine.on(Event::Tick, at(now.max(1_000))));
            let count = |action| done.iter().filter(|done| **done == action).count();
            prop_assert_eq!(count(Action::Open), 1);
            prop_assert!(count(Action::Start) <= 1);
            prop_assert!(count(Action::Check) <= count(Action::Start));
            prop_assert!(machine.outcome().is_some());
        }
    }
}
