//! A machine that is suspended: its leases run on meanwhile. Needs root, and a machine for it.

mod common;

use std::time::Duration;

use common::{
    Clients, ENDPOINT, LIMIT, PORT, TARGET, assert_complaint, assert_connects_at_once, count, gate,
    gate_status, held_client, listen, mode, start_restart, up,
};
use gate_common::abi::Counter;
use gate_tests::suspend;
use gate_tests::topology::{Process, Topology, server_v4};

/// It runs out while the machine is asleep.
const SHORT: &str = "20s";
/// It does not.
const LONG: &str = "10m";
/// Longer than the short lease, also where the machine takes its time to be suspended.
const ASLEEP: Duration = Duration::from_secs(24);
/// What it is asleep for at the least.
const SURELY_ASLEEP: Duration = Duration::from_secs(20);

#[test]
fn leases_run_on_while_the_machine_is_suspended() {
    if !suspend::is_allowed() {
        return;
    }
    let topology = up();
    let _listeners = [PORT, PORT + 1, PORT + 2].map(|port| listen(&topology, server_v4(port)));
    // The leases that run out begin last, so that they are not over before the machine is asleep.
    let long = Held::start(&topology, PORT + 1, LONG);
    let short = Held::start(&topology, PORT + 2, SHORT);
    let restart = start_restart(&topology, &["--max-hold", SHORT], &["sleep", "100"]);
    let restarted = held_client(&topology, ENDPOINT, TARGET);
    for endpoint in [ENDPOINT, &short.endpoint] {
        assert_eq!(mode(&topology, endpoint), "hold");
    }
    let left = long.lease_left(&topology);
    suspend::suspend(ASLEEP).unwrap();
    let shrunk = left - long.lease_left(&topology);
    assert_eq!(mode(&topology, &short.endpoint), "open");
    assert_ends_at_once(&topology, &restart, restarted);
    assert_connects_at_once(&topology, server_v4(PORT + 2));
    short.client.finish_connected();
    assert!(shrunk >= SURELY_ASLEEP, "{shrunk:?}");
    assert!(shrunk < ASLEEP + LIMIT, "{shrunk:?}");
    assert_released_by_opening(&topology, long);
}

/// An endpoint that is closed, and a client that waits there.
struct Held {
    endpoint: String,
    client: Clients,
}

impl Held {
    #[track_caller]
    fn start(topology: &Topology, port: u16, lease: &str) -> Self {
        let target = server_v4(port);
        let endpoint = target.to_string();
        gate(topology, &["hold", &endpoint, "--for", lease]);
        let client = held_client(topology, &endpoint, target);
        Self { endpoint, client }
    }

    #[track_caller]
    fn lease_left(&self, topology: &Topology) -> Duration {
        let lease = gate_status(topology, &self.endpoint).lease;
        lease.expect("the gate is closed")
    }
}

/// The restart knows that its lease is over, and so does its client.
#[track_caller]
fn assert_ends_at_once(topology: &Topology, restart: &Process, client: Clients) {
    // A clock that stood still meanwhile would tell it most of a lease later.
    let output = restart.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["--max-hold 20s", "command stopped"]);
    assert_eq!(mode(topology, ENDPOINT), "open");
    client.finish_connected();
}

/// What is held was held all the time, and is not lost.
#[track_caller]
fn assert_released_by_opening(topology: &Topology, held: Held) {
    assert_eq!(mode(topology, &held.endpoint), "hold");
    assert_eq!(held.client.connected(), 0);
    gate(topology, &["open", &held.endpoint]);
    assert_eq!(count(topology, &held.endpoint, Counter::Released), 1);
    held.client.finish_connected();
}
