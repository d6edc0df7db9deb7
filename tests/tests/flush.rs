//! Resetting of connections: which, from which side, what both ends read, and what is left alone.
//! Needs root.

mod common;

use std::net::SocketAddr;

use common::connected::{connect, connect_many, error_at, is_alive};
use common::{PORT, listen};
use gate_tests::topology::{Side, Topology, server_v4, server_v6};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::flush::{self, Flushed};

fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

// ---- The library ----

#[test]
fn all_of_an_endpoint_are_reset_and_nothing_else() {
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
            .run(Side::Server, || Ok(flush::all(&endpoints(&[endpoint]))?))
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
