//! Resetting of connections: which, from which side, what both ends read, and what is left alone.
//! Needs root.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    Connected, Dial, Dialling, ENDPOINT, Ended, LIMIT, MS, PORT, assert_complaint, assert_refusal,
    connect, connect_many, dial, error_at, gate, half_open, is_alive, let_half_open_through,
    listen, shell, up, wait_until, wait_until_held, without_sock_destroy,
};
use gate_tests::exe;
use gate_tests::load::{Load, Outcome, Request};
use gate_tests::nginx::{self, Nginx};
use gate_tests::require::{Feature, has};
use gate_tests::topology::{CLIENT_V4, Process, Side, Topology, server_v4, server_v6};
use gate_userspace::clock;
use gate_userspace::drain;
use gate_userspace::endpoint::Endpoint;
use gate_userspace::flush::{self, Flush, Flushed, Options};
use gate_userspace::sockets::Destroyer;
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

// ---- The library ----

#[test]
fn all_of_an_endpoint_are_reset_and_nothing_else() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    for (bound, target, endpoint, from) in [
        (
            server_v4(PORT),
            server_v4(PORT),
            "10.0.0.5:8080",
            Side::Client,
        ),
        (
            server_v6(PORT),
            server_v6(PORT),
            "[fd00::5]:8080",
            Side::Client,
        ),
        (
            "[::]:8080".parse().unwrap(),
            server_v4(PORT),
            "10.0.0.5:8080",
            Side::Client,
        ),
        (
            "[::]:8080".parse().unwrap(),
            server_v4(PORT),
            "*:8080",
            Side::Client,
        ),
        (
            "[::]:8080".parse().unwrap(),
            server_v6(PORT),
            "*:8080",
            Side::Client,
        ),
        (
            "0.0.0.0:8080".parse().unwrap(),
            server_v4(PORT),
            "*:8080",
            Side::Server,
        ),
        (
            "[::]:8080".parse().unwrap(),
            "127.0.0.1:8080".parse().unwrap(),
            "127.0.0.1:8080",
            Side::Server,
        ),
        (
            "[::1]:8080".parse().unwrap(),
            "[::1]:8080".parse().unwrap(),
            "[::1]:8080",
            Side::Server,
        ),
    ] {
        let what = format!("{bound} {target} {endpoint} {from:?}");
        let listener = listen(&topology, bound);
        let other = listen(&topology, SocketAddr::new(bound.ip(), PORT + 1));
        let flushed = connect_many(&topology, from, target, &listener, 3);
        let near = SocketAddr::new(target.ip(), PORT + 1);
        let left = connect(&topology, from, near, &other);
        let done = topology
            .run(Side::Server, || {
                Ok(flush::all(drain::connections(&endpoints(&[endpoint]))?)?)
            })
            .unwrap();
        let expected = Flushed {
            backend: 3,
            ..Flushed::default()
        };
        assert_eq!(done, expected, "{what}");
        for one in &flushed {
            assert_eq!(error_at(&one.backend), Some(libc::ECONNABORTED), "{what}");
            assert_eq!(error_at(&one.client), Some(libc::ECONNRESET), "{what}");
        }
        assert!(is_alive(&left), "{what}");
        // Both listeners go on.
        let again = connect(&topology, from, target, &listener);
        assert!(is_alive(&again), "{what}");
    }
}

#[test]
fn a_socket_that_has_gone_takes_no_other_with_it() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let source = SocketAddr::new(CLIENT_V4.into(), 40_000);
    let make = || {
        let socket = topology
            .run(Side::Client, || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                // Closed with a reset, it leaves no TIME_WAIT.
                socket.set_linger(Some(Duration::ZERO))?;
                socket.bind(&source.into())?;
                socket.connect_timeout(&server_v4(PORT).into(), LIMIT)?;
                Ok(socket)
            })
            .unwrap();
        let (backend, _) = listener.accept().unwrap();
        (socket, backend)
    };
    let (client, backend) = make();
    let old = topology
        .run(Side::Server, || {
            Ok(drain::connections(&endpoints(&[ENDPOINT]))?)
        })
        .unwrap();
    let name = old.connections[0].backend.clone().unwrap().name;
    let destroy = || {
        topology
            .run(Side::Server, || Ok(Destroyer::new()?.destroy(&name)?))
            .unwrap()
    };
    drop(client);
    assert_eq!(error_at(&backend), Some(libc::ECONNRESET));
    drop(backend);
    // The ends find the listener.
    assert!(!destroy());
    // The ends find the next connection.
    let (client, backend) = make();
    assert!(!destroy());
    let again = Connected {
        client: client.into(),
        backend,
    };
    assert!(is_alive(&again));
}

// ---- The command ----

