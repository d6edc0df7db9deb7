//! Without a process that watches.

use std::io::ErrorKind;
use std::thread::sleep;

use gate_common::abi::Counter;
use gate_tests::topology::{server_v4, server_v6};

use crate::common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, MS, PORT, assert_connects_at_once, close,
    connect_once, count, gate, gate_status, held_client, json, listen, mode, refused, restart, up,
    wait_until, wait_until_counted,
};
use crate::{LOOPBACK, V6, assert_guarded, guarded, is_dirty, listen_again, watch};

#[test]
fn a_connection_to_nobody_is_held_and_its_retransmission_connects() {
    let topology = guarded();
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    sleep(300 * MS);
    let _listener = listen(&topology, server_v4(PORT));
    let took = client.finish_connected();
    assert!(took >= BEFORE_RETRANSMISSION, "{took:?}");
    assert_eq!(count(&topology, ENDPOINT, Counter::Held), 1);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 0);
    // It waits no more, though nobody has cleared up.
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 0);
    assert_connects_at_once(&topology, server_v4(PORT));
}

#[test]
fn a_dead_service_refuses_after_the_lease_and_the_next_outage_has_its_own() {
    let topology = up();
    gate(&topology, &["guard", ENDPOINT, "--for", "500ms"]);
    for round in 0..2 {
        let first = connect_once(&topology, server_v4(PORT));
        assert_eq!(first.result, Err(ErrorKind::ConnectionRefused), "{round}");
        // The first retransmission finds the lease over.
        assert!(first.took >= BEFORE_RETRANSMISSION, "{round}: {first:?}");
        let second = connect_once(&topology, server_v4(PORT));
        assert_eq!(second.result, Err(ErrorKind::ConnectionRefused), "{round}");
        assert!(second.took < BEFORE_RETRANSMISSION, "{round}: {second:?}");
        let listener = listen_again(&topology, server_v4(PORT), false);
        assert_connects_at_once(&topology, server_v4(PORT));
        close(&topology, listener);
    }
    assert_eq!(count(&topology, ENDPOINT, Counter::Held), 2);
}

#[test]
fn a_backend_that_listens_is_not_touched() {
    let topology = guarded();
    let _listener = listen(&topology, server_v4(PORT));
    Clients::start(&topology, server_v4(PORT), 50, None).finish_connected();
    assert_eq!(count(&topology, ENDPOINT, Counter::Passed), 50);
    assert_eq!(count(&topology, ENDPOINT, Counter::Held), 0);
}

#[test]
fn what_is_guarded_is_shown() {
    let topology = up();
    let said = gate(&topology, &["guard", ENDPOINT, "--for", "30s"]).stdout;
    assert!(said.contains("guarded") && said.contains("30s"), "{said}");
    assert!(said.contains("nothing listens"), "{said}");
    let status = json(&gate(&topology, &["status", "--json"]));
    assert_eq!(status["gates"][0]["guard"]["lease_ms"], 30_000.0);
    assert_eq!(
        status["gates"][0]["guard"]["missing"],
        serde_json::json!([])
    );

    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    let text = gate(&topology, &["status"]).stdout;
    assert!(text.contains("open, guarded"), "{text}");
    let line = format!("\n{ENDPOINT}: nothing listens, for ");
    assert!(text.contains(&line), "{text}");
    let status = json(&gate(&topology, &["status", "--json"]));
    let missing = &status["gates"][0]["guard"]["missing"][0];
    assert_eq!(missing["endpoint"], ENDPOINT);
    assert!(missing["missing_ms"].as_f64().unwrap() > 0.0, "{missing}");
    assert_eq!(missing["lease_over"], false);
    assert_eq!(status["gates"][0]["held"], 1);

    let listener = listen(&topology, server_v4(PORT));
    client.finish_connected();
    let quiet = gate(&topology, &["guard", ENDPOINT]).stdout;
    assert!(!quiet.contains("nothing listens there"), "{quiet}");
    close(&topology, listener);
}

#[test]
fn the_guard_outlives_closing_and_opening() {
    let topology = guarded();
    let listener = listen_again(&topology, server_v4(PORT), false);
    gate(&topology, &["hold", ENDPOINT]);
    assert_eq!(mode(&topology, ENDPOINT), "hold");
    assert_guarded(&topology, ENDPOINT, true);
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    gate(&topology, &["open", ENDPOINT]);
    client.finish_connected();
    gate(&topology, &["reject", ENDPOINT, "--for", "3s"]);
    let refused = connect_once(&topology, server_v4(PORT));
    assert_eq!(refused.result, Err(ErrorKind::ConnectionRefused));
    wait_until("the lease is over", || mode(&topology, ENDPOINT) == "open");
    assert_guarded(&topology, ENDPOINT, true);
    restart(&topology, &["--quiesce", "0s"], &["true"])
        .ok()
        .unwrap();
    assert_guarded(&topology, ENDPOINT, true);
    close(&topology, listener);
    held_client(&topology, ENDPOINT, server_v4(PORT));
}

#[test]
fn what_a_guard_holds_goes_on_being_held_by_a_close() {
    let topology = guarded();
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let _listener = listen(&topology, server_v4(PORT));
    let opened = gate(&topology, &["open", ENDPOINT]).stdout;
    assert!(opened.contains("1 connection held"), "{opened}");
    client.finish_released(&topology, ENDPOINT);
}

