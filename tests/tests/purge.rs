//! `gate purge`: nothing of gate stays, in no network namespace and of no version. Needs root.

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use common::{
    Clients, ENDPOINT, LIMIT, PORT, ROOT, assert_refusal, attached, count, exists, gate,
    gate_by_filters, json, listen, listen_at, mode, shell, tc_state, up, wait_until,
    wait_until_held,
};
use gate_common::abi::{ABI_VERSION, Counter};
use gate_tests::backend::Options;
use gate_tests::exe;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Place, Side, Topology, server_v4};

/// What a purge tells when it finds nothing.
const NOTHING: &str = "there was no trace of gate\n";

/// Nothing is pinned, attached or left in /run, and once more finds nothing.
#[track_caller]
fn assert_nothing_left(topology: &Topology) {
    assert!(!exists(topology, ROOT));
    assert!(!exists(topology, "/run/gate"));
    for interface in ["lo", INTERFACE] {
        assert!(!attached(topology, interface).is_any(), "{interface}");
    }
    assert_eq!(gate(topology, &["purge"]).stdout, NOTHING);
    assert!(!exists(topology, ROOT));
}

/// Runs `gate` in another namespace of the topology, with this variable set or not.
#[track_caller]
fn gate_in(topology: &Topology, place: impl Into<Place>, filters: bool, args: &[&str]) {
    let mut command = Command::new(exe::gate().unwrap());
    command.args(args);
    if filters {
        command.env("GATE_NO_TCX", "1");
    }
    let output = topology.output(place, &mut command, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
}

#[test]
fn a_purge_releases_what_is_held_and_leaves_nothing() {
    let topology = up();
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["define", "web", ENDPOINT]);
    // Which attaches to the look-up of listeners.
    let _other = Service::start(&topology, Options::new(server_v4(8082))).unwrap();
    gate(&topology, &["handover", "web", "--to", "10.0.0.5:8082"]);
    gate(&topology, &["hold", "web"]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, "web", 1);
    let held_again = count(&topology, "web", Counter::Refreshed);
    let text = gate(&topology, &["purge"]).stdout;
    assert_eq!(text, "detached from eth0; 1 connection released first\n");
    assert!(client.finish_sent_again() <= held_again);
    assert_nothing_left(&topology);
}

#[test]
fn filters_and_their_qdisc_go_too_and_those_of_others_stay() {
    let topology = Topology::new().unwrap();
    let before = tc_state(&topology, INTERFACE);
    gate_by_filters(&topology, &["up", INTERFACE]);
    assert_ne!(tc_state(&topology, INTERFACE), before);
    gate(&topology, &["purge"]);
    assert_eq!(tc_state(&topology, INTERFACE), before);

    shell(
        &topology,
        Side::Server,
        "tc qdisc add dev eth0 clsact && tc filter add dev eth0 ingress pref 7 u32 match u32 0 0",
    );
    let before = tc_state(&topology, INTERFACE);
    gate_by_filters(&topology, &["up", INTERFACE]);
    gate(&topology, &["purge"]);
    assert_eq!(tc_state(&topology, INTERFACE), before);
    assert_nothing_left(&topology);
}

#[test]
fn a_purge_enters_other_network_namespaces_and_opens_there() {
    for filters in [false, true] {
        let topology = up();
        let other = "10.0.0.1:8080".parse().unwrap();
        let _listener = listen_at(&topology, Side::Client, other);
        // A namespace is found by a process that is in it.
        let mut sleep = Command::new("sleep");
        let _inside = topology.spawn(Side::Client, sleep.arg("600")).unwrap();
        gate_in(&topology, Side::Client, filters, &["up", INTERFACE]);
        gate_in(
            &topology,
            Side::Client,
            false,
            &["hold", "10.0.0.1:8080", "--for", "1m"],
        );
        let client = Clients::one_at(&topology, Side::Server, other);
        let held = || {
            let mut status = Command::new(exe::gate().unwrap());
            let output = topology
                .output(Side::Client, status.args(["status", "--json"]), LIMIT)
                .unwrap();
            json(&output)["gates"][0]["held"] == 1
        };
        wait_until("its SYN is held", held);
        let purged = json(&gate(&topology, &["purge", "--json"]));
        assert_eq!(purged["elsewhere"][0]["down"]["interfaces"][0], INTERFACE);
        assert_eq!(purged["elsewhere"][0]["down"]["released"], 1, "{purged}");
        assert_eq!(purged["here"]["interfaces"][0], INTERFACE);
        client.finish_connected();
        let left = shell(
            &topology,
            Side::Client,
            "tc filter show dev eth0 ingress; tc qdisc show dev eth0 clsact",
        );
        assert_eq!(left, "");
        assert_nothing_left(&topology);
    }
}

#[test]
fn pins_of_a_namespace_that_is_gone_go_too() {
    let topology = Topology::new().unwrap();
    for filters in [false, true] {
        let gone = topology.namespace().unwrap();
        gate_in(&topology, &gone, filters, &["up", "lo"]);
        gate_in(&topology, &gone, false, &["hold", "127.0.0.1:80"]);
        drop(gone);
    }
    assert!(exists(&topology, ROOT));
    let purged = json(&gate(&topology, &["purge", "--json"]));
    let gone = purged["elsewhere"].as_array().unwrap();
    assert!(!gone.is_empty(), "{purged}");
    assert!(gone.iter().all(|one| one["reached"] == false), "{purged}");
    assert_eq!(purged["here"]["was_up"], false);
    assert_nothing_left(&topology);
}

#[test]
fn pins_of_other_versions_go_too() {
    let topology = up();
    gate(&topology, &["hold", ENDPOINT]);
    // As an older version would have left them, attached, with a half built folder and a stranger's.
    let own = format!("{ROOT}/v{ABI_VERSION}");
    shell(
        &topology,
        Side::Server,
        &format!("umask 077; mv {own} {ROOT}/v1; mkdir -p {ROOT}/v2/building/links {ROOT}/odd"),
    );
    assert!(attached(&topology, INTERFACE).is_any());
    let text = gate(&topology, &["purge"]).stdout;
    assert!(
        text.contains(&format!("removed {ROOT}/v2/building\n")),
        "{text}"
    );
    assert_nothing_left(&topology);
}

#[test]
fn while_the_daemon_answers_a_purge_is_refused_unless_it_is_forced() {
    let topology = up();
    gate(&topology, &["hold", ENDPOINT]);
    let socket = "/run/gate/gate.sock";
    shell(&topology, Side::Server, "mkdir /run/gate");
    let daemon = topology.run(Side::Server, || Ok(UnixListener::bind(socket)?));
    let output = topology.gate(["purge"]).unwrap();
    assert_refusal(&output, 3, &[socket, "systemctl stop gate", "--force"]);
    assert_eq!(mode(&topology, ENDPOINT), "hold");
    gate(&topology, &["purge", "--force"]);
    assert_nothing_left(&topology);
    drop(daemon);

    // A socket that a killed daemon left is no daemon.
    shell(&topology, Side::Server, "mkdir /run/gate");
    drop(topology.run(Side::Server, || Ok(UnixListener::bind(socket)?)));
    wait_until("nobody listens", || {
        let connect = || Ok(UnixStream::connect(socket).is_err());
        topology.run(Side::Server, connect).unwrap()
    });
    assert_eq!(gate(&topology, &["purge"]).stdout, "removed /run/gate\n");
    assert_nothing_left(&topology);
}
