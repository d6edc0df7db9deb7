//! Waiting until connections are gone: what counts as one, who is told of, and how it ends. Needs
//! root.

mod common;

use std::net::{Shutdown, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Instant;

use common::{
    Connected, Dial, ENDPOINT, Ended, LIMIT, MS, PORT, assert_complaint, assert_refusal, close,
    connect, connect_many, connect_to_each, define_web, dial, error_at, gate, listen, listen_at,
    public_gate, run_gate, start_gate, up, wait_until, wait_until_held,
};
use gate_tests::exe;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{CLIENT_V4, INTERFACE, SERVER_V4, Side, Topology, server_v4, server_v6};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Who is connected, by a drain that doesn't wait.
#[track_caller]
fn left(topology: &Topology, side: Side, endpoint: &str) -> Vec<Value> {
    let output = run_gate(
        topology,
        side,
        &["drain", endpoint, "--timeout", "1ms", "--json"],
    );
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    let left = fields["connections"].as_array().unwrap().clone();
    assert_eq!(fields["left"], left.len(), "{output}");
    assert_eq!(fields["exit_code"], output.code(), "{output}");
    assert_eq!(
        output.code(),
        if left.is_empty() { 0 } else { 3 },
        "{output}"
    );
    left
}

fn states(left: &[Value], end: &str) -> Vec<String> {
    let state = |it: &Value| it[end]["state"].as_str().unwrap_or("none").to_owned();
    left.iter().map(state).collect()
}

fn local(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

// ---- What counts as connected ----

#[test]
fn it_waits_until_the_last_connection_ends() {
    for (bound, target, endpoint, from, at) in [
        (
            server_v4(PORT),
            server_v4(PORT),
            ENDPOINT,
            Side::Client,
            Side::Server,
        ),
        (
            server_v4(PORT),
            server_v4(PORT),
            ENDPOINT,
            Side::Client,
            Side::Client,
        ),
        (
            server_v6(PORT),
            server_v6(PORT),
            "[fd00::5]:8080",
            Side::Client,
            Side::Server,
        ),
        (
            server_v6(PORT),
            server_v6(PORT),
            "[fd00::5]:8080",
            Side::Client,
            Side::Client,
        ),
        (
            local("[::]:8080"),
            server_v4(PORT),
            ENDPOINT,
            Side::Client,
            Side::Server,
        ),
        (
            local("[::]:8080"),
            server_v4(PORT),
            "*:8080",
            Side::Client,
            Side::Server,
        ),
        (
            local("127.0.0.1:8080"),
            local("127.0.0.1:8080"),
            "127.0.0.1:8080",
            Side::Server,
            Side::Server,
        ),
    ] {
        let what = format!("{bound} {target} {endpoint} {from:?} {at:?}");
        let topology = Topology::new().unwrap();
        let listener = listen(&topology, bound);
        let near = listen(&topology, SocketAddr::new(bound.ip(), PORT + 1));
        let other = SocketAddr::new(target.ip(), PORT + 1);
        let _other = connect(&topology, from, other, &near);
        let mut connected = connect_many(&topology, from, target, &listener, 3);
        let drain = start_gate(&topology, at, &["drain", endpoint]);
        wait_until("it waits", || drain.stderr().unwrap().contains("waiting"));
        let stderr = drain.stderr().unwrap();
        assert!(
            stderr.contains("waiting for 3 connections to end, for 30s"),
            "{what}: {stderr}"
        );
        while let Some(one) = connected.pop() {
            assert!(!drain.has_ended().unwrap(), "{what}");
            drop(one);
        }
        let output = drain.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{what}: {output}");
        assert!(
            output
                .stdout
                .contains("drained; the last of 3 connections ended after"),
            "{what}: {output}"
        );
    }
}

#[test]
fn a_wildcard_is_this_host() {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let _connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    assert_eq!(left(&topology, Side::Client, "*:8080").len(), 0);
    assert_eq!(left(&topology, Side::Client, ENDPOINT).len(), 1);
    assert_eq!(left(&topology, Side::Server, "*:8080").len(), 1);
    assert_eq!(left(&topology, Side::Server, "10.0.0.6:8080").len(), 0);
}

#[test]
fn both_sockets_of_a_connection_on_one_host_count_once() {
    let topology = Topology::new().unwrap();
    for (bound, target) in [
        ("0.0.0.0:8080", "10.0.0.5:8080"),
        ("[::]:8080", "10.0.0.5:8080"),
        ("[::]:8080", "[::1]:8080"),
    ] {
        let listener = listen(&topology, local(bound));
        let connected = connect(&topology, Side::Server, local(target), &listener);
        for endpoint in [target, "*:8080"] {
            let left = left(&topology, Side::Server, endpoint);
            assert_eq!(left.len(), 1, "{bound} {endpoint}: {left:?}");
            assert_eq!(states(&left, "backend"), ["established"]);
            assert_eq!(states(&left, "client"), ["established"]);
        }
        // A child of another test, between fork and exec, that keeps it has the listener, too.
        drop(connected);
        close(&topology, listener);
    }
}

#[test]
fn what_a_process_has_no_more_does_not_count() {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let both = |expected: [&[&str]; 2]| {
        for ((side, end), expected) in [(Side::Server, "backend"), (Side::Client, "client")]
            .into_iter()
            .zip(expected)
        {
            // A child of another test's, between fork and exec, may still have what was dropped.
            wait_until(&format!("the {end}'s states are {expected:?}"), || {
                states(&left(&topology, side, ENDPOINT), end) == expected
            });
        }
    };
    let make = || connect(&topology, Side::Client, server_v4(PORT), &listener);
    let connected = make();
    both([&["established"], &["established"]]);
    // Shut down for writing, the client still reads the answer.
    connected.client.shutdown(Shutdown::Write).unwrap();
    both([&["close-wait"], &["fin-wait-2"]]);
    // In TIME_WAIT it is the kernel's.
    drop(connected);
    both([&[], &[]]);
    // Closed by the backend, which has all the answers sent.
    let Connected { client, backend } = make();
    drop(backend);
    both([&[], &["close-wait"]]);
    drop(client);
    both([&[], &[]]);
    // Never accepted.
    let client = topology
        .run(Side::Client, || {
            Ok(std::net::TcpStream::connect(server_v4(PORT))?)
        })
        .unwrap();
    both([&["established"], &["established"]]);
    drop(client);
}

#[test]
fn an_attempt_that_a_gate_holds_does_not_count() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "lo"]);
    let listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let client = dial(&topology, Side::Server, Dial::to(server_v4(PORT)));
    wait_until_held(&topology, ENDPOINT, 1);
    let output = run_gate(&topology, Side::Server, &["drain", ENDPOINT]);
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(client.finish(), Ended::Connected);
    drop(listener);
}

