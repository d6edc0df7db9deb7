//! New connections go to another backend by the look-up of listeners, and the one that had them
//! keeps its own. Needs root.

mod common;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, LIMIT, MS, PORT, assert_complaint,
    assert_only_while_held, connect_once, gate, gate_status, mode, refused, shell, snapshot,
    tcp_info, up, wait_until, wait_until_held,
};
use gate_tests::backend::Options;
use gate_tests::exe;
use gate_tests::service::Service;
use gate_tests::topology::{Process, Side, Topology, server_v4, server_v6};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::sockets;
use nix::sys::signal::Signal;
use serde_json::Value;

const TO: &str = "127.0.0.1:8082";

/// Starts a backend that answers with its name; returns when it listens.
#[track_caller]
fn serve(topology: &Topology, name: &str, listen: &[&str]) -> Process {
    serve_with(topology, name, listen, false)
}

#[track_caller]
fn serve_with(topology: &Topology, name: &str, listen: &[&str], reuse_port: bool) -> Process {
    // Others of its group may listen there already.
    let places: BTreeSet<Endpoint> = listen.iter().map(|text| text.parse().unwrap()).collect();
    let count = || {
        let counts = places.iter().map(|place| sockets::listeners(*place));
        Ok(counts.sum::<std::io::Result<usize>>()?)
    };
    let count = || topology.run(Side::Server, count).unwrap();
    let all = count() + listen.len();
    let addresses: Vec<SocketAddr> = listen.iter().map(|text| text.parse().unwrap()).collect();
    let options = Options {
        name: name.to_owned(),
        reuse_port,
        listen: addresses.clone(),
        ..Options::new(addresses[0])
    };
    let mut command = std::process::Command::new(exe::lab().unwrap());
    command.arg("backend").args(options.to_args());
    let process = topology.spawn(Side::Server, &mut command).unwrap();
    wait_until("all its sockets listen", || count() == all);
    process
}

/// Asks over a connection of its own, and returns who answered.
#[track_caller]
fn ask(topology: &Topology, from: Side, target: SocketAddr) -> String {
    let talk = || {
        let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
        Ok(ask_over(&mut stream)?)
    };
    topology.run(from, talk).unwrap()
}

/// Asks over a connection that stays open.
fn ask_over(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    Ok(text.lines().next_back().unwrap_or_default().to_owned())
}

#[track_caller]
fn json(topology: &Topology, args: &[&str]) -> Value {
    let output = gate(topology, &[&["--json"], args].concat());
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn new_connections_go_to_the_new_backend_and_the_old_one_keeps_its_own() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let b = serve(&topology, "b", &[TO]);
    let target = server_v4(PORT);
    let mut kept = topology
        .run(Side::Client, || Ok(TcpStream::connect(target)?))
        .unwrap();
    assert_eq!(ask_over(&mut kept).unwrap(), "a");
    let handed = gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    let line = format!("{ENDPOINT}: new connections go to {TO} (");
    assert!(handed.stdout.starts_with(&line), "{handed}");
    assert!(handed.stdout.contains(&b.id().to_string()) || handed.stdout.contains("gate-lab"));
    for from in [Side::Client, Side::Server] {
        assert_eq!(ask(&topology, from, target), "b");
    }
    assert_eq!(ask_over(&mut kept).unwrap(), "a");
    assert_eq!(
        gate(&topology, &["handover", ENDPOINT, "--back"]).stdout,
        format!("{ENDPOINT}: new connections go to its own listener again\n")
    );
    assert_eq!(ask(&topology, Side::Client, target), "a");
    assert_eq!(ask_over(&mut kept).unwrap(), "a");
    assert_eq!(
        gate(&topology, &["handover", ENDPOINT, "--back"]).stdout,
        format!("{ENDPOINT}: new connections go to its own listener already\n")
    );
}

#[test]
fn a_gate_with_both_families_goes_to_a_backend_of_both() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT, "[fd00::5]:8080"]);
    let _b = serve(&topology, "b", &["[::]:8082"]);
    let _c = serve(&topology, "c", &["127.0.0.1:8083", "[::1]:8083"]);
    gate(&topology, &["define", "web", ENDPOINT, "[fd00::5]:8080"]);
    for (to, name) in [
        ("*:8082", "b"),
        ("127.0.0.1:8083,[::1]:8083", "c"),
        ("10.0.0.5:8082", "b"),
    ] {
        gate(&topology, &["handover", "web", "--to", to]);
        for target in [server_v4(PORT), server_v6(PORT)] {
            assert_eq!(ask(&topology, Side::Client, target), name, "{to} {target}");
        }
    }
    let words = &["127.0.0.1:8083", "no IPv6", "[fd00::5]:8080"];
    refused(
        &topology,
        &["handover", "web", "--to", "127.0.0.1:8083"],
        3,
        words,
    );
}

