//! The ways to restart a backend that `cargo xtask bench restart` compares do what is claimed of
//! them. Needs root.

use std::time::Duration;

use gate_tests::bench::record::Raw;
use gate_tests::bench::restart::{ALL, Case, Claim, Figures, Restart, Rig, Way, find, run};
use gate_tests::text::grouped;
use gate_tests::topology::{CLIENT_V4, Topology};

/// A short outage, under a load that any machine can bear.
const CASE: Case = Case {
    rate: 50,
    outage: Duration::from_millis(300),
};

/// Restarts the backend by each way of which this is claimed, and returns how many there are.
fn all_do(claim: Claim) -> usize {
    let there = |rig: &&Rig| {
        let absent = (rig.absent)(&Topology::new().unwrap()).unwrap();
        // What any kernel may lack is `plug`.
        assert!(absent.is_none() || rig.name == "plug", "{absent:?}");
        absent.is_none()
    };
    let rigs: Vec<&Rig> = ALL
        .iter()
        .filter(|rig| rig.claim == claim)
        .filter(there)
        .collect();
    for rig in &rigs {
        // A machine that was busy gets a second try.
        let checked = || {
            let seen = run(rig, CASE)?;
            let behind_proxy = rig.needs == "a proxy in the path";
            assert_eq!(seen.source != CLIENT_V4, behind_proxy, "{}", rig.title);
            seen.check(claim)
        };
        if let Err(error) = checked().or_else(|_| checked()) {
            panic!("{}: {error:#}", rig.title);
        }
    }
    rigs.len()
}

#[test]
fn without_anything_a_restart_refuses_clients() {
    assert_eq!(all_do(Claim::Refused), 1);
}

#[test]
fn what_drops_syns_or_tries_again_costs_a_second() {
    assert_eq!(all_do(Claim::Retried), 6);
}

#[test]
fn what_holds_answers_as_soon_as_the_backend_is_back() {
    assert!(all_do(Claim::Kept) >= 8);
}

#[test]
fn haproxy_2_6_does_not_come_back_from_maxconn_0() {
    assert_eq!(all_do(Claim::Broken), 1);
}

/// A line with one space between its words.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_figures_of_a_restart_become_a_table_and_a_plot() {
    let rig = find("nothing").unwrap();
    let seen = run(rig, CASE).unwrap();
    let restart = Restart::new(rig, CASE, 0, &seen);
    let lost = restart.lost();
    assert!(lost > 0 && lost < restart.due_meanwhile + 5, "{restart:?}");
    let figures = Figures {
        ways: vec![Way::new(rig, None)],
        restarts: vec![restart],
        failures: Vec::new(),
    };
    let json = serde_json::to_string(&figures).unwrap();
    assert_eq!(serde_json::from_str::<Figures>(&json).unwrap(), figures);
    let report = figures.report();
    let requests = grouped(figures.restarts[0].requests);
    let cells = format!("| one run | {lost} of {requests} |");
    let mut rows = report.text.lines().map(words);
    assert!(
        rows.any(|row| row.starts_with(&format!("| nothing {cells}"))),
        "{}",
        report.text
    );
    assert!(report.brief.unwrap().contains(&format!(" {lost} |")));
    assert_eq!(report.plots.len(), 1);
    assert!(
        report.plots[0]
            .1
            .to_svg()
            .contains(&format!("{lost} failed"))
    );
    // What else happened is told below, and the row says that there is something.
    assert!(!report.text.contains("nothing *"), "{}", report.text);
    let mut noted = figures;
    noted.restarts[0].remark = Some("it rained".to_owned());
    let text = noted.report().text;
    let mut rows = text.lines().map(words);
    assert!(
        rows.any(|row| row.starts_with("| nothing * | one run |")),
        "{text}"
    );
    let note = "\n\\* nothing (50 a second, 300 ms): it rained.\n";
    assert!(text.contains(note), "{text}");
}
