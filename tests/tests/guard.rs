//! Guarded gates: what happens to new connections while nothing listens, with and without a process
//! that watches. Needs root.

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, LIMIT, MS, PORT, TARGET, assert_connects_at_once,
    connect_once, count, gate, gate_status, held_client, json, listen, mode, refused, restart,
    shell, tcp_counters, up, wait_until, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::listener::{Gap, Watch};
use gate_tests::load::{Load, Outcome, Request};
use gate_tests::service::Service;
use gate_tests::topology::{Process, Side, Topology, server_v4, server_v6};
use gate_userspace::sockets;
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use std::io::ErrorKind;

const V6: &str = "[fd00::5]:8080";
const LOOPBACK: &str = "127.0.0.1:8080";

/// How often the tests under load kill the backend.
const KILLS: u32 = 20;
/// New connections a second meanwhile.
const RATE: u32 = 500;

/// A topology with the gate up, and the endpoint guarded.
fn guarded() -> Topology {
    let topology = up();
    gate(&topology, &["guard", ENDPOINT, "--for", "30s"]);
    topology
}

/// Starts a watcher, and returns when it watches.
#[track_caller]
fn watch(topology: &Topology, args: &[&str]) -> Process {
    let args = [&["guard"], args, &["--watch"]].concat();
    let watcher = topology.spawn_gate(args).unwrap();
    wait_until("the watcher has begun", || {
        assert!(!watcher.has_ended().unwrap(), "{:?}", watcher.stderr());
        watcher.stdout().unwrap().contains("guarded")
    });
    watcher
}

#[track_caller]
fn assert_guarded(topology: &Topology, target: &str, is_guarded: bool) {
    let guard = gate_status(topology, target).guard;
    assert_eq!(guard.is_some(), is_guarded, "{guard:?}");
}

/// A listener that many have used before: nothing of theirs is in its way.
#[track_caller]
fn listen_again(topology: &Topology, address: SocketAddr, only_v6: bool) -> Socket {
    let listener = topology.run(Side::Server, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket)
    });
    listener.unwrap()
}

// ---- Without a process ----

/// Closes a listener, and waits until nobody has it: a command that another test starts may have its
/// descriptor for a moment, between fork and exec.
#[track_caller]
fn close(topology: &Topology, listener: impl Into<Socket>) {
    let listener = listener.into();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    drop(listener);
    let endpoint = address.to_string().parse().unwrap();
    wait_until("nobody listens", || {
        let listeners = topology.run(Side::Server, || Ok(sockets::listeners(endpoint)?));
        listeners.unwrap() == 0
    });
}

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
    gate(&topology, &["reject", ENDPOINT, "--for", "300ms"]);
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
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
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
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
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
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
}

#[test]
fn down_releases_what_a_guard_holds() {
    let topology = guarded();
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["down"]);
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
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
    let watcher = watch(&topology, &[ENDPOINT, "--for", "300ms"]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, ENDPOINT, 1);
    wait_until("the lease is over", || {
        watcher.stderr().unwrap().contains("are refused")
    });
    sleep(400 * MS);
    let _listener = listen(&topology, server_v4(PORT));
    wait_until("it is back", || {
        watcher.stderr().unwrap().contains("listens again")
    });
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 0);
    client.finish_connected();
}

// ---- Which listener counts ----

#[test]
fn a_dual_stack_listener_is_one_for_both_families() {
    let topology = up();
    gate(&topology, &["guard", ENDPOINT, V6, "--for", "30s"]);
    let _watcher = watch(&topology, &[ENDPOINT, V6, "--for", "30s"]);
    let any = SocketAddr::from(([0_u16; 8], PORT));
    for round in 0..3 {
        let listener = listen_again(&topology, any, false);
        assert_connects_at_once(&topology, server_v4(PORT));
        assert_connects_at_once(&topology, server_v6(PORT));
        close(&topology, listener);
        let clients = [(ENDPOINT, server_v4(PORT)), (V6, server_v6(PORT))]
            .map(|(endpoint, target)| held_client(&topology, endpoint, target));
        let _listener = listen_again(&topology, any, false);
        for client in clients {
            let took = client.finish_connected();
            assert!(took < BEFORE_RETRANSMISSION, "round {round}: {took:?}");
        }
    }
}

#[test]
fn a_listener_for_ipv6_only_is_none_for_ipv4() {
    let topology = up();
    gate(&topology, &["guard", "*:8080", "--for", "30s"]);
    let _watcher = watch(&topology, &["*:8080", "--for", "30s"]);
    let _v6 = listen_again(&topology, SocketAddr::from(([0_u16; 8], PORT)), true);
    assert_connects_at_once(&topology, server_v6(PORT));
    let client = held_client(&topology, "*:8080", server_v4(PORT));
    sleep(200 * MS);
    assert_eq!(client.connected(), 0);
    assert_eq!(count(&topology, "*:8080", Counter::Released), 0);
    let _v4 = listen_again(&topology, server_v4(PORT), false);
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
}

