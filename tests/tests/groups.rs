//! Gates with a name: many endpoints that close and open together. Needs root.

mod common;

use std::net::{SocketAddr, TcpListener};

use common::{
    BEFORE_RETRANSMISSION, Clients, LIMIT, PORT, ROOT, assert_complaint, close, connect_once,
    count, exists, find_gate, gate, gate_status, listen, mode, refused, shell, status, up,
    wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4, server_v6};
use serde_json::Value;

const OTHER_PORT: u16 = 8081;
const V4: &str = "10.0.0.5:8080";
const OTHER: &str = "10.0.0.5:8081";
const V6: &str = "[fd00::5]:8080";

const DEFINE: [&str; 5] = ["define", "web", V4, OTHER, V6];

fn targets() -> [SocketAddr; 3] {
    [server_v4(PORT), server_v4(OTHER_PORT), server_v6(PORT)]
}

/// A topology with the gate up and `web` defined.
fn up_with_web() -> Topology {
    let topology = up();
    gate(&topology, &DEFINE);
    topology
}

fn json(topology: &Topology, args: &[&str]) -> Value {
    let output = gate(topology, &[&["--json"], args].concat());
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn all_endpoints_of_a_gate_close_and_open_by_its_name() {
    let topology = up_with_web();
    let listeners = listen_at_all(&topology, &targets());
    gate(&topology, &["hold", "web", "--for", "30s"]);
    let clients = targets().map(|target| Clients::one(&topology, target));
    wait_until_held(&topology, "web", 3);
    assert_eq!(count(&topology, "web", Counter::Held), 3);
    let opened = gate(&topology, &["open", "web"]);
    assert!(
        opened.stdout.starts_with("web: open; 3 connections"),
        "{opened}"
    );
    for client in clients {
        for attempt in client.finish() {
            assert_eq!(attempt.result, Ok(()), "{attempt:?}");
            assert!(attempt.took < LIMIT, "{attempt:?}");
        }
    }
    drop(listeners);
}

#[test]
fn a_gate_rejects_at_all_its_endpoints_and_at_no_other() {
    let topology = up_with_web();
    let apart = server_v4(OTHER_PORT + 1);
    let _listeners = listen_at_all(&topology, &targets());
    let _another = listen(&topology, apart);
    gate(&topology, &["reject", "web"]);
    for target in targets() {
        let refused = connect_once(&topology, target);
        assert!(refused.result.is_err(), "{refused:?}");
        assert!(refused.took < BEFORE_RETRANSMISSION, "{refused:?}");
    }
    assert_eq!(connect_once(&topology, apart).result, Ok(()));
}

fn listen_at_all(topology: &Topology, targets: &[SocketAddr]) -> Vec<TcpListener> {
    let each = targets.iter();
    each.map(|target| listen(topology, *target)).collect()
}

#[test]
fn a_gate_is_one_word_however_many_endpoints_it_has() {
    let topology = up();
    let many: Vec<String> = (1..=200).map(|port| format!("10.0.0.5:{port}")).collect();
    let mut args = vec!["define", "many"];
    args.extend(many.iter().map(String::as_str));
    gate(&topology, &args);
    gate(&topology, &["drop", "many"]);
    let gates = status(&topology).gates;
    assert_eq!(gates.len(), 1);
    assert_eq!(gates[0].gate.endpoints.len(), 200);
    assert_eq!(gates[0].mode.name(), "drop");
}

#[test]
fn status_shows_the_name_and_what_it_stands_for() {
    let topology = up_with_web();
    let text = gate(&topology, &["status"]).stdout;
    let row = text.lines().find(|line| line.starts_with("web ")).unwrap();
    assert!(row.contains("open"), "{text}");
    assert!(
        text.ends_with(&format!("web: {V4}, {OTHER}, {V6}\n")),
        "{text}"
    );
    let fields = json(&topology, &["status"]);
    let known = &fields["gates"][0];
    assert_eq!(known["gate"], "web");
    assert_eq!(known["name"], "web");
    assert_eq!(known["endpoints"], serde_json::json!([V4, OTHER, V6]));
}

#[test]
fn a_restart_by_name_waits_for_all_endpoints() {
    let topology = up_with_web();
    let listeners = listen_at_all(&topology, &targets());
    let fields = json(&topology, &["restart", "web", "--", "true"]);
    assert_eq!(fields["outcome"], "healthy", "{fields}");
    assert_eq!(fields["gates"], serde_json::json!(["web"]));
    assert_eq!(fields["endpoints"], serde_json::json!([V4, OTHER, V6]));
    for listener in listeners {
        close(&topology, listener);
    }
    let output = topology
        .gate(["restart", "web", "--max-hold", "2s", "--", "true"])
        .unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["nothing listens"]);
    assert_eq!(mode(&topology, "web"), "open");
}

