//! Only idle ones.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread::sleep;
use std::time::{Duration, Instant};

use gate_tests::load::{Load, Outcome, Request};
use gate_tests::nginx::{self, Nginx};
use gate_tests::require::{Feature, has};
use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::clock;
use gate_userspace::flush::{Flush, Flushed, Options};
use serde_json::Value;
use socket2::{SockRef, TcpKeepalive};

use crate::common::{
    Connected, ENDPOINT, LIMIT, MS, PORT, close, connect, error_at, is_alive, listen, shell,
};
use crate::{IDLE, counts, endpoints, flush, start};

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
        sleep(MS * 3_100);
        let recent = make();
        let args = [ENDPOINT, "--idle", "3s", "--json"];
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
        close(&topology, listener);
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
