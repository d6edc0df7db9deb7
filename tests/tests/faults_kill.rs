//! SIGKILL of a command at every system call in turn: what it left in the maps is whole, the next
//! command or the lease puts things right, and no client is lost. And commands that are stopped past
//! the lease, at each call that changes something. Needs root.

mod common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    Calls, ENDPOINT, LIMIT, MS, ROOT, TARGET, assert_connects_at_once, assert_documented,
    assert_none_lost, exists, find_gate, gate_or, gate_status, mode, side_by_side, snapshot,
    up_with_service, wait_until,
};
use gate_tests::backend::Options;
use gate_tests::load::{Endless, Load};
use gate_tests::service::Service;
use gate_tests::syscalls::{Fate, Seen, Traced, traced};
use gate_tests::topology::{Side, Topology};
use gate_userspace::error::exit;
use gate_userspace::pins::Pins;
use gate_userspace::status::{self, Status};

/// The lease of what is closed here.
const LEASE: Duration = Duration::from_millis(1_500);

/// A request may have to wait for the lease, and then for its client's next retransmission; the rest is
/// for a busy machine.
const LATEST: Duration = Duration::from_secs(5);

/// New connections all the time: each must be made.
fn load(topology: &Topology) -> Endless {
    let load = Load::new(TARGET, 50, Duration::ZERO);
    load.start_endless(topology, Side::Client).unwrap()
}

/// A server whose backend listens, without a gate.
fn served() -> (Topology, Service) {
    let topology = Topology::new().unwrap();
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    (topology, service)
}

