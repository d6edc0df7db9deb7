//! The connections of endpoints: which sockets are their ends on this host.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_SYN_RECV};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

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
    pub half_open: usize,
}

/// Asks for the connections of endpoints, in the network namespace in which it was made.
pub struct Lister {
    channel: Channel,
    endpoints: Vec<Endpoint>,
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
        })
    }

    /// Looks once. It asks the kernel for the sockets of these ports only (`idiag_sport`,
    /// `idiag_dport`); the kernel still walks its whole table, four times for each port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> io::Result<Found> {
        let mut pairs = Pairs::default();
        let mut half_open = 0;
        // The clients first: of a connection that is made meanwhile the backend's socket is seen.
        let clients = self.ask(End::Remote)?;
        for answer in self.ask(End::Local)? {
            half_open += usize::from(self.is_half_open(&answer));
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
        let ports: BTreeSet<u16> = self.endpoints.iter().map(|it| it.port).collect();
        let mut answers = Vec::new();
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
        let answers = self.channel.dump(request)?.into_iter();
        Ok(answers
            .filter_map(|answer| match answer {
                SockDiagMessage::InetResponse(socket) => Some(*socket),
                _ => None,
            })
            .collect())
    }

    fn is_half_open(&self, answer: &InetResponse) -> bool {
        let header = &answer.header;
        let local = SocketAddr::new(
            header.socket_id.source_address,
            header.socket_id.source_port,
        );
        header.state == TCP_SYN_RECV
            && !matches!(header.timer, Some(Timer::Retransmit(_, 1..)))
            && endpoint_of(&self.endpoints, local).is_some()
    }

    fn to_endpoint(
        &self,
        socket: Option<Socket>,
        end: impl Fn(&Socket) -> SocketAddr,
    ) -> Option<(Socket, Endpoint)> {
        let socket = socket?;
        let endpoint = endpoint_of(&self.endpoints, end(&socket))?;
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

/// Joins the two sockets of a connection.
#[derive(Default)]
struct Pairs {
    found: Vec<Connection>,
    /// By the client's address and the backend's.
    by_ends: HashMap<(SocketAddr, SocketAddr), usize>,
}

impl Pairs {
    fn add_backend(&mut self, socket: Socket, endpoint: Endpoint) {
        let ends = (socket.peer, socket.local);
        self.by_ends.insert(ends, self.found.len());
        self.found.push(Connection {
            endpoint,
            backend: Some(socket),
            client: None,
        });
    }

    fn add_client(&mut self, socket: Socket, endpoint: Endpoint) {
        let pair = self.by_ends.get(&(socket.local, socket.peer));
        let pair = pair.and_then(|index| self.found.get_mut(*index));
        match pair {
            // A connection to itself has one socket, which both questions find.
            Some(pair)
                if pair
                    .backend
                    .as_ref()
                    .is_some_and(|it| it.name == socket.name) => {}
            Some(pair) if pair.client.is_none() => pair.client = Some(socket),
            // A wildcard is this host: what goes to the port elsewhere isn't meant.
            _ if endpoint.address.is_none() => {}
            _ => self.found.push(Connection {
                endpoint,
                backend: None,
                client: Some(socket),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::Name;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect("an endpoint")
    }

    fn socket(local: &str, peer: &str, cookie: u8, idle: u64) -> Socket {
        Socket {
            name: Name {
                family: AF_INET,
                id: SocketId {
                    cookie: [cookie; 8],
                    ..SocketId::new_v4()
                },
            },
            local: local.parse().expect("an address"),
            peer: peer.parse().expect("an address"),
            state: State::Established,
            idle: Some(Duration::from_millis(idle)),
            unread: 0,
            unsent: 0,
            unacked: 0,
            inode: 1,
        }
    }

    const BACKEND: &str = "10.0.0.5:80";
    const CLIENT: &str = "10.0.0.1:4000";

    #[test]
    fn both_sockets_of_a_connection_are_one() {
        let mut pairs = Pairs::default();
        pairs.add_backend(socket(BACKEND, CLIENT, 1, 500), endpoint(BACKEND));
        pairs.add_client(socket(CLIENT, BACKEND, 2, 20), endpoint(BACKEND));
        pairs.add_client(socket("10.0.0.1:4001", BACKEND, 3, 7), endpoint(BACKEND));
        let [both, one] = &pairs.found[..] else {
            panic!("{:?}", pairs.found)
        };
        assert_eq!((both.sockets().count(), one.sockets().count()), (2, 1));
        assert_eq!(both.idle(), Some(Duration::from_millis(20)));
        assert!(both.is_idle_for(Duration::from_millis(20)));
        assert!(!both.is_idle_for(Duration::from_millis(21)));
        assert_eq!(both.peer(), CLIENT.parse().ok());
        assert_eq!(one.peer(), "10.0.0.1:4001".parse().ok());
    }

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
                let mut backend = socket(BACKEND, CLIENT, 1, 500);
                let mut client = socket(CLIENT, BACKEND, 2, 500);
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
    fn a_wildcard_takes_clients_only_of_a_backend_that_is_here() {
        let mut pairs = Pairs::default();
        let any = endpoint("*:80");
        pairs.add_client(socket(CLIENT, "10.0.0.9:80", 1, 0), any);
        assert_eq!(pairs.found, []);
        pairs.add_backend(socket(BACKEND, CLIENT, 1, 0), any);
        pairs.add_client(socket(CLIENT, BACKEND, 2, 0), any);
        assert_eq!(pairs.found.len(), 1);
        assert!(pairs.found[0].client.is_some());
    }

    #[test]
    fn a_connection_to_itself_has_one_socket() {
        let mut pairs = Pairs::default();
        pairs.add_backend(socket(BACKEND, BACKEND, 1, 0), endpoint(BACKEND));
        pairs.add_client(socket(BACKEND, BACKEND, 1, 0), endpoint(BACKEND));
        assert_eq!(pairs.found.len(), 1);
        assert_eq!(pairs.found[0].sockets().count(), 1);
    }

    #[test]
    fn the_same_ends_twice_are_two_connections() {
        // In two VRFs, say.
        let mut pairs = Pairs::default();
        for cookie in [1, 2] {
            pairs.add_client(socket(CLIENT, BACKEND, cookie, 0), endpoint(BACKEND));
        }
        assert_eq!(pairs.found.len(), 2);
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
