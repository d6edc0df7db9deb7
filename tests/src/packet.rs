//! Frames, built field by field, right unless asked otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gate_common::checksum::{add, fold, pseudo_header};

/// TCP flags.
pub mod flags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// ECE.
    pub const ECE: u8 = 0x40;
    /// CWR.
    pub const CWR: u8 = 0x80;
}

/// Protocol numbers of IPv6 extension headers.
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTH: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// What the TCP checksum field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The sum of all.
    Whole,
    /// The pseudo-header's sum only, for the device to complete.
    Partial,
    /// Neither.
    Wrong,
}

/// A frame to be built. The default is a plain SYN from 10.0.0.1:40000 to 10.0.0.5:8080.
#[derive(Clone, Debug)]
pub struct Spec {
    /// VLAN tags, outermost first: protocol and tag control information.
    pub vlans: Vec<(u16, u16)>,
    /// The source address; its family is the frame's.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// The IPv4 flags and fragment offset field.
    pub fragment: u16,
    /// IPv6 extension headers: kind, and bytes with the first (the next header) left to the
    /// builder.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// The protocol number in front of the TCP header.
    pub protocol: u8,
    /// The client's port.
    pub source_port: u16,
    /// The endpoint's port.
    pub destination_port: u16,
    /// The sequence number.
    pub isn: u32,
    /// The flags, see [`flags`].
    pub flags: u8,
    /// TCP options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// Data in the segment.
    pub payload: Vec<u8>,
    /// The checksum field.
    pub checksum: Checksum,
    /// Zeros up to this frame length.
    pub padded_to: usize,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            vlans: Vec::new(),
            source: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            destination: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)),
            options: Vec::new(),
            fragment: 0x4000,
            extensions: Vec::new(),
            protocol: 6,
            source_port: 40_000,
            destination_port: 8080,
            isn: 0x0102_0304,
            flags: flags::SYN,
            // MSS, SACK permitted, timestamps, no-op, window scale: what Linux sends.
            tcp_options: vec![
                2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
            ],
            payload: Vec::new(),
            checksum: Checksum::Whole,
            padded_to: 0,
        }
    }
}

impl Spec {
    /// The default over IPv6: from fd00::1 to fd00::5.
    pub fn v6() -> Self {
        Self {
            source: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
            destination: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5)),
            ..Self::default()
        }
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 1];
        for (protocol, control) in &self.vlans {
            frame.extend(protocol.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        let segment = self.segment();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                frame.extend(self.v4_header(source, destination, segment.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend(self.v6_headers(source, destination, segment.len()));
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
        frame.extend(segment);
        frame.resize(frame.len().max(self.padded_to), 0);
        frame
    }

    fn v4_header(&self, source: Ipv4Addr, destination: Ipv4Addr, segment: usize) -> Vec<u8> {
        let len = 20 + self.options.len();
        let mut header = vec![0x40 | (len / 4) as u8, 0];
        header.extend(((len + segment) as u16).to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([64, self.protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.options);
        let checksum = !fold(add(0, &header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn v6_headers(&self, source: Ipv6Addr, destination: Ipv6Addr, segment: usize) -> Vec<u8> {
        let mut kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).collect();
        kinds.push(self.protocol);
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .zip(&kinds[1..])
            .flat_map(|((_, bytes), next)| [*next].into_iter().chain(bytes[1..].iter().copied()))
            .collect();
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(((extensions.len() + segment) as u16).to_be_bytes());
        header.extend([kinds[0], 64]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(extensions);
        header
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.source_port.to_be_bytes());
        segment.extend(self.destination_port.to_be_bytes());
        segment.extend(self.isn.to_be_bytes());
        segment.extend([0; 4]);
        let words = 5 + self.tcp_options.len() / 4;
        segment.extend([(words << 4) as u8, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(&self.tcp_options);
        segment.extend(&self.payload);
        let len = segment.len() as u16;
        let pseudo = match (self.source, self.destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => pseudo_header(&a.octets(), &b.octets(), len),
            (IpAddr::V6(a), IpAddr::V6(b)) => pseudo_header(&a.octets(), &b.octets(), len),
            _ => 0,
        };
        let whole = !fold(add(pseudo, &segment));
        let checksum = match self.checksum {
            Checksum::Whole => whole,
            Checksum::Partial => fold(pseudo),
            Checksum::Wrong => whole.wrapping_add(0x1111),
        };
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        segment
    }
}

/// An options-like extension header of `len` bytes (a multiple of 8).
pub fn options_header(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[1] = (len / 8 - 1) as u8;
    // One PadN option over all that is left.
    bytes[2] = 1;
    bytes[3] = (len - 4) as u8;
    bytes
}
