//! Whose a connection is, as the kernel noted: the mark of its listener, which it inherited
//! (`BPF_MAP_TYPE_SK_STORAGE` with `BPF_F_CLONE`, Linux 5.4), as sock_diag tells it (Linux 5.7).

use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use gate_common::flow::{Address, EndpointKey, Port};
use netlink_packet_core::{
    DecodeError, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, Nla as _,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::InetResponse;
use netlink_packet_sock_diag::inet::nlas::Nla;

use crate::endpoint::Endpoint;

/// `INET_DIAG_REQ_SK_BPF_STORAGES` and, in the answer, `INET_DIAG_SK_BPF_STORAGES`
/// (linux/inet_diag.h); below, what is in them (linux/sock_diag.h).
const ASKED_STORAGES: u16 = 2;
const ASKED_MAP: u16 = 1;
const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;

/// An attribute's header: its length and its kind.
const HEADER: usize = 4;
/// The bits of a kind that are no flags.
const KIND: u16 = 0x3fff;

/// A message of sock_diag; a request asks for the marks of one map as well.
pub(super) struct Marked {
    pub message: SockDiagMessage,
    map: Option<RawFd>,
}

impl Marked {
    /// A request that asks for the marks in this map, too. It must be sent while the map is open.
    pub fn new(message: SockDiagMessage, map: BorrowedFd<'_>) -> Self {
        Self {
            message,
            map: Some(map.as_raw_fd()),
        }
    }

    fn attribute(&self) -> Vec<u8> {
        let Some(map) = self.map else {
            return Vec::new();
        };
        let map = attribute(ASKED_MAP, &map.cast_unsigned().to_ne_bytes());
        attribute(ASKED_STORAGES | libc::NLA_F_NESTED as u16, &map)
    }
}

/// The value must be of a length that needs no padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (HEADER + value.len()) as u16;
    [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

impl NetlinkSerializable for Marked {
    fn message_type(&self) -> u16 {
        NetlinkSerializable::message_type(&self.message)
    }

    fn buffer_len(&self) -> usize {
        Emitable::buffer_len(&self.message) + self.attribute().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (message, rest) = buffer.split_at_mut(Emitable::buffer_len(&self.message));
        self.message.emit(message);
        rest.copy_from_slice(&self.attribute());
    }
}

impl NetlinkDeserializable for Marked {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self {
            message: SockDiagMessage::deserialize(header, payload)?,
            map: None,
        })
    }
}

/// Where the listener is bound that accepted this connection, where it was marked.
pub(super) fn mark(answer: &InetResponse) -> Option<Endpoint> {
    answer.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(other) if other.kind() & KIND == STORAGES => {
            let mut bytes = vec![0; other.value_len()];
            other.emit_value(&mut bytes);
            Some(key(value(value(&bytes, STORAGE)?, STORAGE_VALUE)?)?.into())
        }
        _ => None,
    })
}

/// The value of the first attribute of a kind.
fn value(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *bytes.first_chunk::<HEADER>()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(HEADER..len)?;
        if u16::from_ne_bytes([c, d]) & KIND == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(HEADER)..)?;
    }
}

/// The mark as the map has it.
fn key(bytes: &[u8]) -> Option<EndpointKey> {
    if bytes.len() != size_of::<EndpointKey>() {
        return None;
    }
    let (address, rest) = bytes.split_first_chunk()?;
    let port = Port::from_octets(*rest.first_chunk()?);
    Some(EndpointKey::new(Address::from_v6(*address), port))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
    use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_names_its_map() {
        let message = || {
            SockDiagMessage::InetRequest(InetRequest {
                family: AF_INET,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::INFO,
                states: StateFlags::all(),
                socket_id: SocketId::new_v4(),
            })
        };
        let map = std::fs::File::open("/dev/null").expect("a descriptor");
        let marked = Marked::new(message(), map.as_fd());
        let mut bytes = vec![0; NetlinkSerializable::buffer_len(&marked)];
        marked.serialize(&mut bytes);
        // struct inet_diag_req_v2 has 56 bytes.
        let storages = value(&bytes[56..], ASKED_STORAGES).expect("the attribute");
        let named = value(storages, ASKED_MAP).expect("the map");
        assert_eq!(named, map.as_raw_fd().to_ne_bytes());
        let mut plain = vec![0; NetlinkSerializable::buffer_len(&message())];
        message().serialize(&mut plain);
        assert_eq!(plain, bytes[..56]);
    }

    #[test]
    fn a_mark_reads_as_what_was_put_there() {
        for text in ["10.0.0.5:80", "[fd00::5]:8080", "*:443"] {
            let endpoint: Endpoint = text.parse().expect(text);
            let put = EndpointKey::from(endpoint);
            let octets = [&put.address.octets()[..], &put.port.octets(), &[0, 0]].concat();
            let storage = [
                attribute(2, &[1, 0, 0, 0]),
                attribute(STORAGE_VALUE, &octets),
            ]
            .concat();
            let storages = attribute(STORAGE, &storage);
            let read = value(&storages, STORAGE).and_then(|it| value(it, STORAGE_VALUE));
            assert_eq!(read.and_then(key).map(Endpoint::from), Some(endpoint));
        }
        assert_eq!(key(&[0; 19]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>, kind in 0_u16..30) {
            let _read = value(&bytes, kind);
        }
    }
}
