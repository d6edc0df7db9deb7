//! Listening TCP sockets one by one, and those of them that a connection to an address reaches.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, TCP_CLOSE, TCP_LISTEN,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::covers;
use crate::endpoint::Endpoint;
use crate::netlink::Channel;

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name for as long as it lives; no other socket ever has it.
    pub cookie: u64,
    /// Of the file that a process has open.
    pub inode: u32,
    /// The user that made it.
    pub uid: u32,
    /// Where it is bound; v4-mapped addresses are made IPv4.
    pub bound: SocketAddr,
    /// Whether it is of IPv6.
    pub is_v6: bool,
    /// Whether IPv4 never reaches it, though it is bound to any address.
    pub v6_only: bool,
    /// The interface that it is bound to; 0 for none.
    pub ifindex: u32,
    /// The control group in which it was made (cgroup v2), where the kernel tells (Linux 5.9).
    pub cgroup: Option<u64>,
}

impl Listener {
    fn read(answer: &InetResponse) -> Self {
        let id = &answer.header.socket_id;
        Self {
            cookie: u64::from_ne_bytes(id.cookie),
            inode: answer.header.inode,
            uid: answer.header.uid,
            bound: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            is_v6: answer.header.family == AF_INET6,
            v6_only: answer.nlas.contains(&Nla::SkV6Only(true)),
            ifindex: id.interface_id,
            cgroup: answer.nlas.iter().find_map(cgroup),
        }
    }

    /// Where it is bound, any address as none.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: Some(self.bound.ip()).filter(|address| !address.is_unspecified()),
            port: self.bound.port(),
        }
    }

    /// Whether connections of the other family than its own address reach it as well.
    fn is_dual_stack(&self) -> bool {
        self.is_v6 && !self.v6_only
    }

    fn is_for_any_of(&self, address: IpAddr) -> bool {
        self.bound.ip().is_unspecified()
            && match address {
                IpAddr::V4(_) => !self.is_v6 || self.is_dual_stack(),
                IpAddr::V6(_) => self.is_v6,
            }
    }
}

/// `INET_DIAG_CGROUP_ID` of linux/inet_diag.h.
fn cgroup(attribute: &Nla) -> Option<u64> {
    const CGROUP_ID: u16 = 21;
    let Nla::Other(other) = attribute else {
        return None;
    };
    if other.kind() != CGROUP_ID || other.value_len() != size_of::<u64>() {
        return None;
    }
    let mut bytes = [0; size_of::<u64>()];
    other.emit_value(&mut bytes);
    Some(u64::from_ne_bytes(bytes))
}

/// All sockets that listen in the calling thread's network namespace, on one port or on any.
///
/// # Errors
/// The kernel's.
pub fn listeners_on(port: Option<u16>) -> io::Result<Vec<Listener>> {
    let answers = dump(IPPROTO_TCP, port, &StateFlags::LISTEN)?;
    let listening = answers
        .iter()
        .filter(|answer| answer.header.state == TCP_LISTEN);
    Ok(listening.map(Listener::read).collect())
}

/// Whether a UDP socket is bound where `endpoint` is, and connected to nobody.
///
/// # Errors
/// The kernel's; `ENOENT` where it has no sock_diag for UDP.
pub fn has_udp(endpoint: Endpoint) -> io::Result<bool> {
    let answers = dump(IPPROTO_UDP, Some(endpoint.port), &StateFlags::CLOSE)?;
    Ok(answers.iter().any(|answer| {
        let id = &answer.header.socket_id;
        answer.header.state == TCP_CLOSE && covers(endpoint, id.source_address, id.source_port)
    }))
}

fn dump(protocol: u8, port: Option<u16>, states: &StateFlags) -> io::Result<Vec<InetResponse>> {
    let mut channel = Channel::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let id = match family {
            AF_INET => SocketId::new_v4(),
            _ => SocketId::new_v6(),
        };
        let request = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id: SocketId {
                source_port: port.unwrap_or(0),
                ..id
            },
        });
        let answers = channel.dump(request)?.into_iter();
        found.extend(answers.filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(socket) => Some(*socket),
            _ => None,
        }));
    }
    Ok(found)
}

/// Those that a connection to `endpoint` reaches: the ones bound to just that address, or else to
/// any; for `*` the ones bound to any, of both families. Of several, the kernel chooses among those
/// that it gives the same rank, so a whole `SO_REUSEPORT` group is found, but nothing that never
/// gets a connection beside it. One that is bound to an interface counts where there is no other.
#[must_use]
pub fn reached(all: &[Listener], endpoint: Endpoint) -> Vec<Listener> {
    let on_port = |it: &&Listener| it.bound.port() == endpoint.port;
    let on_port: Vec<&Listener> = all.iter().filter(on_port).collect();
    let keep = |is_it: &dyn Fn(&Listener) -> bool| -> Vec<&Listener> {
        on_port.iter().copied().filter(|it| is_it(it)).collect()
    };
    let found = match endpoint.address {
        None => keep(&|it| it.bound.ip().is_unspecified()),
        Some(address) => match keep(&|it| it.bound.ip() == address) {
            exact if !exact.is_empty() => first_rank(exact, |it| is_own_family(it, address)),
            _ => first_rank(keep(&|it| it.is_for_any_of(address)), |it| {
                is_own_family(it, address)
            }),
        },
    };
    let found = first_rank(found, |it| it.ifindex == 0);
    found.into_iter().cloned().collect()
}

