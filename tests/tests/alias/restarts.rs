//! Aliases of what is restarted.

use std::time::Duration;

use gate_tests::topology::Topology;
use gate_userspace::alias::State;

use crate::common::{
    Clients, ENDPOINT, LIMIT, MS, UNTIL_LET_GO, assert_connects_at_once, gate, gate_status, let_go,
    status, wait_until,
};
use crate::{
    STATUS, ask, assert_refused_at_once, by_status, kill, open_stream, start, states,
    web_with_alias,
};

#[test]
fn a_restart_makes_the_new_listener_known_before_the_gate_opens() {
    let (topology, service) = web_with_alias();
    for round in 0..3 {
        let command = service.restart_command(100 * MS).unwrap();
        let words: Vec<&str> = command.iter().map(|it| it.to_str().unwrap()).collect();
        let line = format!("{UNTIL_LET_GO}; exec \"$@\"");
        let shell = ["restart", "web", "--", "sh", "-c", &line, "sh"];
        let args = [&shell, &words[..]].concat();
        let restart = topology.spawn_gate(args).unwrap();
        wait_until("the gate is closed", || {
            gate_status(&topology, "web").mode.name() == "hold"
        });
        let client = Clients::one(&topology, by_status());
        let_go(&topology);
        let restarted = restart.wait(LIMIT).unwrap();
        assert_eq!(restarted.code(), 0, "{round}: {restarted}");
        client.finish_connected();
        ask(&open_stream(&topology, by_status()));
        assert_eq!(states(&topology), [State::Answers]);
    }
}

#[test]
fn after_a_restart_without_gate_an_alias_refuses_until_it_is_told() {
    let (topology, service) = web_with_alias();
    kill(&service);
    assert_eq!(states(&topology), [State::Silent]);
    assert_refused_at_once(&topology, by_status());
    let service = start(&topology, &[ENDPOINT]);
    assert_eq!(states(&topology), [State::Stale]);
    assert_refused_at_once(&topology, by_status());
    let shown = gate(&topology, &["status"]).stdout;
    assert!(
        shown.contains("`gate soft-start web` makes known"),
        "{shown}"
    );
    gate(&topology, &["soft-start", "web"]);
    assert_connects_at_once(&topology, by_status());

    gate(&topology, &["hold", "web", "--for", "30s"]);
    kill(&service);
    let _service = start(&topology, &[ENDPOINT]);
    gate(&topology, &["open", "web"]);
    assert_connects_at_once(&topology, by_status());
}

#[test]
fn a_restart_without_gate_up_keeps_the_alias_of_an_endpoint() {
    let topology = Topology::new().unwrap();
    let service = start(&topology, &[ENDPOINT]);
    gate(&topology, &["alias", ENDPOINT, STATUS]);
    assert_connects_at_once(&topology, by_status());
    let command = service.restart_command(50 * MS).unwrap();
    let words: Vec<&str> = command.iter().map(|it| it.to_str().unwrap()).collect();
    let args = [&["restart", ENDPOINT, "--"], &words[..]].concat();
    topology.gate(args).unwrap().ok().unwrap();
    assert_connects_at_once(&topology, by_status());
    let shown = status(&topology);
    assert!(shown.attachments.is_empty(), "{shown:?}");
    gate(&topology, &["alias", ENDPOINT, STATUS, "--remove"]);
    assert_refused_at_once(&topology, by_status());
}

#[test]
fn a_drain_before_a_restart_waits_for_what_came_by_an_alias() {
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    let args = [
        "restart",
        "web",
        "--drain",
        "30s",
        "--max-hold",
        "60s",
        "--",
        "true",
    ];
    let restart = topology.spawn_gate(args).unwrap();
    wait_until("it waits for the connection", || {
        restart
            .stderr()
            .unwrap()
            .contains("waiting for 1 connection")
    });
    drop(stream);
    let restarted = restart.wait(LIMIT).unwrap();
    assert_eq!(restarted.code(), 0, "{restarted}");
}

#[test]
fn a_restart_under_load_refuses_nobody_by_an_alias() {
    let (topology, service) = web_with_alias();
    let load = gate_tests::load::Load::new(by_status(), 200, Duration::from_secs(2));
    let running = load.start(&topology).unwrap();
    let command = service.restart_command(300 * MS).unwrap();
    let words: Vec<&str> = command.iter().map(|it| it.to_str().unwrap()).collect();
    let args = [&["restart", "web", "--"], &words[..]].concat();
    topology.gate(args).unwrap().ok().unwrap();
    let requests = running.finish().unwrap();
    let failed: Vec<_> = requests
        .iter()
        .filter(|it| it.outcome != gate_tests::load::Outcome::Ok)
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}
