//! What the kernel's connection tracking knows of a connection: where its client really sent it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink;

/// The addresses of a TCP connection, as the packets of one direction have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Where they come from.
    pub source: SocketAddr,
    /// Where they go to.
    pub destination: SocketAddr,
}

impl Tuple {
    fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }
}

/// Whether connections are tracked in this network namespace. Asking without that would load the
/// kernel's module.
#[must_use]
pub fn is_used() -> bool {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    std::fs::read_to_string(path).is_ok_and(|count| count.trim() != "0")
}

/// The addresses of the connection's packets before they were translated; none where they were not.
///
/// # Errors
/// The kernel's.
pub fn before_translation(translated: Tuple) -> io::Result<Option<Tuple>> {
    let reply = translated.reversed();
    let mut bytes = vec![family(reply.source), 0, 0, 0];
    bytes.extend(attribute(CTA_TUPLE_REPLY | NESTED, &tuple(reply)));
    let request = Message {
        kind: CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
        bytes,
    };
    let answers = match netlink::ask(NETLINK_NETFILTER, request, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        answers => answers?,
    };
    let original = answers.iter().find_map(|answer| original(&answer.bytes));
    Ok(original.filter(|original| *original != translated))
}

/// The original direction of a connection, by the kernel's answer, from its `nfgenmsg` on.
#[must_use]
pub fn original(answer: &[u8]) -> Option<Tuple> {
    let (_, attributes) = answer.split_at_checked(4)?;
    read(find(attributes, CTA_TUPLE_ORIG)?)
}

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const NESTED: u16 = 1 << 15;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// A message of netfilter's, from its `nfgenmsg` on.
#[derive(Debug)]
struct Message {
    kind: u16,
    bytes: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self {
            kind: header.message_type,
            bytes: payload.to_vec(),
        })
    }
}

fn family(address: SocketAddr) -> u8 {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    family as u8
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn tuple(tuple: Tuple) -> Vec<u8> {
    let mut addresses = Vec::new();
    for (address, v4, v6) in [
        (tuple.source, CTA_IP_V4_SRC, CTA_IP_V6_SRC),
        (tuple.destination, CTA_IP_V4_DST, CTA_IP_V6_DST),
    ] {
        addresses.extend(match address.ip() {
            IpAddr::V4(ip) => attribute(v4, &ip.octets()),
            IpAddr::V6(ip) => attribute(v6, &ip.octets()),
        });
    }
    let ports = [
        attribute(CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]),
        attribute(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes()),
        attribute(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes()),
    ];
    [
        attribute(CTA_TUPLE_IP | NESTED, &addresses),
        attribute(CTA_TUPLE_PROTO | NESTED, &ports.concat()),
    ]
    .concat()
}

fn read(tuple: &[u8]) -> Option<Tuple> {
    let addresses = find(tuple, CTA_TUPLE_IP)?;
    let ports = find(tuple, CTA_TUPLE_PROTO)?;
    let address = |v4, v6, port| {
        let ip: IpAddr = match (find(addresses, v4), find(addresses, v6)) {
            (Some(octets), _) => Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into(),
            (None, octets) => Ipv6Addr::from(<[u8; 16]>::try_from(octets?).ok()?).into(),
        };
        let port = u16::from_be_bytes(find(ports, port)?.try_into().ok()?);
        Some(SocketAddr::new(ip, port))
    };
    Some(Tuple {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
    })
}

/// The value of an attribute.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((header, _)) = bytes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NESTED;
        let value = bytes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_read_as_it_was_written() {
        for (source, destination) in [
            ("127.0.0.1:40000", "127.0.0.1:80"),
            ("[fd00::1]:1", "[fd00::5]:65535"),
        ] {
            let wanted = Tuple {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
            };
            assert_eq!(read(&tuple(wanted)), Some(wanted));
        }
        assert_eq!(read(&[8, 0, 1]), None);
        assert_eq!(find(&[2, 0, 1, 0], 1), None);
    }
}