/// An IPv4 socket goes before one of IPv6 that takes IPv4, too (`compute_score` of the kernel).
fn is_own_family(listener: &Listener, address: IpAddr) -> bool {
    listener.is_v6 == address.is_ipv6()
}

/// Those that are preferred, where there are some.
fn first_rank(all: Vec<&Listener>, is_first: impl Fn(&Listener) -> bool) -> Vec<&Listener> {
    match all.iter().any(|it| is_first(it)) {
        true => all.into_iter().filter(|it| is_first(it)).collect(),
        false => all,
    }
}

/// Where these sockets listen, each place once.
#[must_use]
pub fn places(listeners: &[Listener]) -> Vec<Endpoint> {
    let places: BTreeSet<Endpoint> = listeners.iter().map(Listener::endpoint).collect();
    places.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;

    use super::*;

    /// As in `10.0.0.5:80`, or `[::]:80 only`; the index is the cookie.
    fn listeners(texts: &[&str]) -> Vec<Listener> {
        let listener = |(index, text): (usize, &&str)| {
            let mut words = text.split(' ');
            let bound: SocketAddr = words.next().and_then(|it| it.parse().ok()).expect(text);
            let words: Vec<&str> = words.collect();
            Listener {
                cookie: index as u64,
                inode: 1,
                uid: 0,
                bound: SocketAddr::new(bound.ip().to_canonical(), bound.port()),
                is_v6: bound.is_ipv6(),
                v6_only: words.contains(&"only"),
                ifindex: u32::from(words.contains(&"bound")),
                cgroup: None,
            }
        };
        texts.iter().enumerate().map(listener).collect()
    }

    #[test]
    fn the_sockets_that_the_kernel_would_choose_from_are_found() {
        for (all, endpoint, found) in [
            // An exact address before any, and a whole group.
            (
                &["0.0.0.0:80", "10.0.0.5:80", "10.0.0.5:80"][..],
                "10.0.0.5:80",
                &[1, 2][..],
            ),
            (&["0.0.0.0:80", "10.0.0.5:80"], "10.0.0.6:80", &[0]),
            (&["10.0.0.5:80"], "10.0.0.6:80", &[]),
            (&["10.0.0.5:80"], "10.0.0.5:81", &[]),
            // Any address of both families.
            (&["[::]:80"], "10.0.0.5:80", &[0]),
            (&["[::]:80 only"], "10.0.0.5:80", &[]),
            (&["[::]:80 only"], "[::1]:80", &[0]),
            (&["0.0.0.0:80"], "[::1]:80", &[]),
            (&["[::]:80", "0.0.0.0:80"], "10.0.0.5:80", &[1]),
            (&["[::]:80", "0.0.0.0:80"], "[::1]:80", &[0]),
            (&["[::ffff:10.0.0.5]:80"], "10.0.0.5:80", &[0]),
            (
                &["[::ffff:10.0.0.5]:80", "10.0.0.5:80"],
                "10.0.0.5:80",
                &[1],
            ),
            // A wildcard is what is bound to any.
            (
                &["[::]:80 only", "0.0.0.0:80", "10.0.0.5:80"],
                "*:80",
                &[0, 1],
            ),
            (&["127.0.0.1:80"], "*:80", &[]),
            // To an interface only where there is no other.
            (&["10.0.0.5:80 bound", "10.0.0.5:80"], "10.0.0.5:80", &[1]),
            (&["10.0.0.5:80 bound"], "10.0.0.5:80", &[0]),
        ] {
            let endpoint = endpoint.parse().expect(endpoint);
            let reached = reached(&listeners(all), endpoint);
            let cookies: Vec<u64> = reached.iter().map(|it| it.cookie).collect();
            assert_eq!(cookies, found, "{all:?} {endpoint}");
        }
    }

    #[test]
    fn both_families_on_any_address_are_one_place() {
        let all = listeners(&["[::]:80 only", "0.0.0.0:80", "10.0.0.5:80", "[::1]:81"]);
        let places: Vec<String> = places(&all).iter().map(ToString::to_string).collect();
        assert_eq!(places, ["*:80", "10.0.0.5:80", "[::1]:81"]);
    }

    #[test]
    fn the_control_group_is_read_where_it_is_told() {
        let id = 77_u64.to_ne_bytes().to_vec();
        for (attribute, read) in [
            (Nla::Other(DefaultNla::new(21, id.clone())), Some(77)),
            (Nla::Other(DefaultNla::new(20, id)), None),
            (Nla::Other(DefaultNla::new(21, vec![1, 2])), None),
            (Nla::SkV6Only(true), None),
        ] {
            assert_eq!(cgroup(&attribute), read);
        }
    }
}
