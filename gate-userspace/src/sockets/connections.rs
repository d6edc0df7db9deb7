//! The connections of endpoints: which sockets are their ends on this host.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_SYN_RECV};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::pairs::Pairs;
use super::served::Marked;
use super::socket::{Socket, State};
use crate::endpoint::Endpoint;
use crate::netlink::Channel;

/// A connection to an endpoint, by what of it is on this host: the backend's socket, the client's
/// (a proxy's, say), or both. At least one is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The endpoint that it goes to.
    pub endpoint: Endpoint,
    /// The socket whose own address is the endpoint's.
    pub backend: Option<Socket>,
    /// The socket whose peer's address is the endpoint's.
    pub client: Option<Socket>,
}

impl Connection {
    /// Its sockets, the backend's first.
    pub fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.backend.iter().chain(&self.client)
    }

    /// The client's address.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        match (&self.backend, &self.client) {
            (Some(backend), _) => Some(backend.peer),
            (None, Some(client)) => Some(client.local),
            (None, None) => None,
        }
    }

    /// Whether it is still being made (`SYN_SENT`).
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.sockets().all(|socket| socket.state == State::SynSent)
    }

    /// Since either side last sent or received data; none where the kernel doesn't tell.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        self.sockets().filter_map(|socket| socket.idle).min()
    }

    /// Whether nothing went over it for `time`, and nothing is under way or unread at either side.
    #[must_use]
    pub fn is_idle_for(&self, time: Duration) -> bool {
        self.sockets().all(|socket| socket.is_idle_for(time))
    }
}

/// What a look at endpoints found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Connections, in no order.
    pub connections: Vec<Connection>,
    /// Those that local clients are making (`SYN_SENT`): they wait for a backend that doesn't answer,
    /// or for a gate that holds them.
    pub connecting: Vec<Connection>,
    /// Half-open requests at the backend, without those whose SYN-ACK was sent again: their client is
    /// gone, or far away.
    pub half_open: Vec<HalfOpen>,
}

/// A half-open request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// Its name, which the connection will have.
    pub cookie: u64,
    /// Where it arrived.
    pub local: SocketAddr,
}

/// Asks for the connections of endpoints, in the network namespace in which it was made.
pub struct Lister {
    channel: Channel,
    endpoints: Vec<Endpoint>,
    marks: Option<OwnedFd>,
}

/// Of a socket, on the wire: the end that is the endpoint's.
#[derive(Clone, Copy)]
enum End {
    Local(u16),
    Remote(u16),
}

impl Lister {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(endpoints: &[Endpoint]) -> io::Result<Self> {
        Ok(Self {
            channel: Channel::open(NETLINK_SOCK_DIAG)?,
            endpoints: endpoints.to_vec(),
            marks: None,
        })
    }

    /// Looks for the marks in this map, too: a socket storage whose values are endpoints. A marked
    /// connection is found at whichever address it was accepted. It takes `CAP_BPF`.
    pub fn read_marks(&mut self, map: OwnedFd) {
        self.marks = Some(map);
    }

    /// Whether it looks for marks.
    #[must_use]
    pub fn reads_marks(&self) -> bool {
        self.marks.is_some()
    }

