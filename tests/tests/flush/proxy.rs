//! At a proxy whose backend is dead.

use std::io::{ErrorKind, Write as _};

use gate_tests::require::{Feature, has};
use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::drain;

use crate::common::{
    Dial, Dialling, ENDPOINT, Ended, LIMIT, PORT, close, connect, connect_many, dial, error_at,
    listen, shell, wait_until,
};
use crate::{counts, endpoints, flush, start};

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
    drop(connected.backend);
    close(&topology, listener);
    let fields = flush(&topology, Side::Server, &[ENDPOINT, "--json"]);
    assert_eq!(counts(&fields), [0, 1, 0, 0, 0]);
}
