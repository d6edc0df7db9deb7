//! Joins the two sockets of a connection, where both are on this host.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::connections::Connection;
use super::socket::Socket;
use crate::endpoint::Endpoint;

/// Joins the two sockets of a connection.
#[derive(Default)]
pub(super) struct Pairs {
    pub found: Vec<Connection>,
    /// By the client's address and the backend's.
    by_ends: HashMap<(SocketAddr, SocketAddr), usize>,
}

impl Pairs {
    pub fn add_backend(&mut self, socket: Socket, endpoint: Endpoint) {
        let ends = (socket.peer, socket.local);
        self.by_ends.insert(ends, self.found.len());
        self.found.push(Connection {
            endpoint,
            backend: Some(socket),
            client: None,
        });
    }

    pub fn add_client(&mut self, socket: Socket, endpoint: Endpoint) {
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
    use std::time::Duration;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect("an endpoint")
    }

    const BACKEND: &str = "10.0.0.5:80";
    const CLIENT: &str = "10.0.0.1:4000";

    #[test]
    fn both_sockets_of_a_connection_are_one() {
        let mut pairs = Pairs::default();
        pairs.add_backend(
            Socket::idle_example(BACKEND, CLIENT, 1, 500),
            endpoint(BACKEND),
        );
        pairs.add_client(
            Socket::idle_example(CLIENT, BACKEND, 2, 20),
            endpoint(BACKEND),
        );
        pairs.add_client(
            Socket::idle_example("10.0.0.1:4001", BACKEND, 3, 7),
            endpoint(BACKEND),
        );
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
    fn a_wildcard_takes_clients_only_of_a_backend_that_is_here() {
        let mut pairs = Pairs::default();
        let any = endpoint("*:80");
        pairs.add_client(Socket::idle_example(CLIENT, "10.0.0.9:80", 1, 0), any);
        assert_eq!(pairs.found, []);
        pairs.add_backend(Socket::idle_example(BACKEND, CLIENT, 1, 0), any);
        pairs.add_client(Socket::idle_example(CLIENT, BACKEND, 2, 0), any);
        assert_eq!(pairs.found.len(), 1);
        assert!(pairs.found[0].client.is_some());
    }

    #[test]
    fn a_connection_to_itself_has_one_socket() {
        let mut pairs = Pairs::default();
        pairs.add_backend(
            Socket::idle_example(BACKEND, BACKEND, 1, 0),
            endpoint(BACKEND),
        );
        pairs.add_client(
            Socket::idle_example(BACKEND, BACKEND, 1, 0),
            endpoint(BACKEND),
        );
        assert_eq!(pairs.found.len(), 1);
        assert_eq!(pairs.found[0].sockets().count(), 1);
    }

    #[test]
    fn the_same_ends_twice_are_two_connections() {
        // In two VRFs, say.
        let mut pairs = Pairs::default();
        for cookie in [1, 2] {
            pairs.add_client(
                Socket::idle_example(CLIENT, BACKEND, cookie, 0),
                endpoint(BACKEND),
            );
        }
        assert_eq!(pairs.found.len(), 2);
    }
}
