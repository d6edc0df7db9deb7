//! A backend, its restart, and its clients.

use std::net::SocketAddr;

use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::{Output, Process, Side, Topology};

use super::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, PORT, connect_once, find_gate, gate_status, shell,
    up, wait_until, wait_until_held,
};

pub const TARGET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(gate_tests::topology::SERVER_V4), PORT);
pub const ENDPOINT_V6: &str = "[fd00::5]:8080";

/// A topology with the gate up and the lab's backend behind it.
pub fn up_with_service() -> (Topology, Service) {
    let topology = up();
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    (topology, service)
}

/// Starts `gate restart` of the endpoint with these options and this command, and returns when
/// the gate is closed.
#[track_caller]
pub fn start_restart(topology: &Topology, options: &[&str], command: &[&str]) -> Process {
    let args = [&["restart", ENDPOINT], options, &["--"], command].concat();
    let process = topology.spawn_gate(args).unwrap();
    wait_until("the gate is closed", || {
        find_gate(topology, ENDPOINT).is_some_and(|gate| gate.mode.name() == "hold")
    });
    process
}

/// The beginning of a shell's command line that waits until it is [let go](let_go).
pub const UNTIL_LET_GO: &str = "until rm /run/go 2>/dev/null; do sleep 0.02; done";

/// Lets a command go on that waits for that.
#[track_caller]
pub fn let_go(topology: &Topology) {
    shell(topology, Side::Server, "touch /run/go");
}

/// Runs `gate restart` of the endpoint to its end.
#[track_caller]
pub fn restart(topology: &Topology, options: &[&str], command: &[&str]) -> Output {
    let args = [&["restart", ENDPOINT], options, &["--"], command].concat();
    topology.gate(args).unwrap()
}

/// A connection that gets through within the time before any retransmission.
#[track_caller]
pub fn assert_connects_at_once(topology: &Topology, target: SocketAddr) {
    let attempt = connect_once(topology, target);
    assert_eq!(attempt.result, Ok(()), "{attempt:?}");
    assert!(attempt.took < BEFORE_RETRANSMISSION, "{attempt:?}");
}

/// A client that is held now, and so waits.
#[track_caller]
pub fn held_client(topology: &Topology, endpoint: &str, target: SocketAddr) -> Clients {
    let before = gate_status(topology, endpoint).waiting.held;
    let client = Clients::one(topology, target);
    wait_until_held(topology, endpoint, before + 1);
    assert_eq!(client.connected(), 0);
    client
}
