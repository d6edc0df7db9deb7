//! Which connections are a backend's, where several take those of one endpoint.

use std::collections::HashSet;
use std::net::SocketAddr;

use crate::endpoint::Endpoint;
use crate::sockets::{Connection, Found, HalfOpen};

/// Whose connections are waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whose {
    /// The backends, by where they listen.
    pub backends: Vec<Endpoint>,
    /// The endpoints by which the connections came; none for any. Those that were made to a backend
    /// directly always count.
    pub by: Vec<Endpoint>,
    /// The half-open requests that were there when it began, at other addresses than the backends'
    /// own: only those can still become theirs.
    first: Option<HashSet<u64>>,
}

impl Whose {
    /// Those of these backends that came by these endpoints, or by any.
    #[must_use]
    pub fn new(backends: Vec<Endpoint>, by: Vec<Endpoint>) -> Self {
        Self {
            backends,
            by,
            first: None,
        }
    }

    /// Leaves out of a look what is other backends'.
    pub(super) fn keep(&mut self, found: &mut Found) {
        found.connections.retain(|it| self.has(it));
        found.connecting.retain(|it| self.has(it));
        let requests = &mut found.half_open;
        match &self.first {
            None => self.first = Some(requests.iter().map(|it| it.cookie).collect()),
            Some(first) => {
                let backends = &self.backends;
                let is_old = |it: &HalfOpen| first.contains(&it.cookie);
                requests.retain(|it| is_old(it) || is_at(backends, it.local));
            }
        }
    }

    /// Whether a connection is one of theirs: marked as accepted by one; or not marked, and with one's
    /// address, for then no other backend ever was at that address when it was made. Of a connection
    /// that ends at another host, only the address tells.
    fn has(&self, connection: &Connection) -> bool {
        match (&connection.backend, &connection.client) {
            (Some(backend), _) => match backend.served_by {
                Some(bound) => {
                    let is_theirs = self.backends.iter().any(|it| meet(*it, bound));
                    is_theirs && self.came_by(backend.local)
                }
                None => is_at(&self.backends, backend.local),
            },
            (None, Some(client)) => is_at(&self.backends, client.peer),
            (None, None) => false,
        }
    }

    fn came_by(&self, local: SocketAddr) -> bool {
        self.by.is_empty() || is_at(&self.by, local) || is_at(&self.backends, local)
    }
}

/// Whether one of these endpoints stands for an address.
fn is_at(endpoints: &[Endpoint], address: SocketAddr) -> bool {
    let at = Endpoint {
        address: Some(address.ip().to_canonical()),
        port: address.port(),
    };
    endpoints.iter().any(|it| meet(*it, at))
}

/// Whether two endpoints have addresses in common.
pub(super) fn meet(one: Endpoint, other: Endpoint) -> bool {
    let same = |(one, other)| one == other;
    one.port == other.port && one.address.zip(other.address).is_none_or(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::Socket;

    const GATE: &str = "10.0.0.5:80";
    const A: &str = "127.0.0.1:8081";
    const CLIENT: &str = "10.0.0.1:4000";

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect("an endpoint")
    }

    fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
        texts.iter().map(|text| endpoint(text)).collect()
    }

    /// At this address, marked so.
    fn accepted(local: &str, mark: Option<&str>) -> Connection {
        let backend = Socket::example(local, CLIENT, mark.map(endpoint));
        Connection {
            endpoint: endpoint(local),
            backend: Some(backend),
            client: None,
        }
    }

    fn made(peer: &str) -> Connection {
        Connection {
            endpoint: endpoint(peer),
            backend: None,
            client: Some(Socket::example(CLIENT, peer, None)),
        }
    }

    #[test]
    fn the_mark_tells_whose_a_connection_is_and_else_its_address() {
        for (backend, local, mark, is_theirs) in [
            (A, GATE, Some(A), true),
            (A, GATE, Some("127.0.0.1:8082"), false),
            (A, GATE, Some("127.0.0.2:8081"), false),
            (A, GATE, None, false),
            (A, A, None, true),
            (A, A, Some(A), true),
            (A, A, Some("127.0.0.1:8082"), false),
            // Bound to any address, or asked for by any.
            (A, GATE, Some("*:8081"), true),
            ("*:8081", GATE, Some(A), true),
            ("*:8081", A, None, true),
            ("*:8081", GATE, None, false),
            ("*:8081", GATE, Some("*:8082"), false),
            ("[::1]:8081", GATE, Some(A), false),
            ("[::1]:8081", GATE, Some("*:8081"), true),
            // The gate's own listener.
            (GATE, GATE, None, true),
            (GATE, GATE, Some(A), false),
            (GATE, GATE, Some("*:80"), true),
            (GATE, "10.0.0.6:80", None, false),
        ] {
            let whose = Whose::new(endpoints(&[backend]), Vec::new());
            let connection = accepted(local, mark);
            let what = format!("{backend} {local} {mark:?}");
            assert_eq!(whose.has(&connection), is_theirs, "{what}");
        }
    }

    #[test]
    fn only_what_came_by_a_gate_counts_where_one_is_named() {
        let whose = Whose::new(endpoints(&[A]), endpoints(&["10.0.0.5:80", "*:81"]));
        for (local, mark, is_theirs) in [
            (GATE, Some(A), true),
            ("10.0.0.9:81", Some(A), true),
            ("10.0.0.6:80", Some(A), false),
            (A, Some(A), true),
            (A, None, true),
        ] {
            let connection = accepted(local, mark);
            assert_eq!(whose.has(&connection), is_theirs, "{local} {mark:?}");
        }
    }

    #[test]
    fn of_other_hosts_only_the_address_tells() {
        let whose = Whose::new(endpoints(&["10.0.0.8:80", "10.0.0.9:80"]), Vec::new());
        for (peer, is_theirs) in [
            ("10.0.0.8:80", true),
            ("10.0.0.9:80", true),
            ("10.0.0.9:81", false),
            (GATE, false),
        ] {
            assert_eq!(whose.has(&made(peer)), is_theirs, "{peer}");
        }
    }

    #[test]
    fn only_the_requests_of_before_may_become_theirs() {
        let at = |cookie, local: &str| HalfOpen {
            cookie,
            local: local.parse().expect("an address"),
        };
        let mut whose = Whose::new(endpoints(&[A]), Vec::new());
        let mut look = |requests: &[HalfOpen]| {
            let mut found = Found {
                half_open: requests.to_vec(),
                ..Found::default()
            };
            whose.keep(&mut found);
            found
                .half_open
                .iter()
                .map(|it| it.cookie)
                .collect::<Vec<_>>()
        };
        assert_eq!(look(&[at(1, GATE), at(2, GATE)]), [1, 2]);
        assert_eq!(look(&[at(2, GATE), at(3, GATE), at(4, A)]), [2, 4]);
        assert_eq!(look(&[at(3, GATE)]), [] as [u64; 0]);
    }
}
