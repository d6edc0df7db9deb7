//! Clocks that differ, and clocks that are set: a lease is as long as it was asked for. Needs root.

mod common;

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    Clients, ENDPOINT, LIMIT, MS, TARGET, assert_documented, find_gate, gate, held_client, listen,
    mode, up, up_with_service, wait_until,
};
use gate_tests::exe;
use gate_tests::extent::Extent;
use gate_tests::syscalls::{Fate, traced};
use gate_tests::topology::{Output, Side, Topology};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

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

/// Sets the time of day, and sets it back when it is dropped. The whole machine has only one.
struct Set {
    since: Instant,
    was: Duration,
}

impl Set {
    fn to(change: impl Fn(Duration) -> Duration) -> Self {
        let since = Instant::now();
        let was = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME).unwrap());
        let set = Self { since, was };
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(change(was))).unwrap();
        set
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        let now = self.was + self.since.elapsed();
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(now)).unwrap();
    }
}

#[test]
fn a_time_of_day_that_is_set_back_and_forth_moves_no_lease() {
    let hour = Duration::from_secs(3600);
    let changes: [fn(Duration, Duration) -> Duration; 2] =
        [|was, hour| was + hour, |was, hour| was - hour];
    // Others on this machine see it, too: a short run sets it by little.
    let by = Extent::wanted().pick(MS * 100, hour);
    let topology = up();
    let _listener = listen(&topology, TARGET);
    for change in changes {
        gate(&topology, &["hold", ENDPOINT, "--for", "800ms"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        let set = Set::to(|was| change(was, by));
        assert_eq!(mode(&topology, ENDPOINT), "hold");
        sleep(MS * 200);
        drop(set);
        wait_until("the lease is over", || mode(&topology, ENDPOINT) == "open");
        client.finish_connected();
    }
}