/// Starts `gate flush` on a side.
#[track_caller]
fn start(topology: &Topology, side: Side, args: &[&str]) -> Process {
    let mut command = Command::new(exe::gate().unwrap());
    let command = command.arg("flush").args(args);
    topology.spawn(side, command).unwrap()
}

/// Runs `gate flush`, which must end well; its JSON.
#[track_caller]
fn flush(topology: &Topology, side: Side, args: &[&str]) -> Value {
    let output = start(topology, side, args).wait(LIMIT).unwrap();
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    serde_json::from_str(&output.stdout).unwrap()
}

/// The counts that matter, of its JSON.
fn counts(fields: &Value) -> [u64; 5] {
    ["backend_side", "client_side", "connecting", "busy", "ended"]
        .map(|name| fields[name].as_u64().unwrap())
}

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
    let (one, two) = (server_v4(PORT), server_v6(PORT + 1));
    gate(
        &topology,
        &["define", "web", &one.to_string(), &two.to_string()],
    );
    let listeners = [listen(&topology, one), listen(&topology, two)];
    let connected = [
        connect(&topology, Side::Client, one, &listeners[0]),
        connect(&topology, Side::Client, two, &listeners[1]),
    ];
    let fields = flush(&topology, Side::Server, &["web", "--json"]);
    assert_eq!(counts(&fields), [2, 0, 0, 0, 0]);
    for one in &connected {
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

// ---- A proxy whose backend is dead ----

/// Attempts of a client side that nobody answers.
#[track_caller]
fn connecting(topology: &Topology, count: usize) -> Vec<Dialling> {
    let start = |_| dial(topology, Side::Client, Dial::to(server_v4(PORT)));
    let attempts = (0..count).map(start).collect();
    wait_until("all attempts are made", || {
        let look = || {
            Ok(drain::connections(&endpoints(&[ENDPOINT]))?
                .connecting
                .len())
        };
        topology.run(Side::Client, look).unwrap() == count
    });
    attempts
}

/// Flushes connections and attempts to a backend that `die` has made unreachable.
#[track_caller]
fn flushed_at_the_proxy(die: impl Fn(&Topology)) {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect_many(&topology, Side::Client, server_v4(PORT), &listener, 3);
    die(&topology);
    // A request that hangs: it can't be acknowledged.
    (&connected[0].client)
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    let attempts = connecting(&topology, 2);
    let left = start(&topology, Side::Client, &["10.0.0.6:8080"]).wait(LIMIT);
    assert!(left.unwrap().stdout.contains("nothing to reset"));
    let idle = flush(
        &topology,
        Side::Client,
        &[ENDPOINT, "--idle", "1h", "--json"],
    );
    assert_eq!(counts(&idle), [0, 0, 0, 3, 0]);
    let fields = flush(&topology, Side::Client, &[ENDPOINT, "--json"]);
    assert_eq!(counts(&fields), [0, 3, 2, 0, 0], "{fields}");
    for one in &connected {
        assert_eq!(error_at(&one.client), Some(libc::ECONNABORTED));
    }
    for attempt in attempts {
        let Ended::Failed(kind) = attempt.finish() else {
            panic!("an attempt was not ended");
        };
        assert_eq!(kind, ErrorKind::ConnectionAborted);
    }
}

#[test]
fn connections_to_a_host_that_stopped_answering_end_at_once() {
    if !has(Feature::SockDestroy) {
        return;
    }
    flushed_at_the_proxy(|topology| {
        shell(topology, Side::Server, "ip link set eth0 down");
        // Else the neighbour that doesn't answer ends the attempts.
        let neighbour = "ip neigh replace 10.0.0.5 lladdr 02:00:00:00:00:05 dev eth0 nud permanent";
        shell(topology, Side::Client, neighbour);
    });
}

#[test]
fn connections_to_a_host_that_is_gone_end_at_once() {
    if !has(Feature::SockDestroy) {
        return;
    }
    flushed_at_the_proxy(|topology| {
        // The proxy's interface stays, and what it sends reaches nobody.
        let line = "ip neigh replace 10.0.0.5 lladdr 02:00:00:00:00:99 dev eth0 nud permanent";
        shell(topology, Side::Client, line);
    });
}

#[test]
fn connections_that_a_killed_backend_closed_and_a_proxy_keeps_are_reset() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    drop(connected.backend);
    let end = connected.client.peek(&mut [0]).unwrap();
    assert_eq!(end, 0);
    let fields = flush(&topology, Side::Client, &[ENDPOINT, "--json"]);
    assert_eq!(counts(&fields), [0, 1, 0, 0, 0]);
    let error = (&connected.client).write_all(b"GET").unwrap_err();
    assert!(matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    ));
}

