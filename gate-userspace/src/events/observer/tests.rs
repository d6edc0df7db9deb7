use std::time::Duration;

use gate_common::state::Mode;

use super::super::Known;
use super::*;

const MS: u64 = 1_000_000;

/// The moment so many milliseconds after the first look.
fn at(ms: u64) -> Moment {
    Moment {
        boot: BootTime((50_000 + ms) * MS),
        wall: SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + ms),
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().expect(text)
}

fn hold(until: u64) -> StateWord {
    StateWord::closed(Closed::Hold, at(until).boot)
}

/// Gates 1 (`web`) and 2 (`10.0.0.5:80`), open, at one interface.
fn quiet() -> Snapshot {
    let known = |label: &str, is_named| Known {
        label: label.to_owned(),
        is_named,
        endpoints: vec![endpoint("10.0.0.5:80")],
    };
    let gates = [(1, known("web", true)), (2, known("10.0.0.5:80", false))];
    Snapshot {
        epoch: Some(7),
        words: vec![StateWord::OPEN; 8],
        gates: Arc::new(gates.map(|(id, known)| (GateId(id), known)).into()),
        interfaces: Arc::new(BTreeSet::from(["eth0".to_owned()])),
        ..Snapshot::default()
    }
}

fn with(gate: usize, word: StateWord) -> Snapshot {
    let mut snapshot = quiet();
    snapshot.words[gate] = word;
    snapshot
}

/// What the last of these looks, 100 ms apart, shows to have happened.
fn last(looks: &[Snapshot]) -> Vec<(u64, Option<String>, What)> {
    let mut observer = Observer::new();
    let mut events = Vec::new();
    for (n, look) in looks.iter().enumerate() {
        events = observer.step(look.clone(), at(n as u64 * 100));
    }
    let since = |event: &Event| event.at.duration_since(at(0).wall).unwrap();
    events
        .into_iter()
        .map(|event| (since(&event).as_millis() as u64, event.gate, event.what))
        .collect()
}

/// The same, where one thing happened to `web`.
#[track_caller]
fn happened_to_web(looks: &[Snapshot]) -> (u64, What) {
    let mut events = last(looks);
    assert_eq!(events.len(), 1, "{events:?}");
    let (at, gate, what) = events.remove(0);
    assert_eq!(gate.as_deref(), Some("web"));
    (at, what)
}

#[test]
fn the_first_look_is_how_things_are() {
    assert_eq!(last(&[with(1, hold(10_000))]), []);
    assert_eq!(last(&[with(1, hold(10_000)), with(1, hold(10_000))]), []);
}

#[test]
fn closing_and_opening_are_told() {
    let (at, what) = happened_to_web(&[quiet(), with(1, hold(15_100))]);
    let What::Closed { mode, lease } = what else {
        panic!("{what:?}");
    };
    assert_eq!((at, mode), (100, Mode::Hold));
    // Words count in ticks of a microsecond.
    assert_eq!(lease.as_millis(), 15_000);
    let opened = happened_to_web(&[with(1, hold(15_000)), quiet()]);
    assert_eq!(opened, (100, What::Opened));
}

#[test]
fn another_mode_is_told_and_another_lease_is_not() {
    let reject = StateWord::closed(Closed::Reject, at(15_000).boot);
    let (_, what) = happened_to_web(&[with(1, hold(15_000)), with(1, reject)]);
    assert!(matches!(
        what,
        What::Closed {
            mode: Mode::Reject,
            ..
        }
    ));
    assert_eq!(last(&[with(1, hold(15_000)), with(1, hold(30_000))]), []);
    let with_checks = hold(15_000).with_checks().with_allows();
    assert_eq!(last(&[with(1, hold(15_000)), with(1, with_checks)]), []);
}

#[test]
fn a_lease_that_ran_out_is_told_once_and_when_it_was() {
    let word = hold(130);
    let over = happened_to_web(&[quiet(), with(1, word), with(1, word)]);
    assert_eq!(over, (130, What::Expired));
    let looks = [with(1, word), with(1, word), with(1, word), with(1, word)];
    assert_eq!(last(&looks), []);
    // Whoever clears up later opens nothing.
    let looks = [with(1, word), with(1, word), with(1, word), quiet()];
    assert_eq!(last(&looks), []);
    // Opened right after the end, as `gate restart` does.
    let over = happened_to_web(&[quiet(), with(1, word), quiet()]);
    assert_eq!(over, (130, What::Expired));
}

#[test]
fn a_lease_shorter_than_the_looks_are_apart_is_told() {
    let events = last(&[quiet(), with(1, hold(40))]);
    let [(0, _, What::Closed { .. }), (40, _, What::Expired)] = events.as_slice() else {
        panic!("{events:?}");
    };
}

#[test]
fn a_gate_without_a_name_goes_by_its_endpoint() {
    let events = last(&[quiet(), with(2, hold(10_000))]);
    assert_eq!(events[0].1.as_deref(), Some("10.0.0.5:80"));
}

#[test]
fn a_slot_that_is_anothers_does_not_mix_the_two() {
    let mut after = with(2, hold(10_000));
    let mut gates = (*after.gates).clone();
    gates.get_mut(&GateId(2)).unwrap().label = "10.0.0.6:80".to_owned();
    after.gates = Arc::new(gates);
    let events = last(&[with(2, hold(50)), after]);
    let [(_, Some(label), What::Closed { .. })] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(label, "10.0.0.6:80");
}

