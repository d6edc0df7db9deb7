//! Resets that are spread over a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use gate_tests::require::{Feature, has};
use gate_tests::topology::{Side, Topology, server_v4};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{
    Connected, ENDPOINT, LIMIT, MS, PORT, assert_complaint, connect, connect_many, error_at,
    is_alive, listen, wait_until,
};
use crate::{counts, start};

#[test]
fn resets_are_spread_over_the_time() {
    if !has(Feature::SockDestroy) {
        return;
    }
    const COUNT: u32 = 20;
    let over = Duration::from_secs(2);
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected: Vec<Connected> = (0..COUNT)
        .map(|_| {
            // So that their order is known.
            sleep(10 * MS);
            connect(&topology, Side::Client, server_v4(PORT), &listener)
        })
        .collect();
    let begin = Instant::now();
    let flush = start(
        &topology,
        Side::Server,
        &[ENDPOINT, "--over", "2s", "--json"],
    );
    let mut times = Vec::new();
    for one in &connected {
        assert_eq!(error_at(&one.client), Some(libc::ECONNRESET));
        times.push(begin.elapsed());
    }
    let output = flush.wait(LIMIT).unwrap().ok().unwrap();
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(counts(&fields), [u64::from(COUNT), 0, 0, 0, 0], "{output}");
    // None before its turn; the first doesn't wait.
    for (index, time) in (0..COUNT).zip(&times) {
        assert!(*time >= over * index / COUNT, "{index}: {times:?}");
    }
    println!("20 resets over 2 s, at {times:.2?}");
}

#[test]
fn connections_that_are_made_meanwhile_are_left_alone() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let first = connect_many(&topology, Side::Client, server_v4(PORT), &listener, 4);
    let flush = start(&topology, Side::Server, &[ENDPOINT, "--over", "1s"]);
    wait_until("the first is reset", || {
        first.iter().any(|one| !is_alive(one))
    });
    let next = connect(&topology, Side::Client, server_v4(PORT), &listener);
    flush.wait(LIMIT).unwrap().ok().unwrap();
    assert!(first.iter().all(|one| !is_alive(one)));
    assert!(is_alive(&next));
}

#[test]
fn a_signal_ends_it_at_once_with_what_it_did() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let connected = connect_many(&topology, Side::Client, server_v4(PORT), &listener, 3);
        let flush = start(&topology, Side::Server, &[ENDPOINT, "--over", "3h"]);
        wait_until("the first is reset", || {
            connected.iter().any(|one| !is_alive(one))
        });
        flush.signal(signal).unwrap();
        let output = flush.wait(LIMIT).unwrap();
        assert_eq!(output.code(), code, "{output}");
        assert!(
            output.stdout.contains("1 connection reset; 2 left, in "),
            "{output}"
        );
        assert_complaint(
            &output,
            &["interrupted with 2 connections left", "start it again"],
        );
        assert_eq!(connected.iter().filter(|one| is_alive(one)).count(), 2);
    }
}