#[test]
fn a_guarded_wildcard_stands_for_every_address_of_this_host() {
    let topology = up();
    shell(
        &topology,
        Side::Server,
        "ip address add 10.0.0.6/24 dev eth0",
    );
    gate(&topology, &["guard", "*:8080", "--for", "30s"]);
    let _watcher = watch(&topology, &["*:8080", "--for", "30s"]);
    let other = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 6), PORT));
    let targets = [server_v4(PORT), other, server_v6(PORT)];
    let clients = targets.map(|target| held_client(&topology, "*:8080", target));
    // One at a time: each listener frees its own.
    for (index, client) in clients.into_iter().enumerate() {
        let _listener = listen_again(&topology, targets[index], false);
        client.finish_connected();
        assert_eq!(
            count(&topology, "*:8080", Counter::Released),
            index as u64 + 1
        );
    }
}

// ---- With a process that watches ----

#[test]
fn the_watcher_releases_at_once_and_says_so() {
    let topology = up();
    let watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    let clients = Clients::start(&topology, server_v4(PORT), 50, None);
    wait_until_held(&topology, ENDPOINT, 50);
    let _listener = listen(&topology, server_v4(PORT));
    assert!(clients.finish_connected() < BEFORE_RETRANSMISSION);
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
    assert!(clients.finish_connected() < BEFORE_RETRANSMISSION);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 5);
}

#[test]
fn the_watcher_goes_the_short_way_again_when_all_is_well() {
    let topology = up();
    let _watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    for _ in 0..5 {
        let client = held_client(&topology, ENDPOINT, server_v4(PORT));
        assert!(is_dirty(&topology));
        let _listener = listen_again(&topology, server_v4(PORT), false);
        assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
        wait_until("nothing is noted any more", || !is_dirty(&topology));
    }
}

fn is_dirty(topology: &Topology) -> bool {
    use gate_userspace::pins::Pins;
    use gate_userspace::tables::Tables;
    let gate = gate_status(topology, ENDPOINT).gate.id;
    let guard = topology.run(Side::Server, || {
        Ok(Tables::open(&Pins::here()?)?.guard(gate)?)
    });
    guard.unwrap().dirty != 0
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
    let slow = requests
        .iter()
        .filter(|r| r.latency >= BEFORE_RETRANSMISSION);
    assert_eq!(slow.count(), 0);
    assert!(!watcher.has_ended().unwrap());
    assert_guarded(&topology, ENDPOINT, true);
}

#[test]
fn a_listener_that_flaps_refuses_nobody() {
    let topology = up();
    let _watcher = watch(&topology, &[ENDPOINT, "--for", "30s"]);
    let load = Load::new(server_v4(PORT), 200, Duration::from_secs(3));
    let running = load.start(&topology).unwrap();
    for round in 0..40 {
        let listener = listen_again(&topology, server_v4(PORT), false);
        sleep(MS * (1 + round % 7 * 5));
        close(&topology, listener);
        sleep(MS * (1 + round % 5 * 10));
    }
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let requests = running.finish().unwrap();
    assert_none(&requests, &[Outcome::Refused, Outcome::TimedOut]);
    assert_connects_at_once(&topology, server_v4(PORT));
}

// ---- Under load ----

/// How often each of these happened.
#[track_caller]
fn assert_none(requests: &[Request], outcomes: &[Outcome]) {
    let found: Vec<_> = requests
        .iter()
        .filter(|request| outcomes.contains(&request.outcome))
        .collect();
    assert!(
        found.is_empty(),
        "{} of {}: {found:?}",
        found.len(),
        requests.len()
    );
}

/// Kills the backend again and again under load, and starts it anew after a while.
fn killed_under_load(topology: &Topology, target: SocketAddr, from: Side) {
    let _watcher = watch(topology, &[&target.to_string(), "--for", "30s"]);
    let mut service = Service::start(topology, Options::new(target)).unwrap();
    let gaps = Watch::start(topology, target).unwrap();
    let round = 250 * MS;
    let load = Load::new(target, RATE, round * KILLS);
    let running = load.start_at(topology, from).unwrap();
    for _ in 0..KILLS {
        sleep(round / 2);
        service.process().signal(Signal::SIGKILL).unwrap();
        service.process().wait(LIMIT).unwrap();
        sleep(50 * MS);
        service = Service::start(topology, Options::new(target)).unwrap();
    }
    let requests = running.finish().unwrap();
    let gaps = gaps.finish().unwrap();
    let outage = gaps.iter().map(Gap::length).max().unwrap();
    let answered = requests.iter().filter(|r| r.outcome == Outcome::Ok);
    let latest = answered.map(|r| r.latency).max().unwrap();
    let gate = gate_status(topology, &target.to_string());
    let held = gate.stats.counts[Counter::Held as usize];
    let reset = requests.iter().filter(|r| r.outcome == Outcome::Reset);
    println!(
        "{KILLS} kills, {} gaps of {outage:?} at the most; {} requests, {held} held, {} reset, the \
         latest answered after {latest:?}",
        gaps.len(),
        requests.len(),
        reset.count()
    );
    assert_none(&requests, &[Outcome::Refused, Outcome::TimedOut]);
    assert!(gaps.len() as u32 >= KILLS && held > 0);
    assert!(
        latest < outage + BEFORE_RETRANSMISSION,
        "{outage:?} {latest:?}"
    );
}

#[test]
fn a_backend_that_is_killed_refuses_nobody() {
    let topology = up();
    killed_under_load(&topology, server_v4(PORT), Side::Client);
}

#[test]
fn a_backend_that_is_killed_refuses_nobody_on_loopback() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "lo"]);
    killed_under_load(&topology, LOOPBACK.parse().unwrap(), Side::Server);
}