#[test]
fn all_listeners_of_a_group_share_the_load() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let mut group: Vec<Process> = ["b", "c", "d"]
        .into_iter()
        .map(|name| serve_with(&topology, name, &[TO], true))
        .collect();
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    let target = server_v4(PORT);
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..200 {
        *seen
            .entry(ask(&topology, Side::Client, target))
            .or_default() += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.values().all(|count| *count > 20), "{seen:?}");
    // Whichever of them ends, the others go on.
    while group.len() > 1 {
        let ended = group.remove(0);
        ended.signal(Signal::SIGKILL).unwrap();
        ended.wait(LIMIT).unwrap();
        for _ in 0..20 {
            assert_ne!(ask(&topology, Side::Client, target), "a");
        }
    }
}

#[test]
fn who_joins_a_group_later_is_known_by_the_next_handover() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let b = serve_with(&topology, "b", &[TO], true);
    let hand_over = ["handover", ENDPOINT, "--to", TO];
    gate(&topology, &hand_over);
    let _c = serve_with(&topology, "c", &[TO], true);
    let target = server_v4(PORT);
    wait_until("it has its share", || {
        ask(&topology, Side::Client, target) == "c"
    });
    gate(&topology, &hand_over);
    b.signal(Signal::SIGKILL).unwrap();
    b.wait(LIMIT).unwrap();
    for _ in 0..20 {
        assert_eq!(ask(&topology, Side::Client, target), "c");
    }
    let drain = ["drain", "--backend", TO, "--timeout", "200ms"];
    let connect = || Ok(TcpStream::connect(target)?);
    let _kept = topology.run(Side::Client, connect).unwrap();
    let remaining = topology.gate(drain).unwrap();
    assert_eq!(remaining.code(), 3, "{remaining}");
    assert_complaint(&remaining, &["1 connection", TO]);
}

/// The process id by which its own namespace knows it.
#[track_caller]
fn own_pid(process: &Process) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap().split_whitespace().last().unwrap().to_owned()
}

#[test]
fn a_process_can_be_named_instead_of_its_address() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let b = serve(&topology, "b", &[TO]);
    let pid = own_pid(&b);
    let pid = pid.as_str();
    gate(&topology, &["handover", ENDPOINT, "--pid", pid]);
    assert_eq!(ask(&topology, Side::Client, server_v4(PORT)), "b");
    let to_nothing = ["handover", ENDPOINT, "--pid", pid, "--to", "127.0.0.1:8083"];
    refused(&topology, &to_nothing, 3, &["127.0.0.1:8083", TO]);
    refused(
        &topology,
        &["handover", ENDPOINT, "--pid", "999999"],
        3,
        &["999999"],
    );
    assert_eq!(ask(&topology, Side::Client, server_v4(PORT)), "b");
}

#[test]
fn weights_share_new_connections() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let _b = serve(&topology, "b", &[TO]);
    let args = [
        "handover",
        ENDPOINT,
        "--to",
        "10.0.0.5:8080=3",
        "--to",
        "127.0.0.1:8082=1",
    ];
    let handed = gate(&topology, &args);
    assert!(
        handed.stdout.contains("(3 in 4, its own listener)"),
        "{handed}"
    );
    let target = server_v4(PORT);
    let new = (0..400).filter(|_| ask(&topology, Side::Client, target) == "b");
    let new = new.count();
    // One in four of 400: eight standard deviations each way.
    assert!((30..170).contains(&new), "{new} of 400");
    let fields = json(&topology, &["status"]);
    let handover = &fields["gates"][0]["handover"];
    assert_eq!(handover["hook"], "sk-lookup", "{fields}");
    assert_eq!(handover["to"][1]["backend"], TO, "{fields}");
    assert_eq!(handover["to"][1]["weight"], 1, "{fields}");
}