#[test]
fn a_half_open_request_is_waited_for() {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let client = common::half_open(&topology, server_v4(PORT));
    let output = run_gate(
        &topology,
        Side::Server,
        &["drain", ENDPOINT, "--timeout", "300ms", "--json"],
    );
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    // At the deadline it is no connection.
    assert_eq!((output.code(), &fields["left"]), (0, &0.into()), "{output}");
    assert_eq!(fields["half_open"], 1, "{output}");
    assert!(fields["waited_ms"].as_f64().unwrap() >= 300.0, "{output}");
    common::let_half_open_through(&topology);
    assert_eq!(client.finish(), Ended::Connected);
    drop(listener);
}

// ---- How it ends ----

#[test]
fn who_holds_on_is_told_with_state_idle_time_and_process() {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    // A process of the topology, which the gate in there can see.
    let mut command = Command::new("bash");
    command.args(["-c", "exec 3<>/dev/tcp/10.0.0.5/8080; exec sleep 1000"]);
    let _client = topology.spawn(Side::Server, &mut command).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let peer = accepted.peer_addr().unwrap().to_string();
    wait_until("it sleeps", || {
        common::running(&topology, "sleep 1000") == 1
    });
    let begin = Instant::now();
    let args = ["drain", ENDPOINT, "--timeout", "200ms"];
    let output = run_gate(&topology, Side::Server, &args);
    assert!(begin.elapsed() >= 200 * MS, "{output}");
    assert_eq!(output.code(), 3, "{output}");
    assert_complaint(
        &output,
        &[
            "1 connection to",
            "--timeout 200ms",
            "gate flush",
            "--then flush",
        ],
    );
    for word in [
        &*peer,
        "established",
        "sleep (",
        "1 connection left",
        "idle",
    ] {
        assert!(output.stdout.contains(word), "no {word} in {output}");
    }
    assert!(
        output.stderr.contains("is open, so new connections"),
        "{output}"
    );
    let left = left(&topology, Side::Server, ENDPOINT);
    let one = &left[0];
    assert_eq!(
        (&one["client_address"], &one["endpoint"]),
        (&Value::from(&*peer), &ENDPOINT.into())
    );
    assert_eq!(one["client"]["process"]["name"], "sleep", "{one}");
    assert!(one["idle_ms"].as_f64().unwrap() >= 200.0, "{one}");
    assert_eq!(one["backend"]["unread"], 0, "{one}");
}

#[test]
fn a_long_list_is_cut_in_words_and_whole_in_json() {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let _connected = connect_many(&topology, Side::Client, server_v4(PORT), &listener, 27);
    let output = run_gate(
        &topology,
        Side::Server,
        &["drain", ENDPOINT, "--timeout", "1ms"],
    );
    assert!(output.stdout.contains("27 connections left"), "{output}");
    assert!(
        output.stdout.ends_with("and 7 more (`--json` lists all)\n"),
        "{output}"
    );
    assert_eq!(output.stdout.lines().count(), 1 + 1 + 20 + 1, "{output}");
    assert_eq!(left(&topology, Side::Server, ENDPOINT).len(), 27);
}

