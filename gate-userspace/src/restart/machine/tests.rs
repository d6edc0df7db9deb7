use super::*;
use crate::restart::{Drain, OnFailure};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn machine() -> Machine {
    planned(Plan::default())
}

fn planned(plan: Plan) -> Machine {
    let quiesce = Duration::from_millis(100);
    Machine::new(BootTime(0), BootTime(1_000 * MS), Plan { quiesce, ..plan })
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
    let plan = Plan {
        quiesce: Duration::from_secs(1),
        ..Plan::default()
    };
    let mut machine = Machine::new(at(0), at(9_000), plan);
    assert_eq!(machine.on(queues(true, false), at(299)), []);
    assert_eq!(machine.on(queues(true, false), at(300)), []);
    assert_eq!(machine.on(queues(true, false), at(302)), [Action::Start]);
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

fn draining(then: Then) -> Machine {
    let timeout = Duration::from_millis(300);
    let mut machine = planned(Plan {
        drain: Some(Drain {
            timeout,
            idle: None,
            then,
        }),
        ..Plan::default()
    });
    for ms in 0..3 {
        assert_eq!(machine.on(queues(true, true), at(ms)), []);
    }
    assert_eq!(machine.phase(), Phase::Drain);
    machine
}

#[test]
fn the_command_starts_when_the_last_connection_has_ended() {
    for then in [Then::Leave, Then::Flush] {
        let mut machine = draining(then);
        assert_eq!(machine.on(Event::Connections(1), at(200)), []);
        assert_eq!(machine.on(Event::Connections(0), at(201)), [Action::Start]);
    }
}

#[test]
fn a_drain_that_never_ends_is_bounded() {
    let mut left = draining(Then::Leave);
    assert_eq!(left.on(Event::Connections(1), at(301)), []);
    assert_eq!(left.on(Event::Connections(1), at(302)), [Action::Start]);
    let mut flushed = draining(Then::Flush);
    let actions = flushed.on(Event::Tick, at(302));
    assert_eq!(actions, [Action::Flush, Action::Start]);
}

#[test]
fn a_gate_does_on_failure_what_it_was_told() {
    for (on_failure, failed, over) in [
        (OnFailure::Open, Action::Open, Action::Open),
        (OnFailure::Reject, Action::Reject, Action::Reject),
        (OnFailure::Keep, Action::Keep, Action::Open),
    ] {
        let plan = Plan {
            on_failure,
            ..Plan::default()
        };
        let mut machine = planned(plan);
        quiet(&mut machine);
        let ended = Event::Ended(CommandEnd::Code(1));
        assert_eq!(machine.on(ended, at(20)), [failed]);
        let mut machine = planned(plan);
        quiet(&mut machine);
        let actions = machine.on(Event::Tick, at(1_000));
        assert_eq!(actions, [over, Action::Stop]);
        let mut machine = planned(plan);
        quiet(&mut machine);
        let actions = machine.on(Event::Signal(15), at(20));
        assert_eq!(actions, [Action::Open, Action::Stop]);
    }
}

fn plans() -> impl Strategy<Value = Plan> {
    let then = prop_oneof![Just(Then::Leave), Just(Then::Flush)];
    let drain = (0..600_u64, then).prop_map(|(ms, then)| Drain {
        timeout: Duration::from_millis(ms),
        idle: None,
        then,
    });
    let on_failure = prop_oneof![
        Just(OnFailure::Open),
        Just(OnFailure::Reject),
        Just(OnFailure::Keep)
    ];
    (prop::option::of(drain), on_failure).prop_map(|(drain, on_failure)| Plan {
        drain,
        on_failure,
        ..Plan::default()
    })
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<(bool, bool)>().prop_map(|(accepted, settled)| queues(accepted, settled)),
        (0..3_u8).prop_map(|code| Event::Ended(CommandEnd::Code(code))),
        Just(Event::Ended(CommandEnd::Signal(9))),
        (0..3_usize).prop_map(Event::Connections),
        Just(Event::Healthy),
        Just(Event::Signal(15)),
        Just(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn it_lets_go_of_the_gate_once_whatever_happens(
        plan in plans(),
        steps in prop::collection::vec((events(), 0_u64..200), 0..40)
    ) {
        let mut machine = planned(plan);
        let mut now = 0;
        let mut done: Vec<Action> = Vec::new();
        for (event, wait) in steps {
            now += wait;
            done.extend(machine.on(event, at(now)));
        }
        done.extend(machine.on(Event::Tick, at(now.max(1_000))));
        let count = |action| done.iter().filter(|done| **done == action).count();
        let ends = [Action::Open, Action::Reject, Action::Keep].map(count);
        prop_assert_eq!(ends.iter().sum::<usize>(), 1);
        prop_assert!(count(Action::Flush) <= count(Action::Start));
        prop_assert!(count(Action::Start) <= 1);
        prop_assert!(count(Action::Check) <= count(Action::Start));
        prop_assert!(machine.outcome().is_some());
    }
}
