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

/// The IPv4 packet that answers `syn`.
#[inline(always)]
#[must_use]
pub fn v4(syn: &Syn) -> [u8; V4_LEN] {
    let flow = &syn.attempt.flow;
    let mut packet = [0; V4_LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(V4_LEN as u16).to_be_bytes());
    // Don't fragment.
    packet[6] = 0x40;
    packet[8] = HOP_LIMIT;
    packet[9] = TCP;
    packet[12..16].copy_from_slice(&flow.endpoint.address.v4_octets());
    packet[16..20].copy_from_slice(&flow.source.v4_octets());
    let header = !fold(add(0, &packet[..Ipv4Hdr::LEN]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    let segment = segment(
        syn,
        pseudo_header(&packet[12..16], &packet[16..20], TcpHdr::LEN as u16),
    );
    packet[Ipv4Hdr::LEN..].copy_from_slice(&segment);
    packet
}

/// The IPv6 packet that answers `syn`.
#[inline(always)]
#[must_use]
pub fn v6(syn: &Syn) -> [u8; V6_LEN] {
    let flow = &syn.attempt.flow;
    let mut packet = [0; V6_LEN];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(TcpHdr::LEN as u16).to_be_bytes());
    packet[6] = TCP;
    packet[7] = HOP_LIMIT;
    packet[8..24].copy_from_slice(&flow.endpoint.address.octets());
    packet[24..40].copy_from_slice(&flow.source.octets());
    let segment = segment(
        syn,
        pseudo_header(&packet[8..24], &packet[24..40], TcpHdr::LEN as u16),
    );
    packet[Ipv6Hdr::LEN..].copy_from_slice(&segment);
    packet
}

#[inline(always)]
fn segment(syn: &Syn, pseudo: u32) -> [u8; TcpHdr::LEN] {
    let flow = &syn.attempt.flow;
    let acknowledged = syn
        .attempt
        .isn
        .number()
        .wrapping_add(1)
        .wrapping_add(syn.payload as u32);
    let mut segment = [0; TcpHdr::LEN];
    segment[0..2].copy_from_slice(&flow.endpoint.port.octets());
    segment[2..4].copy_from_slice(&flow.source_port.octets());
    segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = RST_ACK;
    let checksum = !fold(add(pseudo, &segment));
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}
