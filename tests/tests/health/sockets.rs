//! Checks that a connection is accepted: of TCP and of Unix sockets.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};

use gate_tests::topology::{Side, Topology, server_v4, server_v6};

use crate::common::{listen, shell, wait_until};
use crate::{fails, passes, spec};

#[test]
fn a_tcp_check_is_over_before_the_backend_sees_it() {
    let topology = Topology::new().unwrap();
    for address in [server_v4(8080), server_v6(8080)] {
        let listener = listen(&topology, address);
        listener.set_nonblocking(true).unwrap();
        for _ in 0..20 {
            passes(&topology, &spec(&format!("tcp://{address}")));
        }
        let seen = listener.accept().map(drop).map_err(|error| error.kind());
        assert_eq!(seen, Err(ErrorKind::WouldBlock));
    }
    let left = shell(
        &topology,
        Side::Client,
        "cat /proc/net/tcp /proc/net/tcp6 | grep -v local | wc -l",
    );
    assert_eq!(left.trim(), "0", "nothing is in TIME_WAIT");
}

#[test]
fn a_unix_socket_is_healthy_while_connections_are_accepted_there() {
    let topology = Topology::new().unwrap();
    let check = spec("unix:/run/app.sock");
    fails(&topology, &check, "No such file");
    let listener = topology
        .run(Side::Server, || Ok(UnixListener::bind("/run/app.sock")?))
        .unwrap();
    passes(&topology, &check);
    drop(listener);
    // A child of another test's, between fork and exec, may still have it.
    wait_until("nobody listens", || {
        let connect = || Ok(UnixStream::connect("/run/app.sock").is_err());
        topology.run(Side::Server, connect).unwrap()
    });
    fails(&topology, &check, "connection refused");
}

#[test]
fn a_unix_socket_whose_backlog_is_full_is_not_healthy() {
    let topology = Topology::new().unwrap();
    let listen = || {
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        listener.bind(&socket2::SockAddr::unix("/run/full.sock")?)?;
        listener.listen(0)?;
        Ok(listener)
    };
    let _listener = topology.run(Side::Server, listen).unwrap();
    let check = spec("unix:/run/full.sock");
    // A backlog of 0 takes one connection, also one that was closed at once.
    passes(&topology, &check);
    fails(&topology, &check, "the socket's backlog is full");
}
