//! Holding, dropping, rejecting and opening, with real connections: what clients see, and that no
//! gate stays closed past its lease. Needs root.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::Instant;

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, ENDPOINT_V6, LIMIT, MS, PORT, TARGET,
    assert_complaint, assert_connects_at_once, assert_refusal, connect_once, count, exists, gate,
    gate_status, held_client, listen, mode, refused, restart, running, shell, start_restart, up,
    up_with_service, wait_until, wait_until_counted,
};
use gate_common::abi::Counter;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4, server_v6};
use nix::sys::signal::Signal;

// ---- Hold and open ----

#[test]
fn one_process_holds_and_another_opens() {
    let topology = up();
    for (endpoint, target) in [(ENDPOINT, TARGET), (ENDPOINT_V6, server_v6(PORT))] {
        let _listener = listen(&topology, target);
        gate(&topology, &["hold", endpoint]);
        let client = held_client(&topology, endpoint, target);
        sleep(MS * 200);
        assert_eq!(client.connected(), 0);
        let output = gate(&topology, &["open", endpoint]);
        assert!(output.stdout.contains("1 connection held"), "{output}");
        client.finish_released(&topology, endpoint);
        assert_eq!(count(&topology, endpoint, Counter::Released), 1);
        assert_connects_at_once(&topology, target);
    }
}

#[test]
fn a_wildcard_holds_both_families_and_every_address() {
    let topology = up();
    let targets = [TARGET, server_v6(PORT)];
    let _listeners = targets.map(|target| listen(&topology, target));
    let any = "*:8080";
    gate(&topology, &["hold", any]);
    let clients = targets.map(|target| held_client(&topology, any, target));
    assert_eq!(gate_status(&topology, any).waiting.held, 2);
    gate(&topology, &["open", any]);
    for client in clients {
        client.finish_released(&topology, any);
    }
    assert_eq!(count(&topology, any, Counter::Released), 2);
}

#[test]
fn other_ports_and_addresses_are_untouched() {
    let topology = up();
    let others = [server_v4(9090), server_v6(PORT)];
    let _listeners = others.map(|target| listen(&topology, target));
    for verb in ["hold", "drop", "reject"] {
        gate(&topology, &[verb, ENDPOINT]);
        for target in others {
            assert_connects_at_once(&topology, target);
        }
    }
}

#[test]
fn reject_refuses_at_once_over_both_families_and_on_either_hook() {
    for hook in ["xdp-generic", "xdp"] {
        let topology = Topology::new().unwrap();
        let up = ["up", "--hook", hook, INTERFACE];
        gate(&topology, &up);
        // A veth's NAPI is woken for what the other side sends by XDP_TX only where a program is
        // attached to it, too. This one has nothing to judge.
        let mut command = Command::new(gate_tests::exe::gate().unwrap());
        let output = topology.output(Side::Client, command.args(up), LIMIT);
        output.unwrap().ok().unwrap();
        for (endpoint, target) in [(ENDPOINT, TARGET), (ENDPOINT_V6, server_v6(PORT))] {
            let _listener = listen(&topology, target);
            assert_connects_at_once(&topology, target);
            gate(&topology, &["reject", endpoint]);
            let attempt = connect_once(&topology, target);
            assert_eq!(attempt.result, Err(ErrorKind::ConnectionRefused), "{hook}");
            assert!(attempt.took < BEFORE_RETRANSMISSION, "{hook} {attempt:?}");
            assert_eq!(count(&topology, endpoint, Counter::Rejected), 1);
            gate(&topology, &["open", endpoint]);
            assert_connects_at_once(&topology, target);
        }
    }
}

#[test]
fn a_held_client_is_rejected_at_its_retransmission() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["hold", ENDPOINT]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    gate(&topology, &["reject", ENDPOINT]);
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 0);
    let attempt = client.finish()[0];
    assert_eq!(attempt.result, Err(ErrorKind::ConnectionRefused));
}

#[test]
fn drop_lets_clients_in_by_retransmission_only() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["drop", ENDPOINT]);
    let client = Clients::one(&topology, TARGET);
    wait_until_counted(&topology, ENDPOINT, Counter::Dropped, 1);
    let output = gate(&topology, &["open", ENDPOINT]);
    assert!(output.stdout.contains("no connection was held"), "{output}");
    let took = client.finish_connected();
    assert!(took > BEFORE_RETRANSMISSION, "{took:?}");
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 0);
}

