//! Checks of Unix sockets.

use std::os::unix::net::UnixListener;

use gate_tests::topology::{Side, Topology};

use crate::{fails, passes, spec};

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