/// The calls of a command that nobody kills.
#[track_caller]
fn seen_to_its_end(topology: &Topology, args: &[&str]) -> Seen {
    let (output, seen) = traced(topology, &Fate::default(), args, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    seen
}

/// The status, where anything is up. Everything in it must be legal.
#[track_caller]
fn whole(topology: &Topology) -> Option<Status> {
    let told = topology.gate(["status"]).unwrap();
    assert_documented(&told);
    assert_eq!((told.code(), &*told.stderr), (0, ""), "{told}");
    let status = topology.run(Side::Server, || Ok(status::read(&Pins::here()?)?));
    let status = status.unwrap()?;
    for gate in &status.gates {
        assert!(["open", "hold"].contains(&gate.mode.name()), "{gate:?}");
        assert!(gate.lease.is_none_or(|left| left <= LEASE), "{gate:?}");
    }
    Some(status)
}

/// Nobody does anything until the lease is over; then the gate must be open.
#[track_caller]
fn wait_for_lease(topology: &Topology, endpoint: &str) {
    if find_gate(topology, endpoint).is_some() {
        sleep(LEASE);
        assert_eq!(mode(topology, endpoint), "open");
    }
}

#[test]
fn a_restart_killed_at_any_system_call_is_put_right_by_the_next() {
    let restart = ["restart", ENDPOINT, "--max-hold", "1500ms", "--", "true"];
    let seen = seen_to_its_end(&served().0, &restart);
    let calls = Calls::of("restart", &seen);
    side_by_side(|| {
        let (topology, _service) = served();
        let before = snapshot(&topology);
        let load = load(&topology);
        for (round, call) in calls.rounds() {
            let fate = Fate::killed_at(call.number);
            let (output, seen) = traced(&topology, &fate, &restart, LIMIT).unwrap();
            match (whole(&topology), round % 8) {
                // Whoever opens takes away what it left.
                (Some(_), 0 | 2 | 4 | 6) => {
                    gate_or(&topology, &["open", ENDPOINT], exit::LEASE);
                }
                (found, step) => {
                    if step == 7 && found.is_some() {
                        wait_for_lease(&topology, ENDPOINT);
                    }
                    gate_or(&topology, &restart, exit::DONE);
                }
            }
            assert_eq!(snapshot(&topology), before, "{output}");
            call.tried(&output, &seen);
        }
        assert_none_lost(load, LATEST);
    });
    calls.finish();
}

const OPEN: [&str; 2] = ["open", ENDPOINT];

/// Closes the gate for this long, and returns when somebody is held.
#[track_caller]
fn close(topology: &Topology, lease: &str) {
    gate_or(topology, &["hold", ENDPOINT, "--for", lease], exit::DONE);
    wait_until("a client is held", || {
        gate_status(topology, ENDPOINT).waiting.held > 0
    });
}

/// The calls of an opening of what holds clients.
#[track_caller]
fn opening_seen_to_its_end() -> Seen {
    let (topology, _service) = up_with_service();
    let load = load(&topology);
    close(&topology, "1500ms");
    let seen = seen_to_its_end(&topology, &OPEN);
    assert_none_lost(load, LATEST);
    seen
}

#[test]
fn an_opening_killed_at_any_system_call_is_put_right_by_the_next_or_the_lease() {
    let calls = Calls::of("open", &opening_seen_to_its_end());
    side_by_side(|| {
        let (topology, _service) = up_with_service();
        let load = load(&topology);
        for (round, call) in calls.rounds() {
            close(&topology, "1500ms");
            let fate = Fate::killed_at(call.number);
            let (output, seen) = traced(&topology, &fate, &OPEN, LIMIT).unwrap();
            whole(&topology).expect("it is up");
            match round % 8 {
                7 => wait_for_lease(&topology, ENDPOINT),
                _ => drop(gate_or(&topology, &OPEN, exit::LEASE)),
            }
            let status = gate_status(&topology, ENDPOINT);
            assert_eq!(status.mode.name(), "open", "{output}");
            call.tried(&output, &seen);
        }
        assert_none_lost(load, LATEST);
        gate_or(&topology, &["down"], exit::DONE);
        assert!(!exists(&topology, ROOT));
    });
    calls.finish();
}

/// Longer than the lease of what is stopped.
const STOPPED: Duration = Duration::from_millis(700);

#[test]
fn a_restart_stopped_past_its_lease_at_any_change_keeps_nothing_closed() {
    let restart = |lease| ["restart", ENDPOINT, "--max-hold", lease, "--", "true"];
    // Traced, it is slow.
    let seen = seen_to_its_end(&served().0, &restart("20s"));
    let restart = restart("500ms");
    let calls = Calls::changing("restart, stopped", &seen, 8);
    side_by_side(|| {
        let (topology, _service) = served();
        let before = snapshot(&topology);
        let load = load(&topology);
        for (_, call) in calls.rounds() {
            let fate = Fate {
                pause: Some(STOPPED),
                ..Fate::killed_at(call.number)
            };
            // For whoever looks what a client met that waited for long.
            let at = load.begin().elapsed();
            let (output, seen) = traced(&topology, &fate, &restart, LIMIT).unwrap();
            println!(
                "at {at:.1?}: stopped at {}: {:?}",
                call.number, output.status
            );
            assert_documented(&output);
            // In time after all, or too late.
            assert!([0, 124].contains(&output.code()), "{output}");
            assert_eq!(snapshot(&topology), before, "{output}");
            call.count(&seen);
        }
        // A client waits for as long as what holds it is stopped, and goes then: a release that comes after
        // the lease injects what is held all the same. Only where that is forgotten its client waits for its
        // next SYN, and may meet the next closing then.
        assert_none_lost(load, LATEST);
    });
    calls.finish();
}

#[test]
fn an_opening_stopped_past_the_lease_at_any_change_keeps_nothing_closed() {
    let lease = MS * 1_500;
    // Long enough for the lease to end, and for a client to connect, while it is stopped.
    let stopped = MS * 2_500;
    let calls = Calls::changing("open, stopped", &opening_seen_to_its_end(), 8);
    side_by_side(|| {
        let (topology, _service) = up_with_service();
        let load = load(&topology);
        for (_, call) in calls.rounds() {
            close(&topology, "1500ms");
            let fate = Fate {
                pause: Some(stopped),
                ..Fate::killed_at(call.number)
            };
            let opening = Traced::start(&topology, &fate, &OPEN).unwrap();
            // Or it has ended, where it did not come to this call.
            wait_until("it is stopped", || opening.has_come(&topology).unwrap());
            let since = Instant::now();
            sleep(lease);
            assert_eq!(mode(&topology, ENDPOINT), "open");
            assert_connects_at_once(&topology, TARGET);
            let took = since.elapsed();
            assert!(
                took < stopped,
                "only after {took:.1?}, when the opening went on"
            );
            let (output, seen) = opening.wait(&topology, LIMIT).unwrap();
            println!("stopped at {}: {:?}", call.number, output.status);
            assert_documented(&output);
            // In time after all, or too late.
            assert!([0, 124].contains(&output.code()), "{output}");
            call.count(&seen);
        }
        assert_none_lost(load, LATEST);
        gate_or(&topology, &["down"], exit::DONE);
        assert!(!exists(&topology, ROOT));
    });
    calls.finish();
}