#[test]
fn a_guard_is_told_beside_the_mode() {
    let lease = Duration::from_secs(30);
    let guarded = |word: StateWord| {
        let mut snapshot = with(1, word.guarded(true));
        snapshot.guards = Arc::new(BTreeMap::from([(GateId(1), lease)]));
        snapshot
    };
    let looks = [quiet(), guarded(StateWord::OPEN)];
    assert_eq!(happened_to_web(&looks).1, What::Guarded { lease });
    let looks = [guarded(StateWord::OPEN), guarded(hold(10_000))];
    assert!(matches!(happened_to_web(&looks).1, What::Closed { .. }));
    let looks = [guarded(StateWord::OPEN), quiet()];
    assert_eq!(happened_to_web(&looks).1, What::Unguarded);
}

/// A guarded gate whose only endpoint misses a listener since `since`, with so many SYNs released.
fn missing(since: Option<u64>, released: u64) -> Snapshot {
    let mut snapshot = with(1, StateWord::OPEN.guarded(true));
    let gate = GateId(1);
    if let Some(since) = since {
        let since = at(since).boot;
        let outage = Outage { gate, since };
        snapshot.missing.insert(endpoint("10.0.0.5:80"), outage);
    }
    snapshot.released.insert(gate, released);
    snapshot
}

#[test]
fn a_missing_listener_is_told_and_when_it_is_back_what_was_released() {
    let endpoint = endpoint("10.0.0.5:80");
    let looks = [missing(None, 5), missing(Some(60), 5)];
    let gone = happened_to_web(&looks);
    assert_eq!(gone, (60, What::ListenerMissing { endpoint }));
    // Back by the third look; it is told with what the fourth shows.
    let looks = [
        missing(None, 5),
        missing(Some(60), 5),
        missing(None, 6),
        missing(None, 9),
    ];
    assert_eq!(last(&looks[..3]), []);
    let back = What::ListenerBack {
        endpoint,
        after: Duration::from_millis(140),
        released: 4,
    };
    assert_eq!(happened_to_web(&looks), (200, back));
}

#[test]
fn a_gate_that_is_closed_meanwhile_has_no_listener_back() {
    let mut closed = missing(None, 0);
    closed.words[1] = hold(10_000).guarded(true);
    let looks = [missing(Some(0), 0), closed.clone(), closed];
    assert_eq!(last(&looks), []);
}

#[test]
fn names_interfaces_and_handovers_are_told() {
    let mut more = quiet();
    let mut gates = (*more.gates).clone();
    let api = Known {
        label: "api".to_owned(),
        is_named: true,
        endpoints: vec![endpoint("*:81")],
    };
    gates.insert(GateId(3), api);
    more.gates = Arc::new(gates);
    more.interfaces = Arc::new(["eth0", "lo"].map(str::to_owned).into());
    more.handed = Arc::new(BTreeMap::from([(GateId(1), vec![endpoint("*:82")])]));
    let what = |looks: &[Snapshot]| -> Vec<(Option<String>, What)> {
        let events = last(looks).into_iter();
        events.map(|(_, gate, what)| (gate, what)).collect()
    };
    let interface = "lo".to_owned();
    let (web, api) = (Some("web".to_owned()), Some("api".to_owned()));
    assert_eq!(
        what(&[quiet(), more.clone()]),
        [
            (
                None,
                What::Attached {
                    interface: interface.clone()
                }
            ),
            (api.clone(), What::Defined),
            (
                web.clone(),
                What::HandedOver {
                    to: vec![endpoint("*:82")]
                }
            ),
        ]
    );
    assert_eq!(
        what(&[more, quiet()]),
        [
            (web, What::HandedOver { to: Vec::new() }),
            (None, What::Detached { interface }),
            (api, What::Forgotten),
        ]
    );
}

#[test]
fn a_name_without_endpoints_yet_is_not_defined() {
    let mut half = quiet();
    let mut gates = (*half.gates).clone();
    gates.get_mut(&GateId(1)).unwrap().endpoints.clear();
    half.gates = Arc::new(gates);
    assert_eq!(last(&[Snapshot::default(), half.clone()]).len(), 1, "eth0");
    assert_eq!(happened_to_web(&[half, quiet()]).1, What::Defined);
}

#[test]
fn going_down_opens_forgets_and_detaches() {
    let events = last(&[with(1, hold(10_000)), Snapshot::default()]);
    let what: Vec<&What> = events.iter().map(|(_, _, what)| what).collect();
    let interface = "eth0".to_owned();
    assert_eq!(
        what,
        [
            &What::Opened,
            &What::Detached { interface },
            &What::Forgotten
        ]
    );
}

#[test]
fn down_and_up_between_two_looks_is_seen_as_both() {
    let again = Snapshot {
        epoch: Some(8),
        ..quiet()
    };
    let events = last(&[quiet(), again]);
    let what: Vec<&What> = events.iter().map(|(_, _, what)| what).collect();
    let interface = || "eth0".to_owned();
    let (detached, attached) = (
        What::Detached {
            interface: interface(),
        },
        What::Attached {
            interface: interface(),
        },
    );
    assert_eq!(
        what,
        [&detached, &What::Forgotten, &attached, &What::Defined]
    );
}
