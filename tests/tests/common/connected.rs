//! Connections that are held on to, by both of their ends.

use std::io::{self, Read as _};
use std::mem::{size_of, zeroed};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use gate_tests::topology::{INTERFACE, Place, Side, Topology, server_v4, server_v6};
use gate_userspace::drain;
use gate_userspace::endpoint::Endpoint;

use super::{Dial, Dialling, LIMIT, PORT, dial, gate, listen, shell, wait_until};

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
    let mut one = connect_many(topology, from, target, listener, 1);
    one.pop().unwrap()
}

/// As [`connect`], many times, one after the other.
#[track_caller]
pub fn connect_many(
    topology: &Topology,
    from: impl Into<Place>,
    target: SocketAddr,
    listener: &TcpListener,
    count: usize,
) -> Vec<Connected> {
    let one = |_| {
        let client = TcpStream::connect_timeout(&target, LIMIT)?;
        let (backend, _) = listener.accept()?;
        for end in [&client, &backend] {
            end.set_read_timeout(Some(LIMIT))?;
        }
        Ok(Connected { client, backend })
    };
    topology
        .run(from, || (0..count).map(one).collect())
        .unwrap()
}

/// The endpoints of the gate `web`, which this defines, one of each family.
#[track_caller]
pub fn define_web(topology: &Topology) -> [SocketAddr; 2] {
    let endpoints = [server_v4(PORT), server_v6(PORT + 1)];
    let [one, two] = endpoints.map(|endpoint| endpoint.to_string());
    gate(topology, &["define", "web", &one, &two]);
    endpoints
}

/// Connects from the client to each of these, where a listener begins to listen.
#[track_caller]
pub fn connect_to_each(
    topology: &Topology,
    targets: [SocketAddr; 2],
) -> [(TcpListener, Connected); 2] {
    targets.map(|target| {
        let listener = listen(topology, target);
        let connected = connect(topology, Side::Client, target, &listener);
        (listener, connected)
    })
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

/// The kernel's `tcp_info` of a connection.
#[track_caller]
pub fn tcp_info(socket: &impl AsRawFd) -> libc::tcp_info {
    // SAFETY: tcp_info is plain integers, for which zero is valid.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the structure, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "getsockopt(TCP_INFO)");
    info
}

/// Starts a client whose request stays half open: the server's answers go to another station, until
/// [`let_half_open_through`].
#[track_caller]
pub fn half_open(topology: &Topology, target: SocketAddr) -> Dialling {
    neighbour(topology, [2, 0, 0, 0, 0, 0x99]);
    let client = dial(topology, Side::Client, Dial::to(target));
    wait_until_half_open(topology, target);
    client
}

/// Waits until a client's request for the server is half open.
#[track_caller]
pub fn wait_until_half_open(topology: &Topology, target: SocketAddr) {
    let endpoint: [Endpoint; 1] = [target.to_string().parse().unwrap()];
    wait_until("the request is half open", || {
        let look = || Ok(drain::connections(&endpoint)?.half_open.len());
        topology.run(Side::Server, look).unwrap() == 1
    });
}

/// Lets the answers reach the client.
#[track_caller]
pub fn let_half_open_through(topology: &Topology) {
    neighbour(topology, Side::Client.mac());
}

#[track_caller]
fn neighbour(topology: &Topology, mac: [u8; 6]) {
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!(
        "ip neigh replace {} lladdr {} dev {INTERFACE} nud permanent",
        Side::Client.v4(),
        mac.join(":")
    );
    shell(topology, Side::Server, &line);
}
