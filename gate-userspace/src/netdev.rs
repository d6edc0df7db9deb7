//! What a driver says of native XDP, by the kernel's `netdev` family (Linux 6.3).

use std::convert::Infallible;
use std::io;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::netlink;

/// Of linux/genetlink.h: the family that knows the families.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Of linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_BASIC`: pass, drop, abort, send back.
const BASIC: u64 = 1;

/// Bytes of a generic netlink header, and of an attribute's.
const HEADER: usize = 4;

/// A generic netlink message: the family, and the bytes behind the netlink header.
#[derive(Debug)]
struct Message {
    family: u16,
    bytes: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.bytes.len()].copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self {
            family: header.message_type,
            bytes: payload.to_vec(),
        })
    }
}

impl Message {
    fn new(family: u16, command: u8) -> Self {
        let bytes = vec![command, 1, 0, 0];
        Self { family, bytes }
    }

    fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        let len = (HEADER + value.len()) as u16;
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(attribute.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// An attribute's value.
    fn value(&self, attribute: u16) -> Option<&[u8]> {
        let mut rest = self.bytes.get(HEADER..)?;
        loop {
            let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
            let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
            if kind == attribute {
                return rest.get(HEADER..len);
            }
            rest = rest.get(len.max(HEADER).next_multiple_of(4)..)?;
        }
    }
}

/// Whether the driver of an interface says that it has native XDP. It can refuse it all the same,
/// for the MTU or for the number of queues. None where the kernel doesn't tell.
#[must_use]
pub fn native_xdp(ifindex: u32) -> Option<bool> {
    let features = features(ifindex).ok()??;
    Some(features & BASIC != 0)
}

fn features(ifindex: u32) -> io::Result<Option<u64>> {
    let request =
        Message::new(GENL_ID_CTRL, CTRL_CMD_GETFAMILY).with(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answers = netlink::ask(NETLINK_GENERIC, request, 0)?;
    let id = answers
        .iter()
        .find_map(|answer| answer.value(CTRL_ATTR_FAMILY_ID)?.first_chunk());
    let Some(id) = id else { return Ok(None) };
    let request = Message::new(u16::from_ne_bytes(*id), NETDEV_CMD_DEV_GET)
        .with(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let answers = netlink::ask(NETLINK_GENERIC, request, 0)?;
    let features = answers
        .iter()
        .find_map(|answer| answer.value(NETDEV_A_DEV_XDP_FEATURES)?.first_chunk());
    Ok(features.map(|features| u64::from_ne_bytes(*features)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others() {
        let message = Message::new(7, 1)
            .with(1, b"odd")
            .with(2, &[])
            .with(3, &9_u64.to_ne_bytes());
        assert_eq!(message.bytes.len(), 4 + 8 + 4 + 12);
        assert_eq!(message.value(1), Some(&b"odd"[..]));
        assert_eq!(message.value(2), Some(&[][..]));
        assert_eq!(message.value(3), Some(&9_u64.to_ne_bytes()[..]));
        assert_eq!(message.value(4), None);
    }

    #[test]
    fn what_is_cut_short_has_no_value() {
        for len in 0..12 {
            let mut message = Message::new(7, 1).with(3, &[1, 2, 3, 4]);
            message.bytes.truncate(len);
            assert_eq!(message.value(3), None, "{len}");
        }
        // A length of zero does not loop.
        let bytes = vec![0; 12];
        assert_eq!(Message { family: 7, bytes }.value(3), None);
    }
}
