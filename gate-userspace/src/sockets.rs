//! TCP sockets of this network namespace, by sock_diag: who listens, what waits, who is connected.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::endpoint::Endpoint;
use crate::netlink;

mod backend;
mod connections;
mod destroy;
mod holders;
mod listener;
mod owners;
mod pairs;
mod served;
mod socket;

pub use backend::{Backend, Taken, take, take_if_any, take_of};
pub use connections::{Connection, Found, HalfOpen, Lister};
pub use destroy::{Destroyer, can_destroy};
pub use listener::{Listener, listeners_on, places, reached};
pub use owners::{Process, owners};
pub use socket::{Name, Socket, State};

/// What waits at an endpoint for its listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Listening sockets.
    pub listeners: usize,
    /// Connections in their accept queues.
    pub queued: u32,
    /// Half-open requests.
    pub half_open: usize,
}

/// How many sockets listen at an endpoint, in the calling thread's network namespace.
///
/// # Errors
/// The kernel's.
pub fn listeners(endpoint: Endpoint) -> io::Result<usize> {
    Ok(look(&[endpoint], &StateFlags::LISTEN)?.listeners)
}

/// Those of the endpoints where a socket listens, in the calling thread's network namespace.
///
/// # Errors
/// The kernel's.
pub fn listening(endpoints: &[Endpoint]) -> io::Result<Vec<Endpoint>> {
    let mut listening = vec![false; endpoints.len()];
    visit(&StateFlags::LISTEN, |socket| {
        let found = endpoints.iter().zip(&mut listening);
        for (_, listens) in found.filter(|(endpoint, _)| is_for(socket, **endpoint)) {
            *listens = true;
        }
    })?;
    let found = endpoints.iter().zip(listening);
    Ok(found
        .filter_map(|(endpoint, listens)| listens.then_some(*endpoint))
        .collect())
}

/// What waits at these endpoints, in the calling thread's network namespace. A half-open
/// request whose SYN-ACK was sent again is not counted: its client is gone, or far away.
///
/// # Errors
/// The kernel's.
pub fn pending(endpoints: &[Endpoint]) -> io::Result<Pending> {
    look(endpoints, &(StateFlags::LISTEN | StateFlags::SYN_RECV))
}

/// As [`pending`], but half-open requests are looked for only where nothing is queued: for that the
/// kernel walks all connections of the host, 0.7 ms for an empty table of 262,144 (Linux 6.18).
///
/// # Errors
/// The kernel's.
pub fn pending_if_none_queued(endpoints: &[Endpoint]) -> io::Result<Pending> {
    let listening = look(endpoints, &StateFlags::LISTEN)?;
    match listening.queued {
        0 => pending(endpoints),
        _ => Ok(listening),
    }
}

/// Where sockets listen on an endpoint's port, but not for the endpoint.
///
/// # Errors
/// The kernel's.
pub fn listeners_elsewhere(endpoint: Endpoint) -> io::Result<Vec<SocketAddr>> {
    let mut elsewhere = Vec::new();
    visit(&StateFlags::LISTEN, |socket| {
        let id = &socket.header.socket_id;
        let (address, port) = (id.source_address, id.source_port);
        if port == endpoint.port && !is_for(socket, endpoint) {
            elsewhere.push(SocketAddr::new(address.to_canonical(), port));
        }
    })?;
    elsewhere.sort_unstable();
    elsewhere.dedup();
    Ok(elsewhere)
}

fn look(endpoints: &[Endpoint], states: &StateFlags) -> io::Result<Pending> {
    let mut pending = Pending::default();
    visit(states, |socket| {
        if !endpoints.iter().any(|endpoint| is_for(socket, *endpoint)) {
            return;
        }
        if socket.header.state == TCP_LISTEN {
            pending.listeners += 1;
            pending.queued += socket.header.recv_queue;
        } else if !matches!(socket.header.timer, Some(Timer::Retransmit(_, 1..))) {
            pending.half_open += 1;
        }
    })?;
    Ok(pending)
}

/// Shows all sockets that are in these states.
fn visit(states: &StateFlags, mut each: impl FnMut(&InetResponse)) -> io::Result<()> {
    // A v4 client of a dual-stack listener shows under AF_INET6, so both are asked for.
    for family in [AF_INET, AF_INET6] {
        let request = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id: match family {
                AF_INET => SocketId::new_v4(),
                _ => SocketId::new_v6(),
            },
        });
        for answer in netlink::dump(NETLINK_SOCK_DIAG, request)? {
            if let SockDiagMessage::InetResponse(socket) = answer {
                each(&socket);
            }
        }
    }
    Ok(())
}

/// Whether a socket gets connections to `endpoint`. One of `[::]` gets none of IPv4 where it is for
/// IPv6 only (`INET_DIAG_SKV6ONLY`, Linux 4.3).
fn is_for(socket: &InetResponse, endpoint: Endpoint) -> bool {
    let id = &socket.header.socket_id;
    let v6_only = socket.nlas.contains(&Nla::SkV6Only(true));
    let is_v4 = endpoint.address.is_some_and(|address| address.is_ipv4());
    !(is_v4 && v6_only) && covers(endpoint, id.source_address, id.source_port)
}

/// Whether a socket bound to `address` and `port` gets connections to `endpoint`.
fn covers(endpoint: Endpoint, address: IpAddr, port: u16) -> bool {
    let address = address.to_canonical();
    let covers_address = |wanted: IpAddr| match address {
        IpAddr::V4(v4) if v4.is_unspecified() => wanted.is_ipv4(),
        _ => address.is_unspecified() || address == wanted,
    };
    endpoint.port == port && endpoint.address.is_none_or(covers_address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_covers_its_address_and_any() {
        let endpoint = |text: &str| text.parse::<Endpoint>().expect("an endpoint");
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (wanted, bound, port, covered) in [
            ("10.0.0.5:80", "10.0.0.5", 80, true),
            ("10.0.0.5:80", "::ffff:10.0.0.5", 80, true),
            ("10.0.0.5:80", "0.0.0.0", 80, true),
            ("10.0.0.5:80", "::", 80, true),
            ("10.0.0.5:80", "10.0.0.5", 81, false),
            ("10.0.0.5:80", "10.0.0.6", 80, false),
            ("[fd00::5]:80", "0.0.0.0", 80, false),
            ("[fd00::5]:80", "::", 80, true),
            ("*:80", "10.0.0.6", 80, true),
            ("*:80", "::1", 80, true),
            ("*:80", "::1", 8080, false),
        ] {
            assert_eq!(
                covers(endpoint(wanted), address(bound), port),
                covered,
                "{wanted} {bound}:{port}"
            );
        }
    }
}