    /// Looks once. It asks the kernel for the sockets of these ports only (`idiag_sport`,
    /// `idiag_dport`); the kernel still walks its whole table, four times for each port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> io::Result<Found> {
        let mut pairs = Pairs::default();
        let mut half_open = Vec::new();
        // The clients first: of a connection that is made meanwhile the backend's socket is seen.
        let clients = self.ask(End::Remote)?;
        for answer in self.ask(End::Local)? {
            half_open.extend(self.half_open(&answer));
            let socket = Socket::read(&answer).filter(Socket::is_open);
            if let Some((socket, endpoint)) = self.to_endpoint(socket, |it| it.local) {
                pairs.add_backend(socket, endpoint);
            }
        }
        for answer in clients {
            let socket = Socket::read(&answer).filter(Socket::is_open);
            if let Some((socket, endpoint)) = self.to_endpoint(socket, |it| it.peer) {
                pairs.add_client(socket, endpoint);
            }
        }
        let (connecting, connections) =
            pairs.found.into_iter().partition(Connection::is_connecting);
        Ok(Found {
            connections,
            connecting,
            half_open,
        })
    }

    /// The sockets with an endpoint's port at one end.
    fn ask(&mut self, end: fn(u16) -> End) -> io::Result<Vec<InetResponse>> {
        let mut answers = Vec::new();
        // 0 is any port: a gate may have been forgotten since it took a connection.
        if let (Some(_), End::Local(_)) = (&self.marks, end(0)) {
            for family in [AF_INET, AF_INET6] {
                answers.extend(self.dump(family, end(0))?);
            }
            return Ok(answers);
        }
        let ports: BTreeSet<u16> = self.endpoints.iter().map(|it| it.port).collect();
        for port in ports {
            for family in self.families(port) {
                answers.extend(self.dump(*family, end(port))?);
            }
        }
        Ok(answers)
    }

    /// A v4 client of a dual-stack listener shows under `AF_INET6`, so both may have it.
    fn families(&self, port: u16) -> &'static [u8] {
        let is_v6 = |it: &Endpoint| it.address.is_some_and(|address| address.is_ipv6());
        let mut endpoints = self.endpoints.iter().filter(|it| it.port == port);
        match endpoints.all(is_v6) {
            true => &[AF_INET6],
            false => &[AF_INET, AF_INET6],
        }
    }

    fn dump(&mut self, family: u8, end: End) -> io::Result<Vec<InetResponse>> {
        let mut socket_id = match family {
            AF_INET => SocketId::new_v4(),
            _ => SocketId::new_v6(),
        };
        let states = match end {
            End::Local(port) => {
                socket_id.source_port = port;
                State::FLAGS | StateFlags::SYN_RECV
            }
            End::Remote(port) => {
                socket_id.destination_port = port;
                State::FLAGS
            }
        };
        let request = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::INFO,
            states,
            socket_id,
        });
        let answers = match (&self.marks, end) {
            (Some(map), End::Local(_)) => {
                let request = Marked::new(request, map.as_fd());
                let answers = self.channel.dump(request)?.into_iter();
                answers.map(|answer| answer.message).collect()
            }
            _ => self.channel.dump(request)?,
        };
        let sockets = answers.into_iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(socket) => Some(*socket),
            _ => None,
        });
        Ok(sockets.collect())
    }

    fn half_open(&self, answer: &InetResponse) -> Option<HalfOpen> {
        let header = &answer.header;
        let local = SocketAddr::new(
            header.socket_id.source_address,
            header.socket_id.source_port,
        );
        let is_one = header.state == TCP_SYN_RECV
            && !matches!(header.timer, Some(Timer::Retransmit(_, 1..)))
            && endpoint_of(&self.endpoints, local).is_some();
        is_one.then(|| HalfOpen {
            cookie: u64::from_ne_bytes(header.socket_id.cookie),
            local,
        })
    }

    fn to_endpoint(
        &self,
        socket: Option<Socket>,
        end: impl Fn(&Socket) -> SocketAddr,
    ) -> Option<(Socket, Endpoint)> {
        let socket = socket?;
        let address = end(&socket);
        let at = || Endpoint {
            address: Some(address.ip()),
            port: address.port(),
        };
        let endpoint =
            endpoint_of(&self.endpoints, address).or_else(|| socket.served_by.map(|_| at()))?;
        Some((socket, endpoint))
    }
}

/// The endpoint that has this address, an exact one before a wildcard.
fn endpoint_of(endpoints: &[Endpoint], address: SocketAddr) -> Option<Endpoint> {
    let exact = Endpoint {
        address: Some(address.ip().to_canonical()),
        port: address.port(),
    };
    let any = Endpoint {
        address: None,
        port: address.port(),
    };
    [exact, any].into_iter().find(|it| endpoints.contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect("an endpoint")
    }

    const BACKEND: &str = "10.0.0.5:80";
    const CLIENT: &str = "10.0.0.1:4000";

    #[test]
    fn a_connection_is_busy_by_either_side() {
        type Change = fn(&mut Socket);
        let changes: [Change; 5] = [
            |it| it.unread = 1,
            |it| it.unsent = 1,
            |it| it.unacked = 1,
            |it| it.idle = Some(Duration::ZERO),
            |it| it.idle = None,
        ];
        for change in changes {
            for busy_backend in [true, false] {
                let mut backend = Socket::idle_example(BACKEND, CLIENT, 1, 500);
                let mut client = Socket::idle_example(CLIENT, BACKEND, 2, 500);
                change(match busy_backend {
                    true => &mut backend,
                    false => &mut client,
                });
                let connection = Connection {
                    endpoint: endpoint(BACKEND),
                    backend: Some(backend),
                    client: Some(client),
                };
                assert!(!connection.is_idle_for(Duration::from_millis(1)));
            }
        }
    }

    #[test]
    fn an_exact_endpoint_goes_before_a_wildcard() {
        let endpoints = [
            endpoint("*:80"),
            endpoint(BACKEND),
            endpoint("[fd00::5]:81"),
        ];
        for (address, found) in [
            (BACKEND, Some(BACKEND)),
            ("[::ffff:10.0.0.5]:80", Some(BACKEND)),
            ("10.0.0.6:80", Some("*:80")),
            ("[fd00::5]:80", Some("*:80")),
            ("[fd00::5]:81", Some("[fd00::5]:81")),
            ("10.0.0.5:81", None),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(endpoint_of(&endpoints, address), found.map(endpoint));
        }
    }
}
