//! A server behind a real HAProxy with sticky cookies is taken out of rotation by its status port,
//! restarted and brought back under load, and no user loses a session. Needs root.

use std::time::Duration;

use gate_tests::haproxy::Release;
use gate_tests::recipes::soft_stop::{Case, How, Layout, Plan, SoftStops};

/// Longer than HAProxy tries by itself to connect to a server that is away.
const OUTAGE: Duration = Duration::from_millis(4_500);

#[track_caller]
fn soft_stopped(times: usize, how: How, layout: Layout, outage: Duration) -> SoftStops {
    let release = Release::System;
    let case = Case {
        how,
        layout,
        release,
    };
    let plan = Plan {
        times,
        out: Duration::from_secs(1),
        outage,
        rate: 200,
    };
    let stops = case.run(plan).unwrap();
    assert_eq!(stops.times, times);
    // Out of rotation it serves those whom it has, and nobody else; and then new users again.
    assert_eq!(stops.new_while_out, 0, "{stops:?}");
    assert!(stops.present_while_out > 10, "{stops:?}");
    assert!(stops.new_when_back > 0, "{stops:?}");
    stops
}

#[test]
fn both_servers_are_restarted_in_turn_and_no_session_is_lost() {
    let how = How::SoftStopAndRestart;
    let stops = soft_stopped(2, how, Layout::Served, OUTAGE);
    let summary = &stops.summary;
    assert_eq!(summary.lost(), 0, "{}", summary.errors_in_words());
    assert_eq!(stops.lost, 0, "{stops:?}");
}

#[test]
fn without_a_hold_those_who_stayed_lose_their_sessions() {
    let stops = soft_stopped(1, How::SoftStop, Layout::Served, OUTAGE);
    assert!(stops.lost + stops.summary.lost() > 10, "{stops:?}");
}

#[test]
fn users_that_come_to_the_status_port_lose_their_sessions_until_haproxy_notices() {
    let how = How::SoftStopAndRestart;
    let stops = soft_stopped(2, how, Layout::Status, Duration::from_millis(300));
    assert!(stops.lost > 0, "{stops:?}");
}