#[test]
fn what_a_gate_holds_is_left_to_its_guard_where_nothing_listens() {
    let topology = guarded();
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let opened = gate(&topology, &["open", ENDPOINT]).stdout;
    assert!(
        opened.contains("1 connection held on by the guard"),
        "{opened}"
    );
    assert_eq!(mode(&topology, ENDPOINT), "open");
    assert!(is_dirty(&topology));
    let failed = restart(&topology, &["--quiesce", "0s"], &["false"]);
    assert_eq!(failed.code(), 1, "{failed}");
    assert!(failed.stdout.contains("held on by the guard"), "{failed}");
    assert!(is_dirty(&topology));
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 1);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 0);
    let _listener = listen(&topology, server_v4(PORT));
    client.finish_connected();
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 0);
}

#[test]
fn other_commands_leave_alone_what_a_guard_holds() {
    let topology = guarded();
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    gate(&topology, &["hold", "10.0.0.5:9090"]);
    gate(&topology, &["open", "10.0.0.5:9090"]);
    gate(&topology, &["guard", "10.0.0.5:9091"]);
    gate(&topology, &["guard", "10.0.0.5:9091", "--off"]);
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 1);
    let _listener = listen(&topology, server_v4(PORT));
    client.finish_connected();
}

#[test]
fn guard_off_releases_what_is_held_and_refuses_again() {
    let topology = guarded();
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    let listener = listen_again(&topology, server_v4(PORT), false);
    let said = gate(&topology, &["guard", ENDPOINT, "--off"]).stdout;
    assert!(said.contains("1 connection held, now released"), "{said}");
    client.finish_released(&topology, ENDPOINT);
    assert_guarded(&topology, ENDPOINT, false);
    close(&topology, listener);
    let refused = connect_once(&topology, server_v4(PORT));
    assert_eq!(refused.result, Err(ErrorKind::ConnectionRefused));
    let again = gate(&topology, &["guard", ENDPOINT, "--off"]).stdout;
    assert!(again.contains("was not guarded"), "{again}");
}

#[test]
fn guard_off_leaves_a_closed_gate_closed() {
    let topology = guarded();
    gate(&topology, &["hold", ENDPOINT]);
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    gate(&topology, &["guard", ENDPOINT, "--off"]);
    assert_eq!(mode(&topology, ENDPOINT), "hold");
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 1);
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["open", ENDPOINT]);
    client.finish_released(&topology, ENDPOINT);
}

#[test]
fn down_releases_what_a_guard_holds() {
    let topology = guarded();
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    let _listener = listen(&topology, server_v4(PORT));
    let held_again = count(&topology, ENDPOINT, Counter::Refreshed);
    gate(&topology, &["down"]);
    assert!(client.finish_sent_again() <= held_again);
}

#[test]
fn what_cannot_be_guarded_is_refused() {
    let topology = up();
    let remote = ["no address of this host", "backend's host", "gate hold"];
    refused(&topology, &["guard", "10.0.0.1:8080"], 3, &remote);
    refused(&topology, &["guard", "192.0.2.1:8080"], 3, &remote);
    refused(&topology, &["guard", LOOPBACK], 3, &["gate up lo"]);
    refused(&topology, &["guard", "web"], 3, &["web"]);
    refused(&topology, &["guard", ENDPOINT, "--off", "--watch"], 2, &[]);
    refused(
        &topology,
        &["guard", ENDPOINT, "--off", "--for", "1s"],
        2,
        &[],
    );
    refused(&topology, &["guard", ENDPOINT, "--for", "0s"], 2, &["1ms"]);
    gate(&topology, &["down"]);
    refused(&topology, &["guard", ENDPOINT], 3, &["gate is not up"]);
}

#[test]
fn a_guarded_gate_is_neither_forgotten_nor_taken_apart() {
    let topology = up();
    gate(&topology, &["define", "web", ENDPOINT, V6]);
    gate(&topology, &["guard", "web"]);
    let words = ["web is guarded", "gate guard web --off"];
    refused(&topology, &["forget", "web"], 3, &words);
    let words = ["192.0.2.9:80 is no address of this host"];
    let remote = ["define", "web", ENDPOINT, V6, "192.0.2.9:80"];
    refused(&topology, &remote, 3, &words);
    gate(&topology, &["guard", "10.0.0.5:9090"]);
    let words = ["10.0.0.5:9090 is guarded"];
    refused(&topology, &["define", "other", "10.0.0.5:9090"], 3, &words);
    held_client(&topology, "web", server_v6(PORT));
    gate(&topology, &["guard", "web", "--off"]);
    gate(&topology, &["forget", "web"]);
}

#[test]
fn what_a_gate_held_for_longer_than_the_lease_is_not_released() {
    let topology = up();
    let watcher = watch(&topology, &[ENDPOINT, "--for", "100ms"]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_counted(&topology, ENDPOINT, Counter::Held, 1);
    wait_until("the lease is over", || {
        watcher.stderr().unwrap().contains("are refused")
    });
    sleep(150 * MS);
    let _listener = listen(&topology, server_v4(PORT));
    wait_until("it is back", || {
        watcher.stderr().unwrap().contains("listens again")
    });
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 0);
    // Its retransmission connects, or was refused where it came before there was a listener.
    let ended = client.finish()[0].result;
    assert!(
        matches!(ended, Ok(()) | Err(ErrorKind::ConnectionRefused)),
        "{ended:?}"
    );
}
