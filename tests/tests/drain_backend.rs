//! Waiting for the connections of one backend, while others have some at the same endpoint. Needs
//! root.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use common::{
    ENDPOINT, Ended, LIMIT, PORT, assert_complaint, assert_refusal, gate, half_open,
    let_half_open_through, run_gate, shell, start_gate, wait_until,
};
use gate_tests::backend::Options;
use gate_tests::exe;
use gate_tests::listener;
use gate_tests::topology::{Process, Side, Topology, server_v4};
use gate_userspace::drain::{Watch, Whose};
use nix::sys::signal::Signal;
use serde_json::Value;

const A: &str = "127.0.0.1:8081";
const B: &str = "127.0.0.1:8082";

/// Starts a backend that answers with its name; returns when it listens.
#[track_caller]
fn serve(topology: &Topology, name: &str, listen: &str) -> Process {
    let address: SocketAddr = listen.parse().unwrap();
    let options = Options {
        name: name.to_owned(),
        ..Options::new(address)
    };
    let mut command = Command::new(exe::lab().unwrap());
    command.arg("backend").args(options.to_args());
    let process = topology.spawn(Side::Server, &mut command).unwrap();
    let wait = || listener::wait_until(address, true, LIMIT);
    topology.run(Side::Server, wait).unwrap();
    process
}

/// A connection to a target, which this backend has answered.
#[track_caller]
fn connect(topology: &Topology, from: Side, target: &str, backend: &str) -> TcpStream {
    let target: SocketAddr = target.parse().unwrap();
    let mut stream = topology
        .run(from, || Ok(TcpStream::connect_timeout(&target, LIMIT)?))
        .unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    while !answer.ends_with(&format!("\r\n\r\n{backend}\n")) {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{answer}");
        answer.push(char::from(byte[0]));
        assert!(answer.len() < 1000, "{answer}");
    }
    stream
}

/// How many connections a drain with these arguments finds.
#[track_caller]
fn left(topology: &Topology, side: Side, args: &[&str]) -> u64 {
    let args = [&["drain", "--timeout", "1ms", "--json"], args].concat();
    let output = run_gate(topology, side, &args);
    let fields: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    assert!(fields["left"].is_u64(), "{output}");
    let left = fields["left"].as_u64().unwrap();
    assert_eq!(output.code(), if left == 0 { 0 } else { 3 }, "{output}");
    left
}

#[track_caller]
fn of(topology: &Topology, backend: &str) -> u64 {
    left(topology, Side::Server, &["--backend", backend])
}

