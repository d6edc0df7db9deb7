//! A backend behind a real Apache as reverse proxy is restarted under load. Needs root.

use std::time::Duration;

use gate_tests::recipes::apache::{Backend, Case, Hosts, How, Reuse};
use gate_tests::recipes::{Run, Schedule};

const MS: Duration = Duration::from_millis(1);

#[track_caller]
fn restarted(times: u32, case: Case) -> Run {
    let schedule = Schedule {
        times,
        outage: MS * 300,
        rest: MS * 2_500,
        rate: 200,
    };
    let run = case.run(schedule).unwrap();
    assert_eq!(run.events, times as usize);
    assert!(run.summary.outage >= MS * 250, "{run:?}");
    run
}

#[test]
fn a_backend_is_restarted_behind_apache_which_keeps_connections_to_it() {
    let run = restarted(
        2,
        Case {
            hosts: Hosts::Two,
            backend: Backend::Apache,
            reuse: Reuse::Drained,
            how: How::Gate(&["--drain", "5s"]),
        },
    );
    let summary = run.summary;
    assert_eq!(summary.lost(), 0, "{}", summary.errors_in_words());
}

#[test]
fn a_backend_is_restarted_behind_apache_on_the_same_host() {
    let run = restarted(
        2,
        Case {
            hosts: Hosts::One,
            backend: Backend::Nginx,
            reuse: Reuse::Never,
            how: How::Gate(&[]),
        },
    );
    let summary = run.summary;
    assert_eq!(summary.lost(), 0, "{}", summary.errors_in_words());
}

#[test]
fn without_a_gate_apache_fails_requests_long_after_the_restart() {
    let run = restarted(
        1,
        Case {
            hosts: Hosts::Two,
            backend: Backend::Nginx,
            reuse: Reuse::Never,
            how: How::Nothing,
        },
    );
    // All that came during the outage, at least.
    assert!(run.summary.lost() > 40, "{run:?}");
}
