//! SIGKILL of a command at every system call in turn: what it left in the maps is whole, the next
//! command or the lease puts things right, and no client is lost. Needs root.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{
    Calls, ENDPOINT, LIMIT, ROOT, TARGET, assert_documented, assert_none_lost, exists, find_gate,
    gate_or, gate_status, mode, snapshot, up_with_service, wait_until,
};
use gate_tests::backend::Options;
use gate_tests::extent::Extent;
use gate_tests::load::{Endless, Load};
use gate_tests::service::Service;
use gate_tests::syscalls::{Fate, traced};
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
    let topology = Topology::new().unwrap();
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let before = snapshot(&topology);
    let restart = ["restart", ENDPOINT, "--max-hold", "1500ms", "--", "true"];
    let (output, seen) = traced(&topology, &Fate::default(), &restart, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    let load = load(&topology);
    let mut calls = Calls::of("restart", &seen);
    while let Some(call) = calls.next() {
        let fate = Fate::killed_at(call);
        let (output, seen) = traced(&topology, &fate, &restart, LIMIT).unwrap();
        calls.tried(&output, &seen);
        match (whole(&topology), calls.round() % 8) {
            // Whoever opens takes away what it left.
            (Some(_), 1 | 3 | 5 | 7) => drop(gate_or(&topology, &["open", ENDPOINT], exit::LEASE)),
            (found, round) => {
                if round == 0 && found.is_some() {
                    wait_for_lease(&topology, ENDPOINT);
                }
                gate_or(&topology, &restart, exit::DONE);
            }
        }
        assert_eq!(snapshot(&topology), before, "killed at {call}: {output}");
    }
    calls.finish();
    assert_none_lost(load, LATEST);
}

#[test]
fn an_opening_killed_at_any_system_call_is_put_right_by_the_next_or_the_lease() {
    let (topology, _service) = up_with_service();
    let hold = ["hold", ENDPOINT, "--for", "1500ms"];
    let open = ["open", ENDPOINT];
    let load = load(&topology);
    let close = || {
        gate_or(&topology, &hold, exit::DONE);
        wait_until("a client is held", || {
            gate_status(&topology, ENDPOINT).waiting.held > 0
        });
    };
    close();
    let (output, seen) = traced(&topology, &Fate::default(), &open, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    let mut calls = Calls::of("open", &seen);
    while let Some(call) = calls.next() {
        close();
        let (output, seen) = traced(&topology, &Fate::killed_at(call), &open, LIMIT).unwrap();
        calls.tried(&output, &seen);
        whole(&topology).expect("it is up");
        match calls.round() % 8 {
            0 => wait_for_lease(&topology, ENDPOINT),
            _ => drop(gate_or(&topology, &open, exit::LEASE)),
        }
        let status = gate_status(&topology, ENDPOINT);
        assert_eq!(status.mode.name(), "open", "killed at {call}: {output}");
    }
    calls.finish();
    assert_none_lost(load, LATEST);
    gate_or(&topology, &["down"], exit::DONE);
    assert!(!exists(&topology, ROOT));
}

/// Longer than the lease of what is stopped.
const STOPPED: Duration = Duration::from_millis(700);

#[test]
fn a_restart_stopped_past_its_lease_at_any_change_keeps_nothing_closed() {
    let topology = Topology::new().unwrap();
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let before = snapshot(&topology);
    let restart = ["restart", ENDPOINT, "--max-hold", "500ms", "--", "true"];
    let (output, seen) = traced(&topology, &Fate::default(), &restart, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    let load = load(&topology);
    let changing = seen.changing();
    let step = changing.len() / Extent::wanted().pick(8, changing.len());
    for call in changing.iter().step_by(step) {
        let fate = Fate {
            pause: Some(STOPPED),
            ..Fate::killed_at(*call)
        };
        // For whoever looks what a client met that waited for long.
        let at = load.begin().elapsed();
        let (output, _) = traced(&topology, &fate, &restart, LIMIT).unwrap();
        println!("at {at:.1?}: stopped at {call}: {:?}", output.status);
        assert_documented(&output);
        // In time after all, or too late.
        assert!(
            [0, 124].contains(&output.code()),
            "stopped at {call}: {output}"
        );
        assert_eq!(snapshot(&topology), before, "stopped at {call}: {output}");
    }
    // A client waits for as long as what holds it is stopped, and goes then: a release that comes after the
    // lease injects what is held all the same. Only where that is forgotten its client waits for its next
    // SYN, and may meet the next closing then.
    assert_none_lost(load, LATEST);
}
