//! From Ethernet to TCP, over any buffer that can tell where it ends.
//!
//! [`locate`] goes as far as the TCP flags, which is all that a data packet costs;
//! [`Located::syn`] reads the rest of what only SYNs need.

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::vlan::VlanHdr;

use crate::flow::{Address, AttemptKey, EndpointKey, FlowKey, Isn, Port};

/// A frame, from its Ethernet header on.
pub trait Packet {
    /// The `N` bytes at offset `at`, or none where the frame ends before their last.
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// The frame's length in bytes.
    fn len(&self) -> usize;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Packet for [u8] {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.len()
    }
}

/// The IP version of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where a frame's headers are, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The IP version.
    pub family: Family,
    /// Offset of the IP header.
    pub network: usize,
    /// Offset of the TCP header.
    pub transport: usize,
    /// The TCP flags, as in the header's 14th byte (RFC 9293 section 3.1).
    pub flags: u8,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// TCP over IP, unfragmented.
    Tcp(Located),
    /// Something else, or a fragment: never judged.
    Other,
    /// It says that it is TCP over IP, but ends too early or nests too deep.
    Unparsed,
}

/// A SYN, with all that a verdict and a capture need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// The connection attempt.
    pub attempt: AttemptKey,
    /// Where the headers are.
    pub at: Located,
    /// Bytes from the frame's start to the IP packet's end; what follows is padding.
    pub end: usize,
    /// Bytes of data in the SYN (TCP Fast Open, RFC 7413).
    pub payload: usize,
}

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_QINQ: [u8; 2] = [0x88, 0xa8];

const PROTO_HOP_BY_HOP: u8 = 0;
const PROTO_TCP: u8 = 6;
const PROTO_ROUTING: u8 = 43;
const PROTO_FRAGMENT: u8 = 44;
const PROTO_AUTH: u8 = 51;
const PROTO_DESTINATION: u8 = 60;

/// VLAN tags that are looked behind: one, or two with QinQ.
const MAX_VLAN_TAGS: usize = 2;
/// IPv6 extension headers that are looked behind.
const MAX_EXTENSIONS: usize = 6;

/// IPv4's "more fragments" and the fragment's offset, as they lie in the header.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

impl Located {
    /// Whether the segment opens a connection: SYN set; ACK, RST and FIN clear. PSH, URG and
    /// the ECN bits don't matter.
    #[inline(always)]
    #[must_use]
    pub const fn is_pure_syn(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Reads what a verdict needs, or none where the lengths contradict each other, or where an
    /// IPv6 header has a v4-mapped address: no packet may have one, and it would be taken for a
    /// flow of IPv4.
    #[inline(always)]
    pub fn syn<P: Packet + ?Sized>(&self, packet: &P) -> Option<Syn> {
        self.syn_of(packet, packet.len())
    }

    /// The same of a packet of so many bytes, of which not all need to be where `packet` reads.
    #[inline(always)]
    fn syn_of<P: Packet + ?Sized>(&self, packet: &P, len: usize) -> Option<Syn> {
        // One load for each header: a hook may have to ask the kernel for it.
        let (source, destination, end) = match self.family {
            Family::V4 => {
                let header = packet.load::<20>(self.network)?;
                let [_, _, t0, t1, _, _, _, _, _, _, _, _, rest @ ..] = header;
                let [s0, s1, s2, s3, d0, d1, d2, d3] = rest;
                (
                    Address::from_v4([s0, s1, s2, s3]),
                    Address::from_v4([d0, d1, d2, d3]),
                    self.network + u16::from_be_bytes([t0, t1]) as usize,
                )
            }
            Family::V6 => {
                let header = packet.load::<40>(self.network)?;
                let source = Address::from_v6(*header[8..].first_chunk()?);
                let destination = Address::from_v6(*header.last_chunk()?);
                if source.is_v4() || destination.is_v4() {
                    return None;
                }
                (
                    source,
                    destination,
                    self.network
                        + Ipv6Hdr::LEN
                        + u16::from_be_bytes([header[4], header[5]]) as usize,
                )
            }
        };
        let [p0, p1, p2, p3, n0, n1, n2, n3, _, _, _, _, offset] =
            packet.load::<13>(self.transport)?;
        let header = usize::from(offset >> 4) * 4;
        let data = self.transport + header;
        if header < TcpHdr::LEN || data > end || end > len {
            return None;
        }
        Some(Syn {
            attempt: AttemptKey {
                flow: FlowKey {
                    endpoint: EndpointKey::new(destination, Port::from_octets([p2, p3])),
                    source,
                    source_port: Port::from_octets([p0, p1]),
                    zero: 0,
                },
                isn: Isn::from_octets([n0, n1, n2, n3]),
            },
            at: *self,
            end,
            payload: end - data,
        })
    }
}

/// Finds a frame's TCP header and flags.
#[inline(always)]
pub fn locate<P: Packet + ?Sized>(packet: &P) -> Frame {
    match locate_plain(packet) {
        Some(located) => Frame::Tcp(located),
        None => locate_any(packet),
    }
}

/// What a verdict needs of a frame of so many bytes that [`locate_plain`] found. The offsets are those
/// that it has already; here the compiler knows them.
#[inline(always)]
pub fn syn_plain<P: Packet + ?Sized>(packet: &P, located: Located, len: usize) -> Option<Syn> {
    let at = |transport| Located {
        network: PLAIN,
        transport,
        ..located
    };
    match located.family {
        Family::V4 => at(PLAIN_V4).syn_of(packet, len),
        Family::V6 => at(PLAIN_V6).syn_of(packet, len),
    }
}

/// Where the headers of the common frames are.
const PLAIN: usize = EthHdr::LEN;
const PLAIN_V4: usize = PLAIN + Ipv4Hdr::LEN;
const PLAIN_V6: usize = PLAIN + Ipv6Hdr::LEN;

/// The common frames, TCP over IP with neither tags nor options nor fragments: all offsets are
/// known, so one or two bounds checks do.
#[inline(always)]
pub fn locate_plain<P: Packet + ?Sized>(packet: &P) -> Option<Located> {
    let head = packet.load::<{ PLAIN_V4 + 14 }>(0)?;
    let located = |family, transport, flags| {
        Some(Located {
            family,
            network: PLAIN,
            transport,
            flags,
        })
    };
    match [head[12], head[13]] {
        ETHERTYPE_IPV4
            if head[PLAIN] == 0x45
                && head[PLAIN + 9] == PROTO_TCP
                && u16::from_ne_bytes([head[PLAIN + 6], head[PLAIN + 7]]) & FRAGMENT == 0 =>
        {
            located(Family::V4, PLAIN_V4, head[PLAIN_V4 + 13])
        }
        ETHERTYPE_IPV6 if head[PLAIN + 6] == PROTO_TCP => {
            let [flags] = packet.load::<1>(PLAIN_V6 + 13)?;
            located(Family::V6, PLAIN_V6, flags)
        }
        _ => None,
    }
}

#[inline(always)]
fn locate_any<P: Packet + ?Sized>(packet: &P) -> Frame {
    let ethertype = packet.load::<2>(EthHdr::LEN - 2);
    match ethertype.and_then(|ethertype| untag(packet, ethertype)) {
        Some((ethertype, network)) => locate_at(packet, ethertype, network),
        None => Frame::Other,
    }
}

/// Finds the TCP header behind the network header of this type at this offset.
#[inline(always)]
pub fn locate_at<P: Packet + ?Sized>(packet: &P, ethertype: [u8; 2], network: usize) -> Frame {
    match ethertype {
        ETHERTYPE_IPV4 => locate_v4(packet, network),
        ETHERTYPE_IPV6 => locate_v6(packet, network),
        _ => Frame::Other,
    }
}

/// The type behind the VLAN tags, and where its header begins, in a frame whose Ethernet header ends
/// in `ethertype`; that header is not read.
#[inline(always)]
pub fn untag<P: Packet + ?Sized>(packet: &P, ethertype: [u8; 2]) -> Option<([u8; 2], usize)> {
    let mut ethertype = ethertype;
    let mut at = EthHdr::LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            break;
        }
        ethertype = packet.load::<2>(at + VlanHdr::LEN - 2)?;
        at += VlanHdr::LEN;
    }
    Some((ethertype, at))
}

