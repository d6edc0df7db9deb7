//! A real gunicorn behind nginx is killed under load, and its supervisor starts another. Needs
//! root.

use std::time::Duration;

use gate_tests::recipes::Schedule;
use gate_tests::recipes::crash::{Crashes, How, run};

const MS: Duration = Duration::from_millis(1);

#[track_caller]
fn killed(times: u32, how: How) -> Crashes {
    let schedule = Schedule {
        times,
        outage: MS * 500,
        rest: MS * 2_000,
        rate: 200,
    };
    let crashes = run(how, schedule).unwrap();
    assert_eq!(crashes.run.events, times as usize);
    crashes
}

/// Whatever failed was under way when gunicorn was killed, and nothing of that came later.
#[track_caller]
fn assert_none_refused(crashes: &Crashes) {
    assert_eq!(crashes.refused, 0, "{crashes:?}");
    assert_eq!(crashes.run.summary.lost(), crashes.cut_off, "{crashes:?}");
    assert!(crashes.cut_off < 10 * crashes.run.events, "{crashes:?}");
}

#[test]
fn a_guarded_gunicorn_is_killed_and_no_connection_is_refused() {
    assert_none_refused(&killed(2, How::Guard));
}

#[test]
fn a_watched_gunicorn_is_killed_and_nobody_waits_for_a_retransmission() {
    let crashes = killed(2, How::Watch);
    assert_none_refused(&crashes);
    let summary = &crashes.run.summary;
    // Half of a retransmission's second, which is what tells the mechanisms apart.
    assert!(
        summary.max.unwrap() < summary.outage + MS * 500,
        "{crashes:?}"
    );
}

#[test]
fn without_a_guard_connections_to_a_killed_gunicorn_are_refused() {
    let crashes = killed(1, How::Nothing);
    assert!(crashes.refused > 20, "{crashes:?}");
    assert_eq!(
        crashes.run.summary.lost(),
        crashes.refused + crashes.cut_off
    );
}
