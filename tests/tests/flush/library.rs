//! What the library resets.

use std::net::SocketAddr;
use std::time::Duration;

use gate_tests::require::{Feature, has};
use gate_tests::topology::{CLIENT_V4, Side, Topology, server_v4, server_v6};
use gate_userspace::drain;
use gate_userspace::flush::{self, Flushed};
use gate_userspace::sockets::Destroyer;
use socket2::{Domain, Socket, Type};

use crate::common::{
    Connected, ENDPOINT, LIMIT, PORT, close, connect, connect_many, error_at, is_alive, listen,
};
use crate::endpoints;

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
        // A child of another test, between fork and exec, that keeps one has the listener, too.
        drop((flushed, left, again));
        close(&topology, listener);
        close(&topology, other);
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