#[test]
fn drop_after_hold_discards_what_was_held() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["hold", ENDPOINT]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    gate(&topology, &["drop", ENDPOINT]);
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 0);
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 0);
    let took = client.finish_connected();
    assert!(took > BEFORE_RETRANSMISSION, "{took:?}");
}

#[test]
fn a_second_hold_extends_the_lease_and_keeps_what_is_held() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["hold", ENDPOINT, "--for", "2s"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    gate(&topology, &["hold", ENDPOINT, "--for", "30s"]);
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 1);
    // Past the first lease, and past a retransmission.
    sleep(MS * 2_200);
    let gate_now = gate_status(&topology, ENDPOINT);
    assert_eq!((gate_now.mode.name(), gate_now.waiting.held), ("hold", 1));
    assert_eq!(client.connected(), 0);
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1);
    client.finish_connected();
}

#[test]
fn down_releases_what_is_held() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["hold", ENDPOINT]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    let held_again = count(&topology, ENDPOINT, Counter::Refreshed);
    let output = gate(&topology, &["down"]);
    assert!(output.stdout.contains("1 connection released"), "{output}");
    assert!(client.finish_sent_again() <= held_again);
}

#[test]
fn established_connections_are_untouched_in_every_mode() {
    let (topology, _service) = up_with_service();
    let mut stream = topology
        .run(Side::Client, || Ok(TcpStream::connect(TARGET)?))
        .unwrap();
    stream
        .set_read_timeout(Some(BEFORE_RETRANSMISSION))
        .unwrap();
    let mut ask = |when: &str| {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let mut bytes = [0; 256];
            let n = stream
                .read(&mut bytes)
                .unwrap_or_else(|e| panic!("{when}: {e}"));
            assert_ne!(n, 0, "{when}: closed");
            answer.extend_from_slice(&bytes[..n]);
        }
    };
    ask("before");
    for verb in ["hold", "drop", "reject"] {
        gate(&topology, &[verb, ENDPOINT]);
        for _ in 0..3 {
            ask(verb);
        }
        assert_eq!(mode(&topology, ENDPOINT), verb);
    }
    gate(&topology, &["open", ENDPOINT]);
    ask("after");
}

#[test]
fn an_interface_that_went_with_what_it_held_is_reported() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["hold", ENDPOINT]);
    let _client = held_client(&topology, ENDPOINT, TARGET);
    shell(&topology, Side::Server, &format!("ip link del {INTERFACE}"));
    let output = gate(&topology, &["open", ENDPOINT]);
    assert!(
        output.stdout.contains("1 dropped: their interface is gone"),
        "{output}"
    );
    let text = gate(&topology, &["status"]).stdout;
    assert!(text.contains("is gone"), "{text}");
    assert_eq!(mode(&topology, ENDPOINT), "open");
    // Nothing is attached, so closing a gate would be a lie.
    refused(&topology, &["hold", ENDPOINT], 3, &["not up"]);
    gate(&topology, &["down"]);
}

#[test]
fn an_interface_that_is_down_is_no_reason_to_hang() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["hold", ENDPOINT]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    shell(
        &topology,
        Side::Server,
        &format!("ip link set {INTERFACE} down"),
    );
    let output = gate(&topology, &["open", ENDPOINT]);
    assert!(output.stdout.contains("1 dropped"), "{output}");
    shell(
        &topology,
        Side::Server,
        &format!("ip link set {INTERFACE} up"),
    );
    client.finish_connected();
}

// ---- The lease ----

