//! The Internet checksum (RFC 1071), and what to do with that of a held SYN.

use crate::parse::{Family, Located, Syn};

/// Adds `bytes` as big-endian 16-bit words to a running sum; an odd last byte is padded
/// with zero.
#[inline(always)]
#[must_use]
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    let mut words = bytes.chunks_exact(2);
    let mut sum = sum;
    for word in &mut words {
        sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
    }
    match words.remainder() {
        [last] => sum + (u32::from(*last) << 8),
        _ => sum,
    }
}

/// Folds a running sum to 16 bits, without the final complement.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of TCP's pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1): addresses of
/// 4 or 16 bytes, protocol, and `len` bytes of segment.
#[inline(always)]
#[must_use]
pub fn pseudo_header(source: &[u8], destination: &[u8], len: u16) -> u32 {
    add(add(0, source), destination) + 6 + u32::from(len)
}

/// Whether `field` is what a SYN's checksum field holds while the checksum is partial.
#[inline(always)]
#[must_use]
pub fn is_partial(syn: &Syn, field: [u8; 2]) -> bool {
    let flow = &syn.attempt.flow;
    let len = (syn.end - syn.at.transport) as u16;
    let pseudo = match syn.at.family {
        Family::V4 => pseudo_header(
            &flow.source.v4_octets(),
            &flow.endpoint.address.v4_octets(),
            len,
        ),
        Family::V6 => pseudo_header(&flow.source.octets(), &flow.endpoint.address.octets(), len),
    };
    fold(pseudo) == u16::from_be_bytes(field)
}

/// What [`complete`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The checksum was whole and right.
    Whole,
    /// It was partial, as on veth and loopback where the device would complete it, and is
    /// whole now.
    Completed,
}

/// The checksum is neither right nor partial, or the frame is not as long as it says. Such
/// a frame is dropped, never repaired: nobody knows what was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Makes the TCP checksum of a frame whole, where that can be done honestly. `frame` ends
/// where the IP packet does.
///
/// # Errors
/// [`Damaged`] for a frame whose checksum is neither whole nor partial.
pub fn complete(frame: &mut [u8], at: &Located) -> Result<Found, Damaged> {
    let (addresses, size) = match at.family {
        Family::V4 => (at.network + 12, 4),
        Family::V6 => (at.network + 8, 16),
    };
    let segment = frame.get(at.transport..).ok_or(Damaged)?;
    let source = frame.get(addresses..addresses + size).ok_or(Damaged)?;
    let destination = frame
        .get(addresses + size..addresses + 2 * size)
        .ok_or(Damaged)?;
    let len = u16::try_from(segment.len()).map_err(|_| Damaged)?;
    let pseudo = pseudo_header(source, destination, len);
    let field = segment
        .get(16..18)
        .map(|field| u16::from_be_bytes([field[0], field[1]]))
        .ok_or(Damaged)?;
    if fold(add(pseudo, segment)) == 0xffff {
        return Ok(Found::Whole);
    }
    if field != fold(pseudo) {
        return Err(Damaged);
    }
    // The field holds the pseudo-header's sum already, so the segment's own sum is all.
    let whole = !fold(add(0, segment));
    frame[at.transport + 16..at.transport + 18].copy_from_slice(&whole.to_be_bytes());
    Ok(Found::Completed)
}
