//! Connections that are held on to, by both of their ends.

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use gate_tests::topology::{Place, Topology};

use super::LIMIT;

/// Both ends of a connection.
pub struct Connected {
    pub client: TcpStream,
    pub backend: TcpStream,
}

/// Connects from a place to a listener, by an address.
#[track_caller]
pub fn connect(
    topology: &Topology,
    from: impl Into<Place>,
    target: SocketAddr,
    listener: &TcpListener,
) -> Connected {
    let client = topology
        .run(from, || Ok(TcpStream::connect_timeout(&target, LIMIT)?))
        .unwrap();
    let (backend, _) = listener.accept().unwrap();
    for end in [&client, &backend] {
        end.set_read_timeout(Some(LIMIT)).unwrap();
    }
    Connected { client, backend }
}

/// As [`connect`], many times.
#[track_caller]
pub fn connect_many(
    topology: &Topology,
    from: impl Into<Place>,
    target: SocketAddr,
    listener: &TcpListener,
    count: usize,
) -> Vec<Connected> {
    let from = from.into();
    (0..count)
        .map(|_| connect(topology, from.clone(), target, listener))
        .collect()
}

/// The error that an end reads; none when it reads a byte or the end.
#[track_caller]
pub fn error_at(mut end: &TcpStream) -> Option<i32> {
    match end.read(&mut [0]) {
        Ok(_read) => None,
        Err(error) => error.raw_os_error(),
    }
}

/// Whether a connection is as it was, with nothing to read at either end.
pub fn is_alive(connected: &Connected) -> bool {
    [&connected.client, &connected.backend].iter().all(|end| {
        end.set_nonblocking(true).unwrap();
        let read = end.peek(&mut [0]);
        end.set_nonblocking(false).unwrap();
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    })
}
