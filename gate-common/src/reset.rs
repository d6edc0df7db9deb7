//! The RST that answers a rejected SYN (RFC 9293 section 3.10.7.1: sequence number 0,
//! acknowledging the SYN and its data).

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;

use crate::checksum::{add, fold, pseudo_header};
use crate::parse::Syn;

/// Bytes of an IPv4 reset, from its IP header on.
pub const V4_LEN: usize = Ipv4Hdr::LEN + TcpHdr::LEN;
/// Bytes of an IPv6 reset, from its IP header on.
pub const V6_LEN: usize = Ipv6Hdr::LEN + TcpHdr::LEN;

const HOP_LIMIT: u8 = 64;
const TCP: u8 = 6;
const RST_ACK: u8 = 0x14;

/// How the reply's TCP checksum is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Whole, as on the wire.
    Whole,
    /// The pseudo-header's sum, which whoever sends the packet on completes.
    Partial,
}

/// Writes the IPv4 packet that answers `syn`.
#[inline(always)]
pub fn v4(syn: &Syn, sum: Sum, packet: &mut [u8; V4_LEN]) {
    let flow = &syn.attempt.flow;
    *packet = [0; V4_LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(V4_LEN as u16).to_be_bytes());
    // Don't fragment.
    packet[6] = 0x40;
    packet[8] = HOP_LIMIT;
    packet[9] = TCP;
    let (source, destination) = (flow.endpoint.address.v4_octets(), flow.source.v4_octets());
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    let header = !fold(add(0, &packet[..Ipv4Hdr::LEN]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    let pseudo = pseudo_header(&source, &destination, TcpHdr::LEN as u16);
    segment(syn, pseudo, sum, &mut packet[Ipv4Hdr::LEN..]);
}

/// Writes the IPv6 packet that answers `syn`.
#[inline(always)]
pub fn v6(syn: &Syn, sum: Sum, packet: &mut [u8; V6_LEN]) {
    let flow = &syn.attempt.flow;
    *packet = [0; V6_LEN];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(TcpHdr::LEN as u16).to_be_bytes());
    packet[6] = TCP;
    packet[7] = HOP_LIMIT;
    packet[8..24].copy_from_slice(&flow.endpoint.address.octets());
    packet[24..40].copy_from_slice(&flow.source.octets());
    let pseudo = pseudo_header(&packet[8..24], &packet[24..40], TcpHdr::LEN as u16);
    segment(syn, pseudo, sum, &mut packet[Ipv6Hdr::LEN..]);
}

#[inline(always)]
fn segment(syn: &Syn, pseudo: u32, sum: Sum, segment: &mut [u8]) {
    let flow = &syn.attempt.flow;
    let acknowledged = syn
        .attempt
        .isn
        .number()
        .wrapping_add(1)
        .wrapping_add(syn.payload as u32);
    segment[0..2].copy_from_slice(&flow.endpoint.port.octets());
    segment[2..4].copy_from_slice(&flow.source_port.octets());
    segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = RST_ACK;
    let checksum = match sum {
        Sum::Whole => !fold(add(pseudo, segment)),
        Sum::Partial => fold(pseudo),
    };
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
}