/// Closes the gate for 3 s in some way that leaves no process of gate's; the lease must open it
/// on time. `close` returns the least and the latest time at which it may end.
fn assert_the_lease_opens(topology: &Topology, close: impl FnOnce() -> (Instant, Instant)) {
    let (least, latest) = close();
    assert_eq!(running(topology, "gate "), 0);
    let early = held_client(topology, ENDPOINT, TARGET);
    sleep((least - MS * 1_500).saturating_duration_since(Instant::now()));
    let late = held_client(topology, ENDPOINT, TARGET);
    sleep((least - MS * 50).saturating_duration_since(Instant::now()));
    let connected = early.connected() + late.connected();
    if Instant::now() < least {
        assert_eq!(connected, 0);
    }
    sleep((latest + MS * 20).saturating_duration_since(Instant::now()));
    assert_connects_at_once(topology, TARGET);
    let gate_now = gate_status(topology, ENDPOINT);
    assert!(
        gate_now.expired && gate_now.mode.name() == "open",
        "{gate_now:?}"
    );
    // Those that were held come in by their retransmissions.
    early.finish_connected();
    late.finish_connected();
    assert!(count(topology, ENDPOINT, Counter::Expired) >= 3);
}

#[test]
fn a_lease_opens_the_gate_with_no_process_left() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    assert_the_lease_opens(&topology, || {
        let before = Instant::now();
        gate(&topology, &["hold", ENDPOINT, "--for", "3s"]);
        (before + MS * 3_000, Instant::now() + MS * 3_000)
    });
    // Whoever opens it then is told so, once.
    let output = topology.gate(["open", ENDPOINT]).unwrap();
    assert_refusal(&output, 124, &[ENDPOINT, "lease ran out", "--for"]);
    gate(&topology, &["open", ENDPOINT]);
}

#[test]
fn a_lease_opens_the_gate_after_kill_9_of_everything() {
    let (topology, _service) = up_with_service();
    assert_the_lease_opens(&topology, || {
        let before = Instant::now();
        let restart = start_restart(&topology, &["--max-hold", "3s"], &["sleep", "98760"]);
        let closed = Instant::now();
        wait_until("the command runs", || {
            running(&topology, "sleep 98760") == 1
        });
        restart.signal(Signal::SIGKILL).unwrap();
        assert_eq!(restart.wait(LIMIT).unwrap().code(), 137);
        shell(
            &topology,
            Side::Server,
            "kill -9 $(grep -lx sleep /proc/[0-9]*/comm | cut -d/ -f3)",
        );
        (before + MS * 3_000, closed + MS * 3_000)
    });
}

#[test]
fn every_mode_has_a_lease() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    for verb in ["hold", "drop", "reject"] {
        gate(&topology, &[verb, ENDPOINT, "--for", "2s"]);
        assert_eq!(mode(&topology, ENDPOINT), verb);
        sleep(MS * 2_020);
        assert_connects_at_once(&topology, TARGET);
    }
}

#[test]
fn opening_after_the_lease_lets_in_who_still_waits_and_says_so() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    let begun = Instant::now();
    gate(&topology, &["hold", ENDPOINT, "--for", "1200ms"]);
    // Held late in the lease, so that it does not send its SYN again before the opening.
    sleep((begun + MS * 600).saturating_duration_since(Instant::now()));
    let client = held_client(&topology, ENDPOINT, TARGET);
    wait_until("the lease is over", || mode(&topology, ENDPOINT) == "open");
    let output = topology.gate(["open", ENDPOINT]).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["lease ran out"]);
    client.finish_released(&topology, ENDPOINT);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1);
}

#[test]
fn kill_9_of_a_restart_leaves_the_command_and_the_next_restart_works() {
    let (topology, _service) = up_with_service();
    let line = "sleep 1; echo done > /run/done";
    let shown = format!("sh -c {line}");
    let first = start_restart(&topology, &["--max-hold", "1500ms"], &["sh", "-c", line]);
    wait_until("the command runs", || running(&topology, &shown) == 1);
    first.signal(Signal::SIGKILL).unwrap();
    assert_eq!(first.wait(LIMIT).unwrap().code(), 137);
    assert!(!exists(&topology, "/run/done"));
    assert_eq!(mode(&topology, ENDPOINT), "hold");
    // The next one takes the gate over, closed as it is, and with what it holds.
    let client = held_client(&topology, ENDPOINT, TARGET);
    let output = restart(&topology, &[], &["true"]);
    assert_eq!(output.code(), 0, "{output}");
    assert!(output.stdout.contains("1 connection held"), "{output}");
    client.finish_released(&topology, ENDPOINT);
    wait_until("the command is done", || exists(&topology, "/run/done"));
}
