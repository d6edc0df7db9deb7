//! Many commands at once on one gate, and against the daemon. Needs root.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{
    ENDPOINT, LIMIT, TARGET, assert_connects_at_once, assert_documented, assert_none_lost,
    find_gate, gate, get, start_daemon, stop_daemon, up_with_service, wait_until,
};
use gate_tests::backend::Options;
use gate_tests::extent::Extent;
use gate_tests::load::{Endless, Load};
use gate_tests::service::Service;
use gate_tests::topology::{Process, Side, Topology};
use gate_userspace::pins::Pins;
use gate_userspace::status;
use nix::sys::signal::Signal;

/// How many commands run at once.
const AT_ONCE: usize = 100;

/// The longest lease of the commands here, then a retransmission, and a busy machine.
const LATEST: Duration = Duration::from_secs(9);

/// What each of them says about the gate, in turn.
fn verbs(gate: &str) -> [Vec<&str>; 8] {
    [
        vec!["hold", gate, "--for", "1s"],
        vec!["open", gate],
        vec!["status", "--json"],
        vec!["restart", gate, "--max-hold", "2s", "--", "true"],
        vec!["drop", gate, "--for", "500ms"],
        vec!["open", "--all"],
        vec!["guard", gate, "--for", "2s"],
        vec!["guard", gate, "--off"],
    ]
}

fn load(topology: &Topology) -> Endless {
    let load = Load::new(TARGET, 20, Duration::ZERO);
    load.start_endless(topology, Side::Client).unwrap()
}

/// Starts them all, and waits until the last has ended; how many ended with which code.
#[track_caller]
fn race(topology: &Topology, gate: &str) -> BTreeMap<i32, usize> {
    let verbs = verbs(gate);
    let start = |index: usize| topology.spawn_gate(&verbs[index % verbs.len()]).unwrap();
    let all: Vec<Process> = (0..AT_ONCE).map(start).collect();
    let mut codes = BTreeMap::new();
    for one in all {
        let output = one.wait(LIMIT * 2).unwrap();
        assert_documented(&output);
        let refusals = [
            "another gate command",
            "being restarted by another",
            "the lease ran out",
            "another command",
            "within --max-hold",
        ];
        let is_refused = refusals.iter().any(|text| output.stderr.contains(text));
        assert!(output.code() == 0 || is_refused, "{output}");
        *codes.entry(output.code()).or_default() += 1;
    }
    codes
}

/// Nobody has the lock, and the gate does what it is told.
#[track_caller]
fn assert_at_rest(topology: &Topology, name: &str) {
    // A daemon may be at work still.
    wait_until("the lock is free", || {
        let lock = topology.run(Side::Server, || Ok(Pins::here()?.try_lock()?.is_some()));
        lock.unwrap()
    });
    gate(topology, &["guard", name, "--off"]);
    gate(topology, &["hold", name, "--for", "20s"]);
    assert_eq!(find_gate(topology, name).unwrap().mode.name(), "hold");
    gate(topology, &["open", name]);
    let status = topology.run(Side::Server, || Ok(status::read(&Pins::here()?)?));
    let status = status.unwrap().expect("it is up");
    for gate in &status.gates {
        assert_eq!(
            (gate.mode.name(), gate.waiting.held),
            ("open", 0),
            "{gate:?}"
        );
    }
    assert_connects_at_once(topology, TARGET);
}

#[test]
fn a_hundred_commands_at_once_on_one_gate_leave_it_in_a_legal_state() {
    let (topology, _service) = up_with_service();
    let load = load(&topology);
    for _ in 0..Extent::wanted().pick(1, 10) {
        println!("ended with: {:?}", race(&topology, ENDPOINT));
        assert_at_rest(&topology, ENDPOINT);
    }
    assert_none_lost(load, LATEST);
}

#[test]
fn a_hundred_commands_at_once_against_the_daemon_leave_both_well() {
    let topology = Topology::new().unwrap();
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let config = "[gate.web]\nendpoints = ['10.0.0.5:8080']\ninterfaces = ['eth0']\n\
                  [gate.web.on_down]\ndo = 'hold'\n\
                  [[gate.web.check]]\ntcp = '10.0.0.5:8080'\ninterval = '50ms'\n";
    let daemon = start_daemon(&topology, config);
    let load = load(&topology);
    for _ in 0..Extent::wanted().pick(1, 10) {
        println!("ended with: {:?}", race(&topology, "web"));
        daemon.signal(Signal::SIGHUP).unwrap();
        assert!(get(&topology, "/v1").is_some());
        assert_at_rest(&topology, "web");
    }
    assert_none_lost(load, LATEST);
    stop_daemon(&daemon);
    let said = daemon.stderr().unwrap();
    assert!(!said.contains("panicked"), "{said}");
}