#[test]
fn unread_and_unacknowledged_bytes_are_told() {
    use std::io::Write as _;
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let mut connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    connected.client.write_all(&[0; 5]).unwrap();
    wait_until("they are there", || {
        left(&topology, Side::Server, ENDPOINT)[0]["backend"]["unread"] == 5
    });
    common::shell(&topology, Side::Client, "ip link set eth0 down");
    connected.backend.write_all(&[0; 7]).unwrap();
    let left = left(&topology, Side::Server, ENDPOINT);
    assert_eq!(left[0]["backend"]["unsent"], 7, "{left:?}");
}

#[test]
fn a_signal_ends_it_at_once_with_the_report() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let _connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        for then in ["leave", "flush"] {
            let args = ["drain", ENDPOINT, "--timeout", "1h", "--then", then];
            let drain = start_gate(&topology, Side::Server, &args);
            wait_until("it waits", || drain.stderr().unwrap().contains("waiting"));
            drain.signal(signal).unwrap();
            let output = drain.wait(LIMIT).unwrap();
            assert_eq!(output.code(), code, "{output}");
            assert_complaint(&output, &["interrupted", "nothing was changed"]);
            assert!(output.stdout.contains("established"), "{output}");
            assert_eq!(left(&topology, Side::Server, ENDPOINT).len(), 1);
        }
    }
}

#[test]
fn what_is_left_is_flushed_where_that_is_asked_for() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect_many(&topology, Side::Client, server_v4(PORT), &listener, 2);
    let args = ["drain", ENDPOINT, "--timeout", "100ms", "--then", "flush"];
    let output = run_gate(&topology, Side::Server, &args);
    assert_eq!(output.code(), 0, "{output}");
    for word in ["2 connections left", "2 connections reset"] {
        assert!(output.stdout.contains(word), "no {word} in {output}");
    }
    for one in &connected {
        assert_eq!(error_at(&one.client), Some(libc::ECONNRESET));
    }
    let again = run_gate(&topology, Side::Server, &args);
    assert!(
        again
            .stdout
            .contains("no connection is in this network namespace"),
        "{again}"
    );
}

// ---- Gates ----

#[test]
fn a_name_stands_for_all_of_its_endpoints() {
    let topology = up();
    let [one, two] = define_web(&topology);
    let _connected = connect_to_each(&topology, [one, two]);
    assert_eq!(left(&topology, Side::Server, "web").len(), 2);
    // Held, it has nothing to note.
    gate(&topology, &["hold", "web"]);
    let output = run_gate(
        &topology,
        Side::Server,
        &["drain", "web", "--timeout", "1ms"],
    );
    assert!(!output.stderr.contains("is open"), "{output}");
    // No endpoint is told of twice.
    let twice = ["drain", "web", &one.to_string(), "--timeout", "1ms"];
    let output = run_gate(&topology, Side::Server, &twice);
    assert!(output.stdout.contains("2 connections left"), "{output}");
}

#[test]
fn a_gate_that_does_not_exist_is_refused() {
    for topology in [Topology::new().unwrap(), up()] {
        for verb in ["drain", "flush"] {
            let output = run_gate(&topology, Side::Server, &[verb, "web"]);
            assert_refusal(&output, 3, &["no gate web", "gate define web"]);
            let output = run_gate(&topology, Side::Server, &[verb, "10.0.0.5"]);
            assert_refusal(&output, 2, &["10.0.0.5", "port"]);
        }
    }
}

#[test]
fn an_endpoint_needs_no_rights() {
    let topology = up();
    let listener = listen(&topology, server_v4(PORT));
    let _connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let path = public_gate(&topology);
    let nobody = |args: &[&str]| {
        let mut command = Command::new(&path);
        let command = command.args(args).uid(65534).gid(65534);
        topology.output(Side::Server, command, LIMIT).unwrap()
    };
    let output = nobody(&["drain", ENDPOINT, "--timeout", "1ms"]);
    assert_eq!(output.code(), 3, "{output}");
    assert!(output.stdout.contains(&CLIENT_V4.to_string()), "{output}");
    for args in [
        &["drain", "web"][..],
        &["drain", ENDPOINT, "--then", "flush"],
        &["flush", ENDPOINT],
    ] {
        assert_refusal(&nobody(args), 4, &["missing rights", "CAP_NET_ADMIN"]);
    }
    assert_eq!(left(&topology, Side::Server, ENDPOINT).len(), 1);
}

// ---- On a terminal ----

#[test]
fn a_terminal_shows_a_live_line() {
    let topology = Topology::new().unwrap();
    let listener = listen_at(&topology, Side::Server, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let line = format!(
        "{} drain {SERVER_V4}:{PORT}",
        exe::gate().unwrap().display()
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]);
    let drain = topology.spawn(Side::Server, &mut command).unwrap();
    wait_until("it is shown", || {
        drain
            .stdout()
            .unwrap()
            .contains("1 connected   oldest idle")
    });
    drop(connected);
    let output = drain.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert!(output.stdout.contains("\r\u{1b}[2K"), "{output}");
    assert!(
        output
            .stdout
            .contains("drained; the last of 1 connection ended"),
        "{output}"
    );
    assert!(!output.stdout.contains(INTERFACE));
}