#[inline(always)]
fn locate_v4<P: Packet + ?Sized>(packet: &P, network: usize) -> Frame {
    // RFC 791 section 3.1. One load for version to protocol; the checks follow in its order.
    let Some(header) = packet.load::<10>(network) else {
        return Frame::Unparsed;
    };
    if header[9] != PROTO_TCP {
        return Frame::Other;
    }
    let length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < Ipv4Hdr::LEN {
        return Frame::Unparsed;
    }
    // Only a whole packet is judged.
    if u16::from_ne_bytes([header[6], header[7]]) & FRAGMENT != 0 {
        return Frame::Other;
    }
    flags(packet, Family::V4, network, network + length)
}

#[inline(always)]
fn locate_v6<P: Packet + ?Sized>(packet: &P, network: usize) -> Frame {
    // RFC 8200 sections 3 and 4.
    let Some([next]) = packet.load::<1>(network + 6) else {
        return Frame::Unparsed;
    };
    let mut next = next;
    let mut at = network + Ipv6Hdr::LEN;
    for _ in 0..=MAX_EXTENSIONS {
        if next == PROTO_TCP {
            return flags(packet, Family::V6, network, at);
        }
        if !matches!(
            next,
            PROTO_HOP_BY_HOP | PROTO_ROUTING | PROTO_FRAGMENT | PROTO_AUTH | PROTO_DESTINATION
        ) {
            return Frame::Other;
        }
        let Some(extension) = packet.load::<4>(at) else {
            return Frame::Unparsed;
        };
        at += match next {
            // A source route that is not done yet: the destination is not the endpoint.
            PROTO_ROUTING if extension[3] != 0 => return Frame::Other,
            // Only an atomic fragment (RFC 6946) is a whole packet.
            PROTO_FRAGMENT if extension[2] != 0 || extension[3] & 0xf9 != 0 => return Frame::Other,
            PROTO_FRAGMENT => 8,
            PROTO_AUTH => (usize::from(extension[1]) + 2) * 4,
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        next = extension[0];
    }
    Frame::Unparsed
}

#[inline(always)]
fn flags<P: Packet + ?Sized>(
    packet: &P,
    family: Family,
    network: usize,
    transport: usize,
) -> Frame {
    match packet.load::<1>(transport + 13) {
        Some([flags]) => Frame::Tcp(Located {
            family,
            network,
            transport,
            flags,
        }),
        None => Frame::Unparsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The short way finds what the long way finds, for frames near to the common ones.
        #[test]
        fn the_short_way_is_no_other(
            v6 in any::<bool>(),
            changes in prop::collection::vec((0..80_usize, any::<u8>()), 0..3),
            len in 14..=80_usize,
        ) {
            let mut frame = [0; 80];
            if v6 {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                frame[20] = PROTO_TCP;
                frame[67] = SYN;
            } else {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
                frame[23] = PROTO_TCP;
                frame[47] = SYN;
            }
            for (at, byte) in changes {
                frame[at] = byte;
            }
            prop_assert_eq!(locate(&frame[..len]), locate_any(&frame[..len]));
        }
    }
}
