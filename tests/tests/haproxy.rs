//! Three servers behind a real HAProxy are upgraded at once, with the database that they share.
//! Needs root.

use std::time::Duration;

use gate_tests::haproxy::Retries;
use gate_tests::recipes::group::{DRAIN, How, run};
use gate_tests::recipes::{Run, Schedule};

const MS: Duration = Duration::from_millis(1);

#[track_caller]
fn upgraded(times: u32, how: How) -> Run {
    let schedule = Schedule {
        times,
        outage: MS * 300,
        rest: MS * 1_500,
        rate: 200,
    };
    // HAProxy forgives nothing, so that the gate is all that helps.
    let run = run(how, Retries::None, schedule).unwrap();
    assert_eq!(run.events, times as usize);
    assert!(run.summary.outage >= MS * 250, "{run:?}");
    run
}

#[test]
fn three_servers_and_their_database_are_upgraded_at_once_behind_one_gate() {
    let summary = upgraded(2, How::Gate(DRAIN)).summary;
    assert_eq!(summary.lost(), 0, "{}", summary.errors_in_words());
}

#[test]
fn without_a_gate_an_upgrade_of_all_servers_fails_requests() {
    let summary = upgraded(1, How::Nothing).summary;
    assert!(summary.lost() > 40, "{summary:?}");
}
