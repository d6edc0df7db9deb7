//! With a process that watches.

use std::thread::sleep;
use std::time::Duration;

use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::load::{Load, Outcome};
use gate_tests::service::Service;
use gate_tests::topology::{Side, server_v4};
use nix::sys::signal::Signal;

use crate::common::{
    Clients, ENDPOINT, LIMIT, MS, PORT, TARGET, assert_connects_at_once,
    assert_sent_again_only_while_held, close, count, gate, gate_status, held_client, listen,
    restart, tcp_counters, up, wait_until, wait_until_held,
};
use crate::{
    assert_guarded, assert_none, assert_refused_at_closes_only, guarded, is_dirty, listen_again,
    watch,
};

#[test]
fn the_watcher_releases_at_once_and_says_so() {
    let topology = up();
    let watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    let clients = Clients::start(&topology, server_v4(PORT), 50, None);
    wait_until_held(&topology, ENDPOINT, 50);
    let _listener = listen(&topology, server_v4(PORT));
    clients.finish_released(&topology, ENDPOINT);
    wait_until("the watcher says so", || {
        watcher.stderr().unwrap().contains("50 connections held")
    });
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 50);
    let said = watcher.stderr().unwrap();
    assert!(said.contains("nothing listens"), "{said}");
    assert!(said.contains("a socket listens again"), "{said}");
    watcher.signal(Signal::SIGTERM).unwrap();
    let ended = watcher.wait(LIMIT).unwrap();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_guarded(&topology, ENDPOINT, true);
}

#[test]
fn the_watcher_speaks_json() {
    let topology = up();
    let watcher = watch(&topology, &[ENDPOINT, "--for", "400ms", "--json"]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until("the lease is over", || {
        watcher.stdout().unwrap().contains("lease_over")
    });
    assert!(client.finish()[0].result.is_err());
    let _listener = listen(&topology, server_v4(PORT));
    wait_until("it is back", || {
        watcher.stdout().unwrap().contains("\"event\":\"back\"")
    });
    watcher.signal(Signal::SIGINT).unwrap();
    let ended = watcher.wait(LIMIT).unwrap();
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended}");
    let lines: Vec<serde_json::Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str()).collect();
    let expected = [
        None,
        Some("missing"),
        Some("lease_over"),
        Some("back"),
        Some("end"),
    ];
    assert_eq!(events, expected, "{ended}");
    assert!(lines.iter().all(|line| line["version"] == 2), "{ended}");
    assert_eq!(lines[4]["guarded"], true, "{ended}");
}

#[test]
fn the_watcher_ends_when_there_is_nothing_to_watch() {
    let topology = up();
    let watcher = watch(&topology, &[ENDPOINT]);
    gate(&topology, &["guard", ENDPOINT, "--off"]);
    let ended = watcher.wait(LIMIT).unwrap();
    assert_eq!(ended.code(), 0, "{ended}");
    assert!(ended.stdout.contains("not guarded any more"), "{ended}");
    let watcher = watch(&topology, &[ENDPOINT]);
    gate(&topology, &["down"]);
    let ended = watcher.wait(LIMIT).unwrap();
    assert_eq!(ended.code(), 0, "{ended}");
    assert!(ended.stdout.contains("not guarded any more"), "{ended}");
}

#[test]
fn a_watcher_that_is_killed_leaves_the_guard_and_the_next_goes_on() {
    let topology = up();
    let watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    let clients = Clients::start(&topology, server_v4(PORT), 5, None);
    wait_until_held(&topology, ENDPOINT, 5);
    watcher.signal(Signal::SIGKILL).unwrap();
    watcher.wait(LIMIT).unwrap();
    assert_guarded(&topology, ENDPOINT, true);
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 5);
    let _next = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    let _listener = listen(&topology, server_v4(PORT));
    clients.finish_released(&topology, ENDPOINT);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 5);
}

#[test]
fn the_watcher_goes_the_short_way_again_when_all_is_well() {
    let topology = up();
    let _watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    for _ in 0..5 {
        let client = held_client(&topology, ENDPOINT, server_v4(PORT));
        assert!(is_dirty(&topology));
        let listener = listen_again(&topology, server_v4(PORT), false);
        client.finish_released(&topology, ENDPOINT);
        wait_until("nothing is noted any more", || !is_dirty(&topology));
        close(&topology, listener);
    }
}

#[test]
fn one_attempt_never_reaches_the_stack_twice() {
    let topology = guarded();
    // One whose retransmission passes before anyone releases it, …
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    let listener = listen_again(&topology, server_v4(PORT), false);
    let before = tcp_counters(&topology, Side::Server);
    client.finish_connected();
    let watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    sleep(100 * MS);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 0);
    close(&topology, listener);
    // … and many that are released while they retransmit.
    let clients = Clients::start(&topology, server_v4(PORT), 200, None);
    wait_until_held(&topology, ENDPOINT, 200);
    sleep(700 * MS);
    let _listener = listen_again(&topology, server_v4(PORT), false);
    clients.finish_connected();
    let passed = count(&topology, ENDPOINT, Counter::Passed);
    assert!(passed >= 201, "{passed}");
    let after = tcp_counters(&topology, Side::Server);
    // A SYN of a connection that is made already is answered with a challenge (RFC 5961).
    assert_eq!(after["TCPSYNChallenge"], before["TCPSYNChallenge"]);
    drop(watcher);
}

#[test]
fn a_restart_and_a_watcher_leave_each_other_alone() {
    let topology = up();
    let watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let load = Load::new(server_v4(PORT), 200, Duration::from_secs(2));
    let running = load.start(&topology).unwrap();
    let command = service.restart_command(300 * MS).unwrap();
    let words: Vec<&str> = command.iter().map(|it| it.to_str().unwrap()).collect();
    let restarted = restart(&topology, &[], &words);
    assert_eq!(restarted.code(), 0, "{restarted}");
    assert!(restarted.stdout.contains("now released"), "{restarted}");
    let requests = running.finish().unwrap();
    assert_none(&requests, &Outcome::ERRORS);
    assert_sent_again_only_while_held(&topology, ENDPOINT);
    assert!(!watcher.has_ended().unwrap());
    assert_guarded(&topology, ENDPOINT, true);
}

#[test]
fn a_listener_that_flaps_refuses_nobody_but_at_the_moment_of_a_close() {
    let topology = up();
    let _watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    let load = Load::new(server_v4(PORT), 200, Duration::from_secs(3));
    let running = load.start(&topology).unwrap();
    let begin = running.begin();
    let mut closes = Vec::new();
    for round in 0..40 {
        let listener = listen_again(&topology, server_v4(PORT), false);
        sleep(MS * (1 + round % 7 * 5));
        let closing = begin.elapsed();
        close(&topology, listener);
        closes.push(closing..begin.elapsed());
        sleep(MS * (1 + round % 5 * 10));
    }
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let requests = running.finish().unwrap();
    assert_none(&requests, &[Outcome::TimedOut]);
    assert_refused_at_closes_only(&requests, &closes);
    assert_connects_at_once(&topology, server_v4(PORT));
}