#[test]
fn what_is_held_goes_to_the_backend_that_is_current_when_it_is_released() {
    let topology = up();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let _b = serve(&topology, "b", &[TO]);
    let target = server_v4(PORT);
    gate(&topology, &["hold", ENDPOINT, "--for", "30s"]);
    let asking = topology
        .start(Side::Client, move || {
            let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
            let sent_again = tcp_info(&stream).tcpi_total_retrans;
            Ok((ask_over(&mut stream)?, u64::from(sent_again)))
        })
        .unwrap();
    wait_until_held(&topology, ENDPOINT, 1);
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    gate(&topology, &["open", ENDPOINT]);
    let (name, sent_again) = asking.join().unwrap().unwrap();
    assert_eq!(name, "b");
    assert_only_while_held(&topology, ENDPOINT, sent_again);
}

#[test]
fn if_the_backends_socket_goes_away_the_gates_own_listener_takes_over() {
    let topology = Topology::new().unwrap();
    let a = serve(&topology, "a", &[ENDPOINT]);
    let b = serve(&topology, "b", &[TO]);
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    let target = server_v4(PORT);
    assert_eq!(ask(&topology, Side::Client, target), "b");
    b.signal(Signal::SIGKILL).unwrap();
    b.wait(LIMIT).unwrap();
    assert_eq!(ask(&topology, Side::Client, target), "a");
    let text = gate(&topology, &["status"]).stdout;
    assert!(text.contains("nothing listens"), "{text}");
    a.signal(Signal::SIGKILL).unwrap();
    a.wait(LIMIT).unwrap();
    let refused = connect_once(&topology, target);
    assert!(refused.result.is_err(), "{refused:?}");
    assert!(refused.took < BEFORE_RETRANSMISSION, "{refused:?}");
}

