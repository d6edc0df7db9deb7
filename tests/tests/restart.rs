//! Holding, releasing and restarting, with real connections: what clients see, and what is left
//! when something goes wrong on the way. Needs root.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, LIMIT, MS, PORT, assert_complaint, assert_refusal,
    connect_once, count, find_gate, gate, gate_status, listen, mode, refused, running, shell,
    status, up, wait_until, wait_until_counted, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::bench;
use gate_tests::listener::Watch;
use gate_tests::load::{Load, Outcome, Request, get_once};
use gate_tests::service::Service;
use gate_tests::topology::{
    INTERFACE, Output, Process, SCRATCH, Side, Topology, server_v4, server_v6,
};
use nix::sys::signal::Signal;

const TARGET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(gate_tests::topology::SERVER_V4), PORT);
const ENDPOINT_V6: &str = "[fd00::5]:8080";

/// A topology with the gate up and the lab's backend behind it.
fn up_with_service() -> (Topology, Service) {
    let topology = up();
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    (topology, service)
}

/// Starts `gate restart` of the endpoint with these options and this command, and returns when
/// the gate is closed.
#[track_caller]
fn start_restart(topology: &Topology, options: &[&str], command: &[&str]) -> Process {
    let args = [&["restart", ENDPOINT], options, &["--"], command].concat();
    let process = topology.spawn_gate(args).unwrap();
    wait_until("the gate is closed", || {
        find_gate(topology, ENDPOINT).is_some_and(|gate| gate.mode.name() == "hold")
    });
    process
}

/// Runs `gate restart` of the endpoint to its end.
#[track_caller]
fn restart(topology: &Topology, options: &[&str], command: &[&str]) -> Output {
    let args = [&["restart", ENDPOINT], options, &["--"], command].concat();
    topology.gate(args).unwrap()
}

/// A connection that gets through within the time before any retransmission.
#[track_caller]
fn assert_connects_at_once(topology: &Topology, target: SocketAddr) {
    let attempt = connect_once(topology, target);
    assert_eq!(attempt.result, Ok(()), "{attempt:?}");
    assert!(attempt.took < BEFORE_RETRANSMISSION, "{attempt:?}");
}

/// A client that is held now, and so waits.
#[track_caller]
fn held_client(topology: &Topology, endpoint: &str, target: SocketAddr) -> Clients {
    let before = gate_status(topology, endpoint).waiting.held;
    let client = Clients::one(topology, target);
    wait_until_held(topology, endpoint, before + 1);
    assert_eq!(client.connected(), 0);
    client
}

fn exists(topology: &Topology, path: &str) -> bool {
    topology
        .run(Side::Server, || Ok(Path::new(path).exists()))
        .unwrap()
}

/// One of the server's counters of /proc/net/netstat, such as `ListenOverflows`.
fn netstat(topology: &Topology, name: &str) -> u64 {
    let path = "/proc/thread-self/net/netstat";
    let text = topology
        .run(Side::Server, || Ok(std::fs::read_to_string(path)?))
        .unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
    let column = |pair: &[Vec<&str>]| {
        let at = pair[0].iter().position(|word| *word == name)?;
        pair[1][at].parse().ok()
    };
    let found = lines.chunks(2).find_map(column);
    found.unwrap_or_else(|| panic!("no {name} in {text}"))
}

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
        let took = client.finish_connected();
        assert!(took > MS * 200 && took < BEFORE_RETRANSMISSION, "{took:?}");
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
        assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
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
    gate(&topology, &["hold", ENDPOINT, "--for", "700ms"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    gate(&topology, &["hold", ENDPOINT, "--for", "30s"]);
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 1);
    // Past the first lease, and past a retransmission.
    sleep(MS * 1_200);
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
    let output = gate(&topology, &["down"]);
    assert!(output.stdout.contains("1 connection released"), "{output}");
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
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

/// Closes the gate for 1.5 s in some way that leaves no process of gate's; the lease must open it
/// on time. `close` returns the least and the latest time at which it may end.
fn assert_the_lease_opens(topology: &Topology, close: impl FnOnce() -> (Instant, Instant)) {
    let (least, latest) = close();
    assert_eq!(running(topology, "gate "), 0);
    let early = held_client(topology, ENDPOINT, TARGET);
    sleep((least - MS * 300).saturating_duration_since(Instant::now()));
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
        gate(&topology, &["hold", ENDPOINT, "--for", "1500ms"]);
        (before + MS * 1_500, Instant::now() + MS * 1_500)
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
        let restart = start_restart(&topology, &["--max-hold", "1500ms"], &["sleep", "98760"]);
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
        (before + MS * 1_500, closed + MS * 1_500)
    });
}