#[test]
fn a_backend_that_dies_on_the_same_host_leaves_the_client_side_to_flush() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Server, server_v4(PORT), &listener);
    drop((connected.backend, listener));
    let fields = flush(&topology, Side::Server, &[ENDPOINT, "--json"]);
    assert_eq!(counts(&fields), [0, 1, 0, 0, 0]);
}

// ---- Only idle ones ----

const IDLE: Duration = Duration::from_millis(300);

#[test]
fn only_what_is_idle_with_nothing_under_way_is_reset() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    for from in [Side::Client, Side::Server] {
        let listener = listen(&topology, server_v4(PORT));
        let make = || connect(&topology, from, server_v4(PORT), &listener);
        let (idle, unread, answered) = (make(), make(), make());
        (&unread.client).write_all(b"GET").unwrap();
        // Only where both sockets are here can it be known that the client hasn't read.
        (&answered.backend).write_all(b"200").unwrap();
        sleep(IDLE);
        let recent = make();
        let args = [ENDPOINT, "--idle", "300ms", "--json"];
        let fields = flush(&topology, Side::Server, &args);
        let is_seen = from == Side::Server;
        let expected = match is_seen {
            true => [1, 0, 0, 3, 0],
            false => [2, 0, 0, 2, 0],
        };
        assert_eq!(counts(&fields), expected, "{from:?}");
        assert_eq!(error_at(&idle.client), Some(libc::ECONNRESET));
        assert!(is_alive(&recent));
        let mut text = [0; 3];
        (&unread.backend).read_exact(&mut text).unwrap();
        assert!(is_alive(&unread));
        if is_seen {
            (&answered.client).read_exact(&mut text).unwrap();
            assert!(is_alive(&answered));
        }
    }
}

#[test]
fn what_is_not_acknowledged_is_not_idle() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    shell(&topology, Side::Client, "ip link set eth0 down");
    (&connected.backend).write_all(b"200").unwrap();
    sleep(IDLE);
    let fields = flush(
        &topology,
        Side::Server,
        &[ENDPOINT, "--idle", "1ms", "--json"],
    );
    assert_eq!(counts(&fields), [0, 0, 0, 1, 0]);
}

#[test]
fn a_keep_alive_probe_does_not_make_a_connection_busy() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1));
    SockRef::from(&connected.client)
        .set_tcp_keepalive(&keepalive)
        .unwrap();
    sleep(Duration::from_millis(1_400));
    let args = [ENDPOINT, "--idle", "1300ms", "--json"];
    let fields = flush(&topology, Side::Server, &args);
    assert_eq!(counts(&fields), [1, 0, 0, 0, 0]);
}

#[test]
fn each_is_looked_at_again_when_its_turn_comes() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    // The longest idle one comes first.
    let connected: Vec<Connected> = (0..4)
        .map(|_| {
            sleep(20 * MS);
            connect(&topology, Side::Client, server_v4(PORT), &listener)
        })
        .collect();
    sleep(IDLE);
    let args = [ENDPOINT, "--idle", "300ms", "--over", "4s", "--json"];
    let flush = start(&topology, Side::Server, &args);
    assert_eq!(error_at(&connected[0].client), Some(libc::ECONNRESET));
    (&connected[2].client).write_all(b"GET").unwrap();
    connected[3].client.shutdown(Shutdown::Both).unwrap();
    connected[3].backend.shutdown(Shutdown::Both).unwrap();
    let output = flush.wait(LIMIT).unwrap().ok().unwrap();
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(counts(&fields), [2, 0, 0, 1, 1], "{output}");
    assert_eq!(error_at(&connected[1].client), Some(libc::ECONNRESET));
    (&connected[2].backend).read_exact(&mut [0; 3]).unwrap();
    assert!(is_alive(&connected[2]));
}

#[test]
fn a_proxy_under_load_sees_no_failure_when_its_idle_connections_are_flushed() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let _backend = Nginx::start(&topology).unwrap();
    let _proxy = Nginx::start_keeping_proxy(&topology).unwrap();
    let load = Load::new(nginx::PROXY, 10, Duration::from_secs(4));
    let load = load.start_at(&topology, Side::Server).unwrap();
    let upstream = endpoints(&[&nginx::UPSTREAM.to_string()]);
    let end = load.begin() + Duration::from_secs(4);
    let flushed = topology.run(Side::Server, || {
        let mut sum = Flushed::default();
        while Instant::now() < end {
            let options = Options {
                // So long that requests come just when their connection is reset.
                idle: Some(80 * MS),
                ..Options::default()
            };
            let now = clock::now();
            let mut flush = Flush::begin(&upstream, options, now)?;
            while flush.left() > 0 {
                flush.step(now)?;
            }
            sum.backend += flush.flushed().backend;
            sum.client += flush.flushed().client;
            sleep(MS);
        }
        Ok(sum)
    });
    let flushed = flushed.unwrap();
    let requests = load.finish().unwrap();
    let failed = requests.iter().filter(|it| it.outcome != Outcome::Ok);
    println!("{flushed:?} of {} requests", requests.len());
    assert!(flushed.backend > 0, "{flushed:?}");
    assert_eq!(failed.collect::<Vec<_>>(), Vec::<&Request>::new());
}

