//! Clocks that differ, and clocks that are set: a lease is as long as it was asked for. Needs root.

mod common;

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    Clients, ENDPOINT, LIMIT, MS, TARGET, assert_documented, find_gate, gate, held_client, listen,
    mode, up, up_with_service, wait_until,
};
use gate_tests::clock::{self, Elsewhen};
use gate_tests::exe;
use gate_tests::extent::Extent;
use gate_tests::syscalls::{Fate, traced};
use gate_tests::topology::{Output, Side, Topology};
use nix::time::ClockId;

/// Runs `gate` where the time since boot is told with this many seconds added.
#[track_caller]
fn elsewhen(topology: &Topology, seconds: &str, args: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--time", "--fork", &format!("--boottime={seconds}"), "--"]);
    command.arg(exe::gate().unwrap()).args(args);
    let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
    assert_documented(&output);
    output
}

#[test]
fn a_lease_is_as_long_as_it_was_asked_for_in_a_time_namespace() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    for offset in ["100000", "-1"] {
        let begun = Instant::now();
        let held = elsewhen(&topology, offset, &["hold", ENDPOINT, "--for", "1s"]);
        assert_eq!(held.code(), 0, "{held}");
        let left = find_gate(&topology, ENDPOINT).unwrap().lease.unwrap();
        assert!(left <= MS * 1_000, "{left:?}");
        let client = Clients::one(&topology, TARGET);
        wait_until("the lease is over", || mode(&topology, ENDPOINT) == "open");
        assert!(begun.elapsed() >= MS * 1_000);
        client.finish_connected();
        // And what is closed here is closed there.
        gate(&topology, &["hold", ENDPOINT, "--for", "1h"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        let opened = elsewhen(&topology, offset, &["open", ENDPOINT]);
        assert_eq!(opened.code(), 0, "{opened}");
        client.finish_connected();
    }
}

#[test]
fn no_command_that_closes_or_opens_asks_for_the_time_of_day() {
    let (topology, _service) = up_with_service();
    for args in [
        &["hold", ENDPOINT][..],
        &["open", ENDPOINT],
        &["guard", ENDPOINT],
        &["guard", ENDPOINT, "--off"],
        &["status"],
        &["restart", ENDPOINT, "--", "true"],
    ] {
        let fate = Fate {
            clocks: true,
            ..Fate::default()
        };
        let (output, seen) = traced(&topology, &fate, args, LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        let asked = |clock: ClockId| seen.clocks.contains(&clock.as_raw());
        assert!(
            asked(ClockId::CLOCK_BOOTTIME),
            "{args:?}: {:?}",
            seen.clocks
        );
        assert!(
            !asked(ClockId::CLOCK_REALTIME),
            "{args:?}: {:?}",
            seen.clocks
        );
    }
}

#[test]
fn a_time_of_day_that_is_set_back_and_forth_moves_no_lease() {
    // Of the namespaces none has a time of day, so all of the machine sees this: the other tests here ask
    // for no such time, no other file of tests runs meanwhile, and a short run sets it by little. That
    // gate does not ask for it is the test above.
    let by = Extent::wanted().pick(MS * 100, Duration::from_secs(3_600));
    let right = clock::ahead().unwrap();
    let topology = up();
    let _listener = listen(&topology, TARGET);
    for back in [false, true] {
        gate(&topology, &["hold", ENDPOINT, "--for", "800ms"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        let elsewhen = Elsewhen::start(by, back).unwrap();
        let moved = clock::ahead().unwrap().abs_diff(right);
        assert!(moved.abs_diff(by) < MS * 20, "{moved:?}");
        assert_eq!(mode(&topology, ENDPOINT), "hold");
        sleep(MS * 200);
        drop(elsewhen);
        let moved = clock::ahead().unwrap().abs_diff(right);
        assert!(moved < MS * 20, "it is off by {moved:?}");
        wait_until("the lease is over", || mode(&topology, ENDPOINT) == "open");
        client.finish_connected();
    }
    assert_set_right_by_whoever_is_killed(right);
}

/// As if this process died: what holds the other end of the pipe is killed.
#[track_caller]
fn assert_set_right_by_whoever_is_killed(right: Duration) {
    let mut starter = Command::new("sleep");
    let mut starter = starter.arg("60").stdout(Stdio::piped()).spawn().unwrap();
    let mut lab = Command::new(exe::lab().unwrap());
    lab.args(["clock", "--by", "100ms"]);
    lab.stdin(starter.stdout.take().unwrap())
        .stdout(Stdio::null());
    let mut lab = lab.spawn().unwrap();
    let moved = || clock::ahead().unwrap().abs_diff(right);
    wait_until("it is set", || moved() > MS * 80);
    starter.kill().unwrap();
    starter.wait().unwrap();
    assert!(lab.wait().unwrap().success());
    assert!(moved() < MS * 20, "it is off by {:?}", moved());
}