#[test]
fn a_definition_outlives_a_restart_that_attached_by_itself() {
    let topology = Topology::new().unwrap();
    let defined = gate(&topology, &["define", "web", V4, "127.0.0.1:8080"]);
    assert_eq!(defined.stdout, format!("web: {V4}, 127.0.0.1:8080\n"));
    refused(&topology, &["hold", "web"], 3, &["not up", "gate up"]);
    let _listeners = listen_at_all(
        &topology,
        &[server_v4(PORT), "127.0.0.1:8080".parse().unwrap()],
    );
    let pins = || shell(&topology, Side::Server, "find /sys/fs/bpf | sort");
    let before = pins();
    for _ in 0..2 {
        let fields = json(&topology, &["restart", "web", "--", "true"]);
        assert!(
            !fields["attached"].as_array().unwrap().is_empty(),
            "{fields}"
        );
        assert_eq!(pins(), before);
    }
    gate(&topology, &["up", INTERFACE]);
    assert_eq!(find_gate(&topology, "web").unwrap().gate.endpoints.len(), 2);
    gate(&topology, &["down"]);
    refused(&topology, &["hold", "web"], 3, &["not up"]);
    assert!(!exists(&topology, ROOT));
}

#[test]
fn defining_again_replaces_the_endpoints() {
    let topology = up_with_web();
    let again = gate(&topology, &DEFINE);
    assert!(again.stdout.ends_with("defined so already\n"), "{again}");
    let fewer = gate(&topology, &["define", "web", V4, V4]);
    assert!(
        fewer.stdout.contains(&format!("without {OTHER}, {V6}")),
        "{fewer}"
    );
    gate(&topology, &["reject", "web"]);
    let _listeners = listen_at_all(&topology, &targets());
    assert!(connect_once(&topology, server_v4(PORT)).result.is_err());
    for still_open in [server_v4(OTHER_PORT), server_v6(PORT)] {
        assert_eq!(connect_once(&topology, still_open).result, Ok(()));
    }
    // What went may go elsewhere.
    gate(&topology, &["define", "other", OTHER]);
    assert_eq!(mode(&topology, "other"), "open");
}

#[test]
fn an_endpoint_that_was_closed_by_itself_can_join_when_it_is_open() {
    let topology = up();
    gate(&topology, &["hold", V4]);
    refused(&topology, &DEFINE, 3, &[V4, "closed", "gate open"]);
    gate(&topology, &["open", V4]);
    gate(&topology, &DEFINE);
    let names: Vec<String> = status(&topology)
        .gates
        .iter()
        .map(|gate| gate.gate.to_string())
        .collect();
    assert_eq!(names, ["web"]);
}

#[test]
fn an_endpoint_closes_with_its_gate_only() {
    let topology = up_with_web();
    for verb in ["hold", "drop", "reject", "open"] {
        refused(&topology, &[verb, V4], 3, &[V4, "belongs to gate web"]);
    }
    refused(
        &topology,
        &["restart", V4, "--", "true"],
        3,
        &["belongs to gate web"],
    );
    refused(
        &topology,
        &["define", "other", V4],
        3,
        &["belongs to gate web"],
    );
}

#[test]
fn a_closed_gate_is_neither_changed_nor_forgotten() {
    let topology = up_with_web();
    gate(&topology, &["hold", "web", "--for", "1m"]);
    refused(&topology, &["define", "web", V4], 3, &["web is closed"]);
    refused(&topology, &["forget", "web"], 3, &["web is closed"]);
    gate(&topology, &["open", "web"]);
    gate(&topology, &["forget", "web"]);
    assert_eq!(status(&topology).gates.len(), 0);
    refused(&topology, &["forget", "web"], 3, &["no gate web"]);
    gate(&topology, &["hold", V4]);
    assert_eq!(mode(&topology, V4), "hold");
}

#[test]
fn what_is_no_gate_is_told() {
    let topology = up();
    for args in [
        &["hold", "web"][..],
        &["open", "web"],
        &["restart", "web", "--", "true"],
        &["forget", "web"],
    ] {
        refused(&topology, args, 3, &["no gate web", "gate define web"]);
    }
    for (args, word) in [
        (&["define", "web"][..], "ENDPOINT"),
        (&["define", "1web", V4], "no name"),
        (&["define", "a.b", V4], "no name"),
        (&["define", V4, V4], "no name"),
        (
            &["define", "web", "localhost:80"],
            "names are not looked up",
        ),
        (
            &["define", "web", "*:80", "10.0.0.5:80"],
            "leave one of them out",
        ),
    ] {
        refused(&topology, args, 2, &[word]);
    }
}

#[test]
fn gates_of_single_endpoints_give_way_and_named_ones_do_not() {
    let topology = up_with_web();
    let endpoints: Vec<String> = (1..=1023).map(|port| format!("*:{port}")).collect();
    for chunk in endpoints.chunks(300) {
        let mut args = vec!["drop", "--for", "1ms"];
        args.extend(chunk.iter().map(String::as_str));
        gate(&topology, &args);
    }
    assert_eq!(status(&topology).gates.len(), 1023);
    assert_eq!(gate_status(&topology, "web").gate.endpoints.len(), 3);
}