#[test]
fn a_guarded_gate_holds_when_no_backend_is_left_and_releases_to_the_next() {
    let topology = up();
    let b = serve(&topology, "b", &[TO]);
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    gate(&topology, &["guard", ENDPOINT, "--for", "30s"]);
    let target = server_v4(PORT);
    assert_eq!(ask(&topology, Side::Client, target), "b");
    b.signal(Signal::SIGKILL).unwrap();
    b.wait(LIMIT).unwrap();
    let clients = Clients::one(&topology, target);
    wait_until_held(&topology, ENDPOINT, 1);
    let _c = serve(&topology, "c", &["127.0.0.1:8083"]);
    gate(&topology, &["handover", ENDPOINT, "--to", "127.0.0.1:8083"]);
    for attempt in clients.finish() {
        assert_eq!(attempt.result, Ok(()), "{attempt:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let topology = Topology::new().unwrap();
    let before = snapshot(&topology);
    let to = |to: &'static str| ["handover", ENDPOINT, "--to", to];
    refused(
        &topology,
        &to(TO),
        3,
        &["nothing listens on 127.0.0.1:8082", "start"],
    );
    let _a = serve(&topology, "a", &[ENDPOINT]);
    refused(&topology, &to(ENDPOINT), 2, &["loop", "--back"]);
    refused(&topology, &to("10.0.0.5:8080=0"), 2, &["sum to 0"]);
    let twice = ["handover", ENDPOINT, "--to", TO, "--to", TO];
    refused(&topology, &twice, 2, &["twice"]);
    refused(
        &topology,
        &["handover", "web", "--to", TO],
        3,
        &["no gate web"],
    );
    refused(&topology, &["handover", "web", "--back"], 3, &["not up"]);
    assert_eq!(snapshot(&topology), before);
    let by_any = serve(&topology, "b", &["0.0.0.0:8082"]);
    gate(&topology, &["define", "all", "*:8082"]);
    let looped = ["handover", "all", "--to", "127.0.0.1:8082"];
    refused(&topology, &looped, 2, &["loop"]);
    drop(by_any);
}

#[test]
fn nothing_is_left_attached() {
    let topology = Topology::new().unwrap();
    let links = || {
        shell(
            &topology,
            Side::Server,
            "ls /sys/fs/bpf/gate/*/*/steering 2>/dev/null || true",
        )
    };
    let _a = serve(&topology, "a", &[ENDPOINT, "10.0.0.5:8081"]);
    let _b = serve(&topology, "b", &[TO]);
    gate(&topology, &["define", "web", ENDPOINT]);
    gate(&topology, &["define", "other", "10.0.0.5:8081"]);
    gate(&topology, &["handover", "web", "--to", TO]);
    gate(&topology, &["handover", "other", "--to", TO]);
    assert_eq!(links(), "sk_lookup\n");
    gate(&topology, &["handover", "web", "--back"]);
    assert_eq!(links(), "sk_lookup\n");
    assert_eq!(ask(&topology, Side::Client, server_v4(8081)), "b");
    gate(&topology, &["handover", "other", "--back"]);
    assert_eq!(links(), "");
    gate(&topology, &["handover", "web", "--to", TO]);
    assert_complaint(&topology.gate(["forget", "web"]).unwrap(), &["--back"]);
    gate(&topology, &["down"]);
    wait_until("the gate's own listener answers", || {
        ask(&topology, Side::Client, server_v4(PORT)) == "a"
    });
    let left = "find /sys/fs/bpf -mindepth 1 ! -name '*.debug'";
    assert_eq!(shell(&topology, Side::Server, left), "");
}

#[test]
fn a_restart_that_attached_by_itself_keeps_the_handover() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let _b = serve(&topology, "b", &[TO]);
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    let restarted = topology.gate(["restart", ENDPOINT, "--", "true"]).unwrap();
    assert_eq!(restarted.code(), 0, "{restarted}");
    assert_eq!(ask(&topology, Side::Client, server_v4(PORT)), "b");
    assert_eq!(gate_status(&topology, ENDPOINT).mode.name(), "open");
}

#[test]
fn a_command_runs_once_the_old_backend_is_empty() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let _b = serve(&topology, "b", &[TO]);
    let target = server_v4(PORT);
    let mut kept = topology
        .run(Side::Client, || Ok(TcpStream::connect(target)?))
        .unwrap();
    assert_eq!(ask_over(&mut kept).unwrap(), "a");
    let then = ["--then", "echo ran; exit 7", "--timeout", "300ms"];
    let args = [&["handover", ENDPOINT, "--to", TO][..], &then].concat();
    let remaining = topology.gate(&args).unwrap();
    assert_eq!(remaining.code(), 3, "{remaining}");
    assert!(!remaining.stdout.contains("ran"), "{remaining}");
    assert_complaint(
        &remaining,
        &["1 connection", ENDPOINT, "gate drain --backend"],
    );
    assert_eq!(ask(&topology, Side::Client, target), "b");
    // A second time nobody has lost them just now.
    let again = topology.gate(&args).unwrap();
    assert_eq!(again.code(), 3, "{again}");
    assert_complaint(&again, &["already", "gate drain --backend"]);
    // B keeps nobody.
    let back = ["handover", ENDPOINT, "--back", "--then", "echo ran; exit 7"];
    let ran = topology.gate(&back).unwrap();
    assert_eq!(ran.code(), 7, "{ran}");
    assert!(ran.stdout.contains("\nran\n"), "{ran}");
    assert_complaint(&ran, &["exit code 7"]);
    // The last connection ends while it waits.
    let then = ["handover", ENDPOINT, "--to", TO, "--then", "echo ran"];
    let waiting = topology.spawn_gate(then).unwrap();
    wait_until("it waits", || waiting.stderr().unwrap().contains("waiting"));
    drop(kept);
    let ran = waiting.wait(LIMIT).unwrap();
    assert_eq!(ran.code(), 0, "{ran}");
    assert!(ran.stdout.ends_with("the command is done\n"), "{ran}");
    gate(&topology, &["handover", ENDPOINT, "--back"]);
    let both = "echo ran >&2; echo ran";
    let then = ["--json", "handover", ENDPOINT, "--to", TO, "--then", both];
    let output = topology.gate(then).unwrap();
    assert_eq!(output.stderr, "ran\nran\n", "{output}");
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(fields["then"]["ran"], true, "{fields}");
    assert_eq!(fields["then"]["exit_code"], 0, "{fields}");
    assert_eq!(fields["left"][0], ENDPOINT, "{fields}");
    assert_eq!(fields["to"][0]["backend"], TO, "{fields}");
}

/// Ends a backend for good.
#[track_caller]
fn kill(process: &Process) {
    process.signal(Signal::SIGKILL).unwrap();
    process.wait(LIMIT).unwrap();
}

