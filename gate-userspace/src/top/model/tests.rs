use gate_common::abi::{Counter, GateStats};

use super::*;
use crate::attach::Attachment;
use crate::handover::{HandoverStatus, ToStatus};
use crate::hooks::Slot;
use crate::status::{GuardStatus, Waiting};
use gate_common::handover::Steered;
use std::time::SystemTime;

/// The moment so many milliseconds after the first.
pub fn at(ms: u64) -> Moment {
    Moment {
        boot: BootTime((100_000 + ms) * 1_000_000),
        wall: SystemTime::UNIX_EPOCH + Duration::from_millis(1_763_750_000_000 + ms),
    }
}

pub fn endpoint(text: &str) -> Endpoint {
    text.parse().expect(text)
}

pub fn status(gates: Vec<GateStatus>) -> Status {
    Status {
        attachments: vec![Attachment::example(2, Some("eth0"), Slot::Xdp)],
        is_temporary: false,
        gates,
        held_max: 16_384,
        unparsed: 0,
    }
}

/// `web` holds, `api` is guarded and handed over, and an endpoint is open.
pub fn three() -> Status {
    let mut held = GateStats::default();
    held.counts[Counter::Held as usize] = 10;
    status(vec![
        GateStatus {
            guard: Some(GuardStatus {
                lease: Duration::from_secs(30),
                missing: vec![(endpoint("10.0.0.5:9000"), Duration::from_millis(2_300))],
            }),
            handover: Some(HandoverStatus {
                hook: Steered::Lookup,
                to: vec![ToStatus {
                    backend: endpoint("127.0.0.1:9001"),
                    weight: 3,
                    is_own: false,
                    listening: Some(1),
                }],
            }),
            ..GateStatus::example(1, Some("api"), "10.0.0.5:9000")
        },
        GateStatus {
            mode: Mode::Hold,
            lease: Some(Duration::from_millis(12_500)),
            waiting: Waiting {
                held: 7,
                longest: Duration::from_millis(1_900),
            },
            stats: held,
            ..GateStatus::example(2, Some("web"), "10.0.0.5:8080")
        },
        GateStatus::example(3, None, "10.0.0.5:81"),
    ])
}

/// A model that has looked twice, half a second apart.
pub fn model() -> Model {
    let mut model = Model::new(at(0));
    model.look(Some(&three()), at(0).boot);
    let mut later = three();
    later.gates[1].stats.counts[Counter::Held as usize] = 60;
    later.gates[1].lease = Some(Duration::from_millis(12_000));
    model.look(Some(&later), at(500).boot);
    model.now = at(500);
    model.happened(Event {
        at: at(0).wall,
        gate: Some("web".to_owned()),
        what: What::Opened,
    });
    model
}

#[test]
fn rates_are_the_difference_of_two_looks() {
    let model = model();
    let rows = model.rows.as_ref().unwrap();
    let web = rows.iter().find(|row| row.label == "web").unwrap();
    let rates = web.rates.unwrap();
    assert!((rates.held - 100.0).abs() < 1e-6, "{rates:?}");
    assert!(rates.passed.abs() < 1e-6, "{rates:?}");
    // What began anew is no rate below zero.
    let mut anew = model.clone();
    anew.look(Some(&three()), at(1_000).boot);
    let rows = anew.rows.unwrap();
    assert!(rows.iter().all(|row| row.rates.unwrap().held >= 0.0));
}

#[test]
fn a_gate_that_is_new_has_no_rates_yet() {
    let mut model = model();
    let mut more = three();
    more.gates
        .push(GateStatus::example(4, Some("new"), "10.0.0.5:1"));
    model.look(Some(&more), at(1_000).boot);
    let rows = model.rows.unwrap();
    assert!(rows[3].rates.is_none() && rows[0].rates.is_some());
}

#[test]
fn the_lease_counts_down_between_looks() {
    let mut model = model();
    let left = |model: &Model| model.left(&model.rows.as_ref().unwrap()[1]);
    assert_eq!(left(&model), Some(Duration::from_secs(12)));
    model.now = at(2_500);
    assert_eq!(left(&model), Some(Duration::from_secs(10)));
    model.now = at(60_000);
    assert_eq!(left(&model), Some(Duration::ZERO));
    assert_eq!(model.left(&model.rows.as_ref().unwrap()[0]), None);
}

#[test]
fn the_selected_gate_stays_selected_while_it_is_there() {
    let mut model = model();
    assert_eq!(model.selected.as_deref(), Some("api"));
    model.select(1);
    assert_eq!(model.selected.as_deref(), Some("web"));
    let mut fewer = three();
    fewer.gates.remove(0);
    model.look(Some(&fewer), at(1_000).boot);
    assert_eq!(
        (model.selected.as_deref(), model.position()),
        (Some("web"), Some(0))
    );
    fewer.gates.remove(0);
    model.look(Some(&fewer), at(1_500).boot);
    assert_eq!(model.selected.as_deref(), Some("10.0.0.5:81"));
}

#[test]
fn going_down_leaves_nothing_and_coming_up_shows_it_again() {
    let mut model = model();
    model.look(None, at(1_000).boot);
    assert_eq!((model.rows.as_ref(), model.row()), (None, None));
    model.select(1);
    model.look(Some(&three()), at(1_500).boot);
    assert!(model.row().is_some());
}

#[test]
fn old_events_are_forgotten() {
    let mut model = model();
    for n in 0..500 {
        model.happened(Event {
            at: at(n).wall,
            gate: None,
            what: What::Applied {
                changes: n as usize,
            },
        });
    }
    assert_eq!(model.events.len(), EVENTS);
    assert_eq!(
        model.events.back().unwrap().what,
        What::Applied { changes: 499 }
    );
}

#[test]
fn a_health_that_turns_is_an_event() {
    let mut model = model();
    model.events.clear();
    let here = |health, why: Option<&str>| {
        let found = Found {
            health,
            history: Vec::new(),
            why: why.map(str::to_owned),
        };
        Daemon::Here(BTreeMap::from([("web".to_owned(), found)]))
    };
    // What is so when it begins is no event.
    model.hear(here(Health::Up, None));
    model.hear(here(Health::Up, None));
    assert_eq!(model.events.len(), 0);
    model.hear(here(Health::Down, Some("refused")));
    model.hear(here(Health::Up, None));
    let told: Vec<&What> = model.events.iter().map(|event| &event.what).collect();
    let why = "refused".to_owned();
    assert_eq!(told, [&What::Down { why }, &What::Up]);
    // Nor is that the daemon has gone.
    model.hear(Daemon::Away("none".to_owned()));
    model.hear(here(Health::Down, Some("refused")));
    assert_eq!(model.events.len(), 2);
}