// ---- Over a time ----

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

// ---- Rights and kernels ----

#[test]
fn without_the_right_it_is_refused_and_nothing_is_reset() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let mut command = Command::new("setpriv");
    let command = command
        .args(["--bounding-set=-net_admin", "--inh-caps=-all"])
        .arg(exe::gate().unwrap())
        .args(["flush", ENDPOINT]);
    let output = topology.output(Side::Server, command, LIMIT).unwrap();
    assert_refusal(&output, 4, &["missing rights", "CAP_NET_ADMIN"]);
    // There the capability is, and doesn't count for this network namespace.
    let mut command = Command::new("unshare");
    let command = command
        .args(["--user", "--map-root-user"])
        .arg(exe::gate().unwrap())
        .args(["flush", ENDPOINT]);
    let output = topology.output(Side::Server, command, LIMIT).unwrap();
    assert_refusal(&output, 4, &["missing rights", "CAP_NET_ADMIN"]);
    assert!(is_alive(&connected));
}

#[test]
fn the_one_capability_is_enough_and_no_bpf_is_needed() {
    if !has(Feature::SockDestroy) {
        return;
    }
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let mut command = Command::new("unshare");
    let command = command
        .args(["-m", "sh", "-c", "umount /sys/fs/bpf && exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all \"$0\" flush 10.0.0.5:8080"])
        .arg(exe::gate().unwrap());
    let output = topology.output(Side::Server, command, LIMIT).unwrap();
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    assert_eq!(error_at(&connected.client), Some(libc::ECONNRESET));
}

#[test]
fn a_kernel_that_can_not_destroy_sockets_is_told_of() {
    let topology = Topology::new().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connected = connect(&topology, Side::Client, server_v4(PORT), &listener);
    let words = [
        "can't reset connections",
        "CONFIG_INET_DIAG_DESTROY",
        "gate drain",
    ];
    let output = without_sock_destroy(&topology, &["flush", ENDPOINT]);
    assert_refusal(&output, 1, &words);
    let drain = ["drain", ENDPOINT, "--timeout", "1ms", "--then", "flush"];
    let output = without_sock_destroy(&topology, &drain);
    assert_refusal(&output, 1, &words);
    assert!(is_alive(&connected));
    let output = without_sock_destroy(&topology, &["doctor", "--json"]);
    let fields: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (output.code(), &fields["works"]),
        (0, &true.into()),
        "{output}"
    );
    let features = fields["features"].as_array().unwrap();
    let feature = features
        .iter()
        .find(|it| it["id"] == "sock-destroy")
        .unwrap();
    assert_eq!(
        (&feature["state"], &feature["required"]),
        (&"absent".into(), &false.into())
    );
}

// ---- Many ----

#[test]
fn ten_thousand_idle_connections_are_reset() {
    if !has(Feature::SockDestroy) {
        return;
    }
    const COUNT: usize = 10_000;
    /// That many are never accepted: a process may have 20,000 files open, where nobody allows more.
    const QUEUED: usize = 4_000;
    let topology = Topology::new().unwrap();
    let listener = topology.run(Side::Server, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&server_v4(PORT).into())?;
        socket.listen(QUEUED as i32 + 1)?;
        Ok(TcpListener::from(socket))
    });
    let listener = listener.unwrap();
    let target = server_v4(PORT);
    let accepted = connect_many(&topology, Side::Client, target, &listener, COUNT - QUEUED);
    let queued: Vec<TcpStream> = topology
        .run(Side::Client, || {
            let connect = |_| Ok(TcpStream::connect_timeout(&target, LIMIT)?);
            (0..QUEUED).map(connect).collect()
        })
        .unwrap();
    sleep(IDLE);
    let args = [ENDPOINT, "--idle", "100ms", "--json"];
    let fields = flush(&topology, Side::Server, &args);
    assert_eq!(counts(&fields), [COUNT as u64, 0, 0, 0, 0]);
    println!("10,000 idle connections reset in {} ms", fields["took_ms"]);
    let accepted = accepted.iter().map(|one| &one.client);
    for client in accepted.chain(&queued) {
        client.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(error_at(client), Some(libc::ECONNRESET));
    }
}