#[test]
fn a_restart_of_the_backend_that_is_current_waits_for_that_and_knows_its_new_socket() {
    let topology = up();
    let b = Options {
        name: "b".to_owned(),
        ..Options::new(TO.parse().unwrap())
    };
    let b = Service::start(&topology, b).unwrap();
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    let target = server_v4(PORT);
    assert_eq!(ask(&topology, Side::Client, target), "b");
    let restart = b.restart_command(MS * 300).unwrap();
    let mut args: Vec<std::ffi::OsString> = vec!["restart".into(), ENDPOINT.into(), "--".into()];
    args.extend(restart);
    let restarting = topology.spawn_gate(args).unwrap();
    wait_until("the gate is closed", || mode(&topology, ENDPOINT) == "hold");
    let clients = Clients::one(&topology, target);
    let restarted = restarting.wait(LIMIT).unwrap();
    assert_eq!(restarted.code(), 0, "{restarted}");
    for attempt in clients.finish() {
        assert_eq!(attempt.result, Ok(()), "{attempt:?}");
    }
    assert_eq!(ask(&topology, Side::Client, target), "b");
    let to = json(&topology, &["status"])["gates"][0]["handover"]["to"][0].clone();
    assert_eq!(to["listening"], 1, "{to}");
}

#[test]
fn the_guards_watcher_knows_a_backend_that_came_back() {
    let topology = up();
    let b = serve(&topology, "b", &[TO]);
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    let watching = topology
        .spawn_gate(["guard", ENDPOINT, "--for", "30s", "--watch"])
        .unwrap();
    wait_until("it is guarded", || {
        gate_status(&topology, ENDPOINT).guard.is_some()
    });
    kill(&b);
    let target = server_v4(PORT);
    let clients = Clients::one(&topology, target);
    wait_until_held(&topology, ENDPOINT, 1);
    let _b = serve(&topology, "c", &[TO]);
    for attempt in clients.finish() {
        assert_eq!(attempt.result, Ok(()), "{attempt:?}");
    }
    assert_eq!(ask(&topology, Side::Client, target), "c");
    watching.signal(Signal::SIGINT).unwrap();
    assert_eq!(watching.wait(LIMIT).unwrap().code(), 0);
}

#[test]
fn a_backend_of_both_families_is_empty_when_it_has_connections_of_neither() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT, "[fd00::5]:8080"]);
    let _b = serve(&topology, "b", &["127.0.0.1:8082", "[::1]:8082"]);
    gate(&topology, &["define", "web", ENDPOINT, "[fd00::5]:8080"]);
    gate(
        &topology,
        &["handover", "web", "--to", "127.0.0.1:8082,[::1]:8082"],
    );
    let target = server_v6(PORT);
    let mut kept = topology
        .run(Side::Client, || Ok(TcpStream::connect(target)?))
        .unwrap();
    assert_eq!(ask_over(&mut kept).unwrap(), "b");
    let back = [
        "handover",
        "web",
        "--back",
        "--then",
        "true",
        "--timeout",
        "300ms",
    ];
    let remaining = topology.gate(back).unwrap();
    assert_eq!(remaining.code(), 3, "{remaining}");
    assert_complaint(&remaining, &["1 connection", "[::1]:8082"]);
}

#[test]
fn all_connections_of_a_large_group_are_known_to_be_its_own() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT]);
    let _b = serve_with(&topology, "b", &[TO; 40], true);
    gate(&topology, &["handover", ENDPOINT, "--to", TO]);
    let target = server_v4(PORT);
    let connect = || {
        let kept = (0..80).map(|_| TcpStream::connect(target));
        Ok(kept.collect::<Result<Vec<_>, _>>()?)
    };
    let kept = topology.run(Side::Client, connect).unwrap();
    let drain = ["drain", "--backend", TO, "--timeout", "200ms"];
    let remaining = topology.gate(drain).unwrap();
    assert_eq!(remaining.code(), 3, "{remaining}");
    assert!(
        remaining.stdout.contains("80 connections left"),
        "{remaining}"
    );
    drop(kept);
}

#[test]
fn a_backend_that_another_gate_still_gives_connections_is_not_stopped() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", &[ENDPOINT, "10.0.0.5:8081"]);
    let _b = serve(&topology, "b", &[TO]);
    gate(&topology, &["define", "one", ENDPOINT]);
    gate(&topology, &["define", "two", "10.0.0.5:8081"]);
    gate(&topology, &["handover", "one", "--to", TO]);
    gate(&topology, &["handover", "two", "--to", TO]);
    let back = ["handover", "one", "--back", "--then", "echo ran"];
    let refused = topology.gate(back).unwrap();
    assert_eq!(refused.code(), 3, "{refused}");
    assert!(!refused.stdout.contains("ran\n"), "{refused}");
    assert_complaint(&refused, &["two", "did not run"]);
    let last = ["handover", "two", "--back", "--then", "echo ran"];
    let ran = gate(&topology, &last);
    assert!(ran.stdout.contains("\nran\n"), "{ran}");
}
