//! What `gate flush` says and does.

use std::net::TcpStream;

use gate_tests::require::{Feature, has};
use gate_tests::topology::{Side, Topology, server_v4};

use crate::common::{
    Dial, ENDPOINT, Ended, LIMIT, PORT, connect, connect_many, connect_to_each, define_web, dial,
    error_at, gate, half_open, is_alive, let_half_open_through, listen, up, wait_until_held,
};
use crate::{counts, flush, start};

#[test]
fn it_says_what_it_did() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let run = |side| start(&topology, side, &[ENDPOINT]).wait(LIMIT).unwrap();
    let nothing = "10.0.0.5:8080: no connection is in this network namespace, nothing to reset\n";
    for side in [Side::Server, Side::Client] {
        let output = run(side);
        assert_eq!((output.code(), &*output.stdout), (0, nothing), "{output}");
    }
    let _connected = connect_many(&topology, Side::Client, server_v4(PORT), &listener, 2);
    let output = run(Side::Server);
    assert!(
        output
            .stdout
            .starts_with("10.0.0.5:8080: 2 connections reset, in "),
        "{output}"
    );
    let _connected = connect_many(&topology, Side::Client, server_v4(PORT), &listener, 1);
    let output = run(Side::Client);
    let text = "10.0.0.5:8080: 1 connection reset (1 at the client's side), in ";
    assert!(output.stdout.starts_with(text), "{output}");
}

#[test]
fn a_name_stands_for_all_of_its_endpoints() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = up();
    let endpoints = define_web(&topology);
    let connected = connect_to_each(&topology, endpoints);
    let fields = flush(&topology, Side::Server, &["web", "--json"]);
    assert_eq!(counts(&fields), [2, 0, 0, 0, 0]);
    for (_, one) in &connected {
        assert_eq!(error_at(&one.client), Some(libc::ECONNRESET));
    }
}

#[test]
fn a_connection_in_the_accept_queue_is_reset_and_the_queue_works_on() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let client = topology
        .run(Side::Client, || Ok(TcpStream::connect(server_v4(PORT))?))
        .unwrap();
    let fields = flush(&topology, Side::Server, &[ENDPOINT, "--json"]);
    assert_eq!(counts(&fields), [1, 0, 0, 0, 0]);
    assert_eq!(error_at(&client), Some(libc::ECONNRESET));
    let (dead, _) = listener.accept().unwrap();
    assert_eq!(error_at(&dead), Some(libc::ECONNABORTED));
    let next = connect(&topology, Side::Client, server_v4(PORT), &listener);
    assert!(is_alive(&next));
}

#[test]
fn half_open_requests_are_left_alone() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let client = half_open(&topology, server_v4(PORT));
    let fields = flush(&topology, Side::Server, &[ENDPOINT, "--json"]);
    assert_eq!(counts(&fields), [0; 5]);
    let_half_open_through(&topology);
    assert_eq!(client.finish(), Ended::Connected);
    drop(listener);
}

#[test]
fn attempts_that_a_gate_holds_go_on_waiting() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "lo"]);
    let listener = listen(&topology, server_v4(PORT));
    for (held, flushed) in [
        (ENDPOINT, ENDPOINT),
        ("*:8080", ENDPOINT),
        ("*:8080", "*:8080"),
    ] {
        gate(&topology, &["hold", held]);
        let client = dial(&topology, Side::Server, Dial::to(server_v4(PORT)));
        wait_until_held(&topology, held, 1);
        let fields = flush(&topology, Side::Server, &[flushed, "--json"]);
        assert_eq!(counts(&fields), [0; 5], "{held} {flushed}");
        gate(&topology, &["open", held]);
        assert_eq!(client.finish(), Ended::Connected, "{held} {flushed}");
        drop(listener.accept().unwrap());
    }
}

#[test]
fn attempts_that_a_guard_holds_go_on_waiting() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "lo"]);
    gate(&topology, &["guard", ENDPOINT]);
    let client = dial(&topology, Side::Server, Dial::to(server_v4(PORT)));
    wait_until_held(&topology, ENDPOINT, 1);
    let fields = flush(&topology, Side::Server, &[ENDPOINT, "--json"]);
    assert_eq!(counts(&fields), [0; 5]);
    let listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["guard", "--off", ENDPOINT]);
    assert_eq!(client.finish(), Ended::Connected);
    drop(listener);
}
