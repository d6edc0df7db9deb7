//! A member of a real mod_proxy_balancer dies under load, and its connections are flushed. Needs
//! root.

use std::time::Duration;

use gate_tests::recipes::balancer::{Aftermath, Connect, Death, How, run};

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(4);

#[track_caller]
fn death(death: Death, how: How) -> Aftermath {
    run(death, Connect::Default, how, 200, PATIENCE).unwrap()
}

#[test]
fn after_reject_and_flush_a_silent_member_delays_nobody() {
    let after = death(Death::Silent, How::RejectAndFlush);
    assert!(after.connections_before > 10, "{after:?}");
    assert_eq!(after.connections_after, 0, "{after:?}");
    assert_eq!(after.lost_after, 0, "{after:?}");
    assert!(after.longest_after < PATIENCE / 2, "{after:?}");
    // Those that waited were answered at once, most of them by the other member.
    assert!(after.longest < PATIENCE, "{after:?}");
    assert!(after.lost_before < after.connections_before, "{after:?}");
}

#[test]
fn without_a_flush_a_silent_member_goes_on_swallowing_requests() {
    let after = death(Death::Silent, How::Nothing);
    // Those whose client gave up may have gone; nobody else ends.
    assert!(after.connections_after > 10, "{after:?}");
    assert!(after.lost_after > 50, "{after:?}");
}

#[test]
fn a_flush_after_a_kill_harms_nobody() {
    let after = death(Death::Killed, How::Flush);
    assert_eq!(after.connections_after, 0, "{after:?}");
    assert_eq!(after.lost_after, 0, "{after:?}");
    assert!(after.longest_after < PATIENCE / 2, "{after:?}");
}