#[test]
fn every_mode_has_a_lease() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    for verb in ["hold", "drop", "reject"] {
        gate(&topology, &[verb, ENDPOINT, "--for", "300ms"]);
        assert_eq!(mode(&topology, ENDPOINT), verb);
        sleep(MS * 320);
        assert_connects_at_once(&topology, TARGET);
    }
}

#[test]
fn opening_after_the_lease_lets_in_who_still_waits_and_says_so() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    gate(&topology, &["hold", ENDPOINT, "--for", "300ms"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    sleep(MS * 320);
    let output = topology.gate(["open", ENDPOINT]).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["lease ran out"]);
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
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
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
    wait_until("the command is done", || exists(&topology, "/run/done"));
}

// ---- Signals, and commands that fail ----

#[test]
fn a_signal_opens_the_gate_and_stops_the_command() {
    let (topology, _service) = up_with_service();
    for (signal, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGINT, 130),
        (Signal::SIGHUP, 129),
    ] {
        let restart = start_restart(&topology, &[], &["sleep", "98761"]);
        wait_until("the command runs", || {
            running(&topology, "sleep 98761") == 1
        });
        let client = held_client(&topology, ENDPOINT, TARGET);
        restart.signal(signal).unwrap();
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), code, "{output}");
        assert_complaint(
            &output,
            &["interrupted", "the gate was opened", "the command stopped"],
        );
        assert_eq!(mode(&topology, ENDPOINT), "open");
        assert_eq!(running(&topology, "sleep 98761"), 0);
        assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
    }
}

#[test]
fn a_signal_before_the_command_starts_opens_the_gate() {
    let topology = up();
    // Nobody accepts, so the queue never empties, and the command waits for that.
    let _listener = listen(&topology, TARGET);
    assert_connects_at_once(&topology, TARGET);
    let restart = start_restart(&topology, &[], &["touch", "/run/ran"]);
    restart.signal(Signal::SIGTERM).unwrap();
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 143, "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "open");
    assert!(!exists(&topology, "/run/ran"));
}

#[test]
fn a_signal_during_the_checks_opens_the_gate() {
    let (topology, _service) = up_with_service();
    let restart = start_restart(&topology, &["--check", "exec:false"], &["true"]);
    wait_until("the checks have begun", || {
        restart.stderr().unwrap().contains("checking")
    });
    restart.signal(Signal::SIGINT).unwrap();
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 130, "{output}");
    assert_complaint(&output, &["interrupted"]);
    assert_eq!(mode(&topology, ENDPOINT), "open");
}

#[test]
fn a_failed_command_opens_the_gate_and_passes_its_code_on() {
    let (topology, _service) = up_with_service();
    for (line, code, word) in [
        ("exit 7", 7, "exited with 7"),
        ("kill -9 $$", 137, "was killed by SIGKILL"),
        ("exit 255", 255, "exited with 255"),
    ] {
        let held = format!("sleep 0.3; {line}");
        let restart = start_restart(&topology, &[], &["sh", "-c", &held]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), code, "{output}");
        assert_complaint(&output, &[word, "the gate was opened"]);
        assert_eq!(mode(&topology, ENDPOINT), "open");
        assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
    }
}