fn is_alive(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn it_waits_for_the_old_backend_while_the_new_one_has_connections() {
    let topology = Topology::new().unwrap();
    let _own = serve(&topology, "own", ENDPOINT);
    let _a = serve(&topology, "a", A);
    let _b = serve(&topology, "b", B);
    // From the gate's own listener to A, and from A to B.
    for (old, address, new, to) in [("own", ENDPOINT, "a", A), ("a", A, "b", B)] {
        let mut of_old: Vec<TcpStream> = [Side::Client, Side::Server]
            .map(|from| connect(&topology, from, ENDPOINT, old))
            .into();
        gate(&topology, &["handover", ENDPOINT, "--to", to]);
        let of_new = connect(&topology, Side::Client, ENDPOINT, new);
        assert_eq!((of(&topology, address), of(&topology, to)), (2, 1));
        // Whoever has them.
        assert_eq!(left(&topology, Side::Server, &[ENDPOINT]), 3);
        let drain = start_gate(&topology, Side::Server, &["drain", "--backend", address]);
        wait_until("it waits", || drain.stderr().unwrap().contains("waiting"));
        let stderr = drain.stderr().unwrap();
        assert!(stderr.contains("2 connections to end"), "{stderr}");
        assert!(!stderr.contains("still gives"), "{stderr}");
        while let Some(one) = of_old.pop() {
            assert!(!drain.has_ended().unwrap());
            drop(one);
        }
        let output = drain.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        let words = format!("{address}: drained; the last of 2 connections ended");
        assert!(output.stdout.contains(&words), "{output}");
        assert!(is_alive(&of_new));
    }
}

#[test]
fn its_own_address_counts_and_another_backends_connections_never_do() {
    let topology = Topology::new().unwrap();
    let _own = serve(&topology, "own", ENDPOINT);
    let _any = serve(&topology, "any", "[::]:8082");
    let before = connect(&topology, Side::Client, "10.0.0.5:8082", "any");
    gate(&topology, &["handover", ENDPOINT, "--to", "*:8082"]);
    let by_gate = connect(&topology, Side::Client, ENDPOINT, "any");
    let direct = connect(&topology, Side::Client, "10.0.0.5:8082", "any");
    // Before the mark and after it, by the gate; bound to any address it is asked for by any.
    assert_eq!(of(&topology, "*:8082"), 3);
    assert_eq!(of(&topology, "127.0.0.1:8082,[::1]:8082"), 2);
    assert_eq!(of(&topology, "10.0.0.5:8082"), 3);
    assert_eq!(of(&topology, ENDPOINT), 0);
    assert_eq!(of(&topology, "127.0.0.1:8083"), 0);
    // What came by another gate does not count where one is named; what came directly does.
    gate(&topology, &["handover", "10.0.0.5:8090", "--to", "*:8082"]);
    let by_other = connect(&topology, Side::Client, "10.0.0.5:8090", "any");
    let by = |gate: &str| {
        left(
            &topology,
            Side::Server,
            &["--backend", "10.0.0.5:8082", gate],
        )
    };
    assert_eq!((by(ENDPOINT), by("10.0.0.5:8090")), (3, 3));
    assert_eq!(of(&topology, "10.0.0.5:8082"), 4);
    drop((before, direct));
    wait_until("they are gone", || by(ENDPOINT) == 1);
    // The mark stays when the handover has ended.
    gate(&topology, &["handover", ENDPOINT, "--back"]);
    gate(&topology, &["handover", "10.0.0.5:8090", "--back"]);
    assert_eq!(of(&topology, "*:8082"), 2);
    drop((by_gate, by_other));
}

#[test]
fn a_flush_at_the_end_resets_only_the_backends_own() {
    let topology = Topology::new().unwrap();
    let _own = serve(&topology, "own", ENDPOINT);
    let _a = serve(&topology, "a", A);
    let of_own = connect(&topology, Side::Client, ENDPOINT, "own");
    gate(&topology, &["handover", ENDPOINT, "--to", A]);
    let mut of_a = connect(&topology, Side::Client, ENDPOINT, "a");
    let args = ["drain", "--backend", A, "--timeout", "50ms"];
    let output = run_gate(&topology, Side::Server, &args);
    assert_eq!(output.code(), 3, "{output}");
    let words = ["1 connection to 127.0.0.1:8081", "`--then flush`"];
    assert_complaint(&output, &words);
    assert!(!output.stderr.contains("`gate flush`"), "{output}");
    let note = format!("{ENDPOINT} still gives it new connections");
    assert!(output.stderr.contains(&note), "{output}");
    let output = run_gate(
        &topology,
        Side::Server,
        &[&args[..], &["--then", "flush", "--json"]].concat(),
    );
    assert_eq!(output.code(), 0, "{output}");
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(fields["connections"][0]["served_by"], A, "{output}");
    assert_eq!(fields["connections"][0]["endpoint"], ENDPOINT, "{output}");
    assert_eq!(fields["of_backends"], true, "{output}");
    let error = of_a.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(is_alive(&of_own));
}

#[test]
fn a_half_open_request_of_before_is_waited_for_and_a_later_one_is_not() {
    let topology = Topology::new().unwrap();
    let _own = serve(&topology, "own", ENDPOINT);
    let _a = serve(&topology, "a", A);
    // The marks are looked for from now on.
    gate(&topology, &["handover", ENDPOINT, "--to", A]);
    gate(&topology, &["handover", ENDPOINT, "--back"]);
    // One that is there may become the old backend's; one that comes meanwhile is the new one's.
    let watch = || {
        let backends = vec![A.parse().unwrap()];
        Ok(Watch::of_backends(Whose::new(backends, Vec::new()))?)
    };
    let mut before = topology.run(Side::Server, watch).unwrap();
    let requests = |watch: &mut Watch| watch.look().unwrap().half_open.len();
    assert_eq!(requests(&mut before), 0);
    let client = half_open(&topology, server_v4(PORT));
    let after = topology.run(Side::Server, || {
        let mut after = watch()?;
        Ok((requests(&mut after), requests(&mut after), after))
    });
    let (first, second, mut after) = after.unwrap();
    assert_eq!((first, second), (1, 1));
    assert_eq!(requests(&mut before), 0);
    let_half_open_through(&topology);
    assert_eq!(client.finish(), Ended::Connected);
    // The client is connected before its ACK has gone.
    wait_until("it is no request any more", || requests(&mut after) == 0);
}

#[test]
fn without_a_handover_it_is_a_drain_of_the_address() {
    let topology = Topology::new().unwrap();
    let _a = serve(&topology, "a", "10.0.0.5:8082");
    assert_eq!(of(&topology, "10.0.0.5:8082"), 0);
    let one = connect(&topology, Side::Client, "10.0.0.5:8082", "a");
    let other = connect(&topology, Side::Server, "10.0.0.5:8082", "a");
    for backend in ["10.0.0.5:8082", "*:8082"] {
        assert_eq!(of(&topology, backend), 2);
    }
    // On the proxy's host.
    let remote = ["--backend", "10.0.0.5:8082"];
    assert_eq!(left(&topology, Side::Client, &remote), 1);
    assert_eq!(left(&topology, Side::Client, &["--backend", "*:8082"]), 0);
    // Gates that nobody handed over change nothing.
    gate(&topology, &["define", "web", "10.0.0.5:8082"]);
    assert_eq!(of(&topology, "10.0.0.5:8082"), 2);
    let by_gate = ["--backend", "10.0.0.5:8082", "web"];
    assert_eq!(left(&topology, Side::Server, &by_gate), 2);
    drop((one, other));
    let drained = run_gate(
        &topology,
        Side::Server,
        &["drain", "--backend", "10.0.0.5:8082"],
    );
    assert_eq!(drained.code(), 0, "{drained}");
}

#[test]
fn what_it_can_not_tell_is_refused() {
    let topology = Topology::new().unwrap();
    let run = |args: &[&str]| run_gate(&topology, Side::Server, args);
    assert_eq!(run(&["drain"]).code(), 2);
    assert_eq!(run(&["drain", "--backend", "8082"]).code(), 2);
    let unknown = run(&["drain", "--backend", B, "web"]);
    assert_refusal(&unknown, 3, &["no gate web"]);
    // Whose a connection is takes the rights of the maps.
    let exe = exe::gate().unwrap();
    let line = format!(
        "setpriv --bounding-set=-all,+net_admin --inh-caps=-all {} drain --backend {B} 2>&1; echo $?",
        exe.display()
    );
    let said = shell(&topology, Side::Server, &line);
    assert!(
        said.contains("missing rights") && said.ends_with("4\n"),
        "{said}"
    );
}

#[test]
fn what_waits_in_the_accept_queue_is_the_backends_too() {
    let topology = Topology::new().unwrap();
    let _own = serve(&topology, "own", ENDPOINT);
    let a = serve(&topology, "a", A);
    gate(&topology, &["handover", ENDPOINT, "--to", A]);
    a.signal_group(Signal::SIGSTOP).unwrap();
    let queued = topology
        .run(Side::Client, || Ok(TcpStream::connect(server_v4(PORT))?))
        .unwrap();
    assert_eq!((of(&topology, A), of(&topology, ENDPOINT)), (1, 0));
    a.signal_group(Signal::SIGCONT).unwrap();
    drop(queued);
    wait_until("it is gone", || of(&topology, A) == 0);
}