/// A file in the topology's own folder with this text and mode.
fn write(topology: &Topology, name: &str, text: &str, mode: u32) -> String {
    let path = Path::new(SCRATCH).join(name);
    topology
        .run(Side::Server, || {
            std::fs::write(&path, text)?;
            Ok(std::fs::set_permissions(
                &path,
                PermissionsExt::from_mode(mode),
            )?)
        })
        .unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_command_that_is_not_there_or_not_executable_never_closes_the_gate() {
    let (topology, _service) = up_with_service();
    let plain = write(&topology, "plain", "#!/bin/sh\n", 0o644);
    for (command, code, word) in [
        ("no-such-command", 127, "no command no-such-command"),
        ("/no/such/command", 127, "no command /no/such/command"),
        ("", 127, "no command"),
        (&*plain, 126, "permission"),
        (SCRATCH, 126, "can't be run"),
        ("/etc/passwd/x", 126, "can't be run"),
    ] {
        refused(
            &topology,
            &["restart", ENDPOINT, "--", command],
            code,
            &[word],
        );
    }
    assert!(find_gate(&topology, ENDPOINT).is_none());
}

#[test]
fn a_command_in_path_that_is_not_executable_is_told_from_one_that_is_not_there() {
    let (topology, _service) = up_with_service();
    write(&topology, "plain", "#!/bin/sh\n", 0o644);
    let mut command = Command::new("env");
    command
        .arg(format!("PATH={SCRATCH}"))
        .arg(gate_tests::exe::gate().unwrap())
        .args(["restart", ENDPOINT, "--", "plain"]);
    let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
    assert_refusal(&output, 126, &["plain", "permission"]);
    assert!(find_gate(&topology, ENDPOINT).is_none());
}

#[test]
fn a_command_that_fails_to_start_leaves_the_gate_open() {
    let (topology, _service) = up_with_service();
    for text in ["#!/no/such/interpreter\n", "\x7fELF rubbish"] {
        let path = write(&topology, "broken", text, 0o755);
        let output = restart(&topology, &[], &[&path]);
        assert_eq!(output.code(), 126, "{output}");
        assert_complaint(&output, &["broken", "can't be run"]);
        assert_eq!(mode(&topology, ENDPOINT), "open");
        assert_connects_at_once(&topology, TARGET);
    }
}

#[test]
fn a_command_that_hangs_is_stopped_when_the_lease_is_over() {
    let (topology, _service) = up_with_service();
    let restart = start_restart(&topology, &["--max-hold", "1s"], &["sleep", "98762"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["--max-hold 1s", "the command stopped"]);
    assert_eq!(mode(&topology, ENDPOINT), "open");
    assert_eq!(running(&topology, "sleep 98762"), 0);
    client.finish_connected();
    assert_connects_at_once(&topology, TARGET);
}

#[test]
fn a_command_that_ignores_sigterm_keeps_nobody_waiting_and_is_killed() {
    let (topology, _service) = up_with_service();
    let line = "trap '' TERM; while :; do sleep 0.1; done";
    let restart = start_restart(&topology, &["--max-hold", "500ms"], &["sh", "-c", line]);
    wait_until("the lease is over", || mode(&topology, ENDPOINT) == "open");
    // Open, though the command is still being stopped.
    assert_connects_at_once(&topology, TARGET);
    assert!(!restart.has_ended().unwrap());
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_eq!(running(&topology, "sh -c trap"), 0);
}

#[test]
fn all_of_a_stopped_commands_process_group_is_killed() {
    let (topology, _service) = up_with_service();
    let stubborn = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & wait";
    let options = ["--max-hold", "500ms"];
    let output = restart(&topology, &options, &["sh", "-c", stubborn]);
    assert_eq!(output.code(), 124, "{output}");
    wait_until("the last of the group is gone", || {
        running(&topology, "sh -c trap") == 0
    });
}

#[test]
fn a_command_that_daemonises_is_done_when_it_returns() {
    let (topology, _service) = up_with_service();
    for line in ["sleep 98763 & exit 0", "setsid sleep 98763 & exit 0"] {
        let output = restart(&topology, &[], &["sh", "-c", line]);
        assert_eq!(output.code(), 0, "{output}");
        assert!(output.took < Duration::from_secs(10), "{output}");
        assert_eq!(mode(&topology, ENDPOINT), "open");
    }
    // What it left behind is left alone.
    assert_eq!(running(&topology, "sleep 98763"), 2);
}

// ---- Checks ----

#[test]
fn the_gate_opens_when_the_check_passes_and_not_before() {
    let (topology, _service) = up_with_service();
    let check = "exec:test -e /run/healthy";
    let restart = start_restart(&topology, &["--json", "--check", check], &["true"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    sleep(MS * 300);
    assert_eq!((mode(&topology, ENDPOINT), client.connected()), ("hold", 0));
    write(&topology, "healthy", "", 0o644);
    let output = restart.wait(LIMIT).unwrap().ok().unwrap();
    let fields: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(fields["released"], 1, "{output}");
    assert!(fields["closed_ms"].as_f64().unwrap() >= 300.0, "{output}");
    assert!(client.finish_connected() < BEFORE_RETRANSMISSION);
}

#[test]
fn every_kind_of_check_passes_when_it_should() {
    let (topology, _service) = up_with_service();
    for options in [
        &["--check", "tcp://10.0.0.5:8080"][..],
        &["--check", "http://10.0.0.5:8080/healthz"],
        &[
            "--check",
            "http://10.0.0.5:8080/none",
            "--check-status",
            "404",
        ],
        &[
            "--check",
            "http://10.0.0.5:8080/none",
            "--check-status",
            "200-499",
        ],
        &["--check", "exec:exit 0"],
        &["--check", "exec:true", "--check", "tcp://10.0.0.5:8080"],
    ] {
        let output = restart(&topology, options, &["true"]);
        assert_eq!(output.code(), 0, "{output}");
        assert!(output.stdout.contains("healthy"), "{output}");
    }
}

#[test]
fn a_check_that_never_passes_ends_with_the_lease_and_is_named() {
    let (topology, _service) = up_with_service();
    // It connects, and never says a word.
    let _mute = listen(&topology, server_v4(81));
    let hold = ["--max-hold", "500ms", "--check-timeout", "100ms"];
    for (check, word) in [
        ("http://10.0.0.5:81/healthz", "no answer within 100ms"),
        ("http://10.0.0.5:82/healthz", "connection refused"),
        ("http://10.0.0.5:8080/none", "status 404"),
        ("https://10.0.0.5:81/healthz", "no answer within 100ms"),
        ("tcp://10.0.0.5:82", "connection refused"),
        ("exec:exit 3", "exit status: 3"),
        ("exec:sleep 9", "no answer within 100ms"),
    ] {
        let options = [&hold[..], &["--check", check]].concat();
        let output = restart(&topology, &options, &["true"]);
        assert_eq!(output.code(), 124, "{output}");
        assert_complaint(&output, &["not healthy", "--max-hold 500ms", check, word]);
        assert_eq!(mode(&topology, ENDPOINT), "open");
    }
}

#[test]
fn a_check_by_command_that_is_given_up_leaves_no_process() {
    let (topology, _service) = up_with_service();
    let check = "exec:sleep 98764";
    let options = [
        "--max-hold",
        "500ms",
        "--check-timeout",
        "100ms",
        "--check",
        check,
    ];
    let output = restart(&topology, &options, &["true"]);
    assert_eq!(output.code(), 124, "{output}");
    assert_eq!(running(&topology, "sleep 98764"), 0);
}

#[test]
fn a_backend_that_does_not_come_back_ends_with_the_lease_and_is_named() {
    let (topology, service) = up_with_service();
    service.process().signal(Signal::SIGTERM).unwrap();
    service.process().wait(LIMIT).unwrap();
    let options = ["--max-hold", "500ms", "--check", "exec:true"];
    let output = restart(&topology, &options, &["true"]);
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["nothing listens on 10.0.0.5:8080"]);
}

#[test]
fn a_wildcard_restart_needs_no_check_of_its_own_wherever_the_backend_listens() {
    for listen_at in [server_v4(PORT), server_v6(PORT)] {
        let topology = up();
        let _service = Service::start(&topology, Options::new(listen_at)).unwrap();
        let args = ["restart", "*:8080", "--max-hold", "2s", "--", "true"];
        let output = topology.gate(args).unwrap();
        assert_eq!(output.code(), 0, "{listen_at}: {output}");
    }
}

#[test]
fn what_another_command_did_to_the_gate_meanwhile_stays() {
    let (topology, _service) = up_with_service();
    let restart = start_restart(&topology, &[], &["sleep", "1"]);
    gate(&topology, &["reject", ENDPOINT, "--for", "30s"]);
    let output = restart.wait(LIMIT).unwrap();
    assert!(output.stdout.contains("another command"), "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "reject");
}

// ---- Many ----

#[test]
fn ten_thousand_held_connections_are_all_released() {
    const COUNT: usize = 10_000;
    let topology = up();
    for (name, value) in [
        ("net.core.somaxconn", "16384"),
        ("net.ipv4.tcp_max_syn_backlog", "16384"),
        ("net.ipv4.tcp_syncookies", "0"),
    ] {
        topology.sysctl(Side::Server, name, value).unwrap();
    }
    let listener = listen(&topology, TARGET);
    // SAFETY: the call takes two integers, of which one is an open socket's descriptor.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 16_384) }, 0);
    gate(&topology, &["hold", ENDPOINT, "--for", "60s"]);
    let clients = Clients::start(&topology, TARGET, COUNT, None);
    wait_until_held(&topology, ENDPOINT, COUNT);
    assert_eq!(clients.connected(), 0);
    let start = Instant::now();
    let output = gate(&topology, &["open", "--json", ENDPOINT]);
    let opened = start.elapsed();
    wait_until("all have ended", || clients.ended().len() == COUNT);
    println!(
        "gate open: {} in {opened:?}, all connected after {:?}",
        output.stdout.trim(),
        start.elapsed()
    );
    clients.finish_connected();
    for (counter, expected) in [
        (Counter::Held, COUNT),
        (Counter::Released, COUNT),
        (Counter::Overflowed, 0),
        (Counter::Uncaptured, 0),
    ] {
        assert_eq!(
            count(&topology, ENDPOINT, counter),
            expected as u64,
            "{counter:?}"
        );
    }
    for name in ["ListenOverflows", "ListenDrops", "TCPReqQFullDrop"] {
        assert_eq!(netstat(&topology, name), 0, "{name}");
    }
}

/// Starts to capture every frame of the server's interface.
fn capture(topology: &Topology) -> File {
    topology
        .run(Side::Server, || {
            let all = i32::from(u16::to_be(libc::ETH_P_ALL as u16));
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: the call takes three integers and touches no memory of ours.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, all) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
            let file = unsafe { File::from_raw_fd(fd) };
            let room: libc::c_int = 1 << 24;
            // SAFETY: the value is an integer of the size that is passed, and lives through the
            // call.
            let set = unsafe {
                libc::setsockopt(
                    fd,
                    libc::SOL_SOCKET,
                    libc::SO_RCVBUFFORCE,
                    std::ptr::from_ref(&room).cast(),
                    size_of_val(&room) as libc::socklen_t,
                )
            };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
            Ok(file)
        })
        .unwrap()
}

/// The source ports of the SYNs to the port among the captured frames, in order: IPv4 without
/// options over untagged Ethernet, as all is in a topology.
fn captured_syns(mut capture: &File) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut frame = [0; 2048];
    while let Ok(len) = capture.read(&mut frame) {
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let is_syn = len >= 54 && word(12) == 0x0800 && frame[23] == 6 && frame[47] & 0x3f == 2;
        if is_syn && word(36) == PORT {
            ports.push(word(34));
        }
    }
    ports
}

#[test]
fn what_is_held_reaches_the_stack_once_and_in_order() {
    const COUNT: u16 = 100;
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--hook", "xdp-generic", INTERFACE]);
    let _listener = listen(&topology, TARGET);
    // XDP comes before the capture, so what is withheld does not show.
    let capture = capture(&topology);
    assert_connects_at_once(&topology, TARGET);
    assert_eq!(captured_syns(&capture).len(), 1);

    gate(&topology, &["hold", ENDPOINT]);
    let clients = Clients::start(&topology, TARGET, COUNT.into(), Some(20_000));
    wait_until_held(&topology, ENDPOINT, COUNT.into());
    // Each is retransmitted meanwhile, and still one connection.
    wait_until_counted(&topology, ENDPOINT, Counter::Refreshed, COUNT.into());
    assert_eq!(count(&topology, ENDPOINT, Counter::Held), u64::from(COUNT));
    assert_eq!(captured_syns(&capture).len(), 0);
    gate(&topology, &["open", ENDPOINT]);
    clients.finish_connected();
    let ports: Vec<u16> = (20_000..20_000 + COUNT).collect();
    assert_eq!(captured_syns(&capture), ports);
    assert_eq!(
        count(&topology, ENDPOINT, Counter::Released),
        u64::from(COUNT)
    );
}

#[test]
fn opening_under_load_loses_and_delays_nobody() {
    let (topology, _service) = up_with_service();
    let length = Duration::from_secs(7);
    let load = Load::new(TARGET, 1_000, length);
    let load = load.start(&topology).unwrap();
    sleep(MS * 200);
    // Each opening races with SYNs that are just coming in.
    for _ in 0..8 {
        gate(&topology, &["hold", ENDPOINT]);
        sleep(MS * 100);
        gate(&topology, &["open", ENDPOINT]);
    }
    assert!(load.begin().elapsed() < length, "too slow for the load");
    assert_nothing_lost(&load.finish().unwrap());
    assert!(count(&topology, ENDPOINT, Counter::Released) > 100);
}

/// Every request was answered, and none by way of a retransmission.
#[track_caller]
fn assert_nothing_lost(requests: &[Request]) {
    assert!(requests.len() > 100);
    let is_bad = |r: &&Request| r.outcome != Outcome::Ok || r.latency > BEFORE_RETRANSMISSION;
    let bad: Vec<_> = requests.iter().filter(is_bad).collect();
    assert!(
        bad.is_empty(),
        "{} of {}: {bad:?}",
        bad.len(),
        requests.len()
    );
}

#[test]
fn nginx_is_restarted_under_load_and_no_client_sees_it() {
    let summary = bench::restart::once(MS * 300, 200).unwrap();
    assert!(summary.requests > 400, "{summary:?}");
    assert_eq!(summary.lost(), 0, "{}", summary.errors_in_words());
    assert!(summary.outage >= MS * 299, "{summary:?}");
    // Half of a retransmission's second, which is what tells the mechanisms apart.
    assert!(summary.added().unwrap() < MS * 500, "{summary:?}");
}

#[test]
fn fifty_restarts_in_a_row_under_load_lose_nobody() {
    const RESTARTS: usize = 50;
    let (topology, service) = up_with_service();
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let load = topology
        .start(Side::Client, move || {
            let mut requests = Vec::new();
            while !is_done.load(Ordering::SeqCst) {
                requests.extend(Load::new(TARGET, 200, MS * 500).run(Instant::now())?);
            }
            Ok(requests)
        })
        .unwrap();
    let watch = Watch::start(&topology, TARGET).unwrap();
    let words = service.restart_command(MS * 50).unwrap();
    let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
    for _ in 0..RESTARTS {
        let output = restart(&topology, &[], &words);
        assert_eq!(output.code(), 0, "{output}");
    }
    done.store(true, Ordering::SeqCst);
    assert_nothing_lost(&load.join().unwrap().unwrap());
    let gaps = watch.finish().unwrap();
    assert_eq!(gaps.len(), RESTARTS);
    // The watch may see a listener's end late, but it sees every one.
    assert!(gaps.iter().all(|gap| gap.length() >= MS * 25), "{gaps:?}");
    assert!(count(&topology, ENDPOINT, Counter::Released) > 100);
    // The backend that answers now is the last that was started.
    let outcome = topology.run(Side::Client, || get_once(TARGET, "/healthz", LIMIT));
    assert_eq!(outcome.unwrap(), Outcome::Ok);
}

#[test]
fn gates_are_counted_and_named_once_however_often_they_are_closed() {
    let topology = up();
    for _ in 0..5 {
        gate(&topology, &["hold", ENDPOINT, ENDPOINT, "*:8080"]);
        gate(&topology, &["open", "--all"]);
    }
    let gates = status(&topology).gates;
    let names: BTreeSet<String> = gates.iter().map(|g| g.gate.to_string()).collect();
    assert_eq!((gates.len(), names.len()), (2, 2), "{names:?}");
}

#[test]
fn under_nohup_a_hangup_changes_nothing() {
    let (topology, _service) = up_with_service();
    let mut command = Command::new("nohup");
    command
        .arg(gate_tests::exe::gate().unwrap())
        .args(["restart", ENDPOINT, "--", "sleep", "1.5"]);
    let restart = topology.spawn(Side::Server, &mut command).unwrap();
    wait_until("the command runs", || running(&topology, "sleep 1.5") == 1);
    restart.signal(Signal::SIGHUP).unwrap();
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
}
