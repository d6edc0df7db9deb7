//! Frames made by chance, most of them nearly right.

use std::net::{Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use gate_userspace::hooks::Slot;

use crate::kernel::{self, Link};
use crate::packet::{Checksum, Spec, extension, flags, options_header};

/// Right frames that a batch's others are made of.
const BASES: usize = 48;

/// Longest frame.
const LONGEST: usize = 600;

/// Ports that the tables of [`super::setup`] know, and others.
pub(super) const PORTS: [u16; 6] = [8080, 8081, 80, 0, 40_000, 65_535];

/// Initial sequence numbers.
pub(super) const ISNS: [u32; 4] = [0x0102_0304, 0x0102_0305, 0, u32::MAX];

/// Addresses of IPv4, by their octets.
pub(super) const V4: [[u8; 4]; 6] = [
    [10, 0, 0, 5],
    [10, 0, 0, 6],
    [10, 0, 0, 1],
    [127, 0, 0, 1],
    [255, 255, 255, 255],
    [224, 0, 0, 1],
];

/// Addresses of IPv6.
pub(super) const V6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 6),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::UNSPECIFIED,
    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a00, 5),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
];

/// Sources that say, where an Ethernet header would have it, which protocol the packet is of.
pub(super) const BARE_V4: Ipv4Addr = Ipv4Addr::new(8, 0, 0, 1);
pub(super) const BARE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0x86dd, 0, 0, 0, 0, 1);

/// Bytes that mean something somewhere.
const BYTES: [u8; 24] = [
    0, 1, 2, 4, 5, 6, 8, 16, 0x12, 17, 20, 40, 43, 44, 50, 51, 60, 0x40, 0x45, 0x46, 0x4f, 0x60,
    0x80, 0xff,
];

/// Where fields are in a plain frame of IPv4 and of IPv6: type, lengths, protocol, ports, offset,
/// flags, checksum, extension header.
const PLACES: [usize; 24] = [
    0, 12, 13, 14, 16, 17, 18, 19, 20, 21, 23, 34, 36, 37, 46, 47, 50, 54, 55, 57, 66, 67, 68, 70,
];

/// Words that mean something somewhere.
const WORDS: [u16; 16] = [
    0, 1, 20, 40, 60, 0x0800, 0x86dd, 0x8100, 0x88a8, 0x1fff, 0x2000, 0x4000, 0x7fff, 0x8000, 8080,
    0xffff,
];

/// A source of frames; the same seed makes the same ones.
pub struct Frames {
    random: Rng,
    bases: Vec<Vec<u8>>,
    /// Bytes of an Ethernet header that the frames have not.
    missing: usize,
}

impl Frames {
    /// Those of a seed.
    pub fn new(seed: u64, link: Link) -> Self {
        let mut random = Rng::with_seed(seed);
        let bases = (0..BASES).map(|_| base(&mut random, link)).collect();
        let missing = match link {
            Link::Ethernet => 0,
            Link::Bare => 14,
        };
        Self {
            random,
            bases,
            missing,
        }
    }

    /// The next frame that the kernel takes for a test run of this hook.
    pub fn next(&mut self, frame: &mut Vec<u8>, slot: Slot) {
        loop {
            self.any(frame);
            if kernel::takes(slot, frame) {
                return;
            }
        }
    }

    /// The next frame, of 14 bytes or more.
    pub fn any(&mut self, frame: &mut Vec<u8>) {
        const CHANGES: [usize; 8] = [0, 0, 1, 1, 2, 2, 3, 8];
        frame.clear();
        frame.extend_from_slice(&self.bases[self.random.usize(..BASES)]);
        for _ in 0..CHANGES[self.random.usize(..CHANGES.len())] {
            self.change(frame);
        }
        frame.truncate(LONGEST);
        frame.resize(frame.len().max(14), 0);
    }

    fn change(&mut self, frame: &mut Vec<u8>) {
        let (random, missing) = (&mut self.random, self.missing);
        let at = random.usize(..frame.len());
        let place = PLACES[random.usize(..PLACES.len())].wrapping_sub(missing);
        let of_bytes = BYTES[random.usize(..BYTES.len())];
        match random.u8(..16) {
            0 => frame[at] = random.u8(..),
            1 => frame[at] ^= 1 << random.u8(..8),
            2 => frame[at] = of_bytes,
            3 | 4 => put(frame, place, &[of_bytes]),
            5 => put(frame, place, &[random.u8(..)]),
            6 => {
                let word = WORDS[random.usize(..WORDS.len())];
                put(frame, at & !1, &word.to_be_bytes());
            }
            7 => {
                let off = [0, 1, 4, 14, 0xffff, 54][random.usize(..6)];
                let word = (frame.len() as u16).wrapping_sub(off);
                let place = [16 - missing.min(16), 18 - missing, at][random.usize(..3)];
                put(frame, place, &word.to_be_bytes());
            }
            8 => frame.truncate(14 + random.usize(..frame.len().max(15) - 14)),
            9 => {
                let by = if random.u8(..8) == 0 { 300 } else { 40 };
                let len = frame.len() + random.usize(..by);
                frame.resize(len, random.u8(..2).wrapping_neg());
            }
            10 => {
                let from = random.usize(12..=frame.len().max(12));
                let chunk = [of_bytes, 0, random.u8(..3), 0, 0, 0, 0, 0];
                let len = [4, 8][random.usize(..2)];
                frame.splice(
                    from.min(frame.len())..from.min(frame.len()),
                    chunk[..len].to_vec(),
                );
            }
            11 => {
                let from = random.usize(..frame.len());
                let to = (from + [2, 4, 8][random.usize(..3)]).min(frame.len());
                if frame.len() - (to - from) >= 14 {
                    frame.drain(from..to);
                }
            }
            12 => {
                let other = &self.bases[random.usize(..BASES)];
                let from = at.min(other.len());
                frame.truncate(at.max(14));
                frame.extend_from_slice(&other[from..]);
            }
            13 => put(frame, 0, &station(random)),
            14 => {
                let (at, bytes) = endpoint(random);
                put(frame, at - missing, &bytes);
            }
            _ if missing == 0 => lengths_made_right(frame),
            _ => {}
        }
    }
}

/// A port, a sequence number or an address, and where it is in a plain frame.
fn endpoint(random: &mut Rng) -> (usize, Vec<u8>) {
    let port = PORTS[random.usize(..PORTS.len())].to_be_bytes();
    let isn = ISNS[random.usize(..ISNS.len())].to_be_bytes();
    let v4 = V4[random.usize(..V4.len())];
    let v6 = V6[random.usize(..V6.len())].octets();
    match random.u8(..4) {
        0 => ([36, 56, 34, 54][random.usize(..4)], port.to_vec()),
        1 => ([38, 58][random.usize(..2)], isn.to_vec()),
        2 => ([30, 26][random.usize(..2)], v4.to_vec()),
        _ => ([38, 22][random.usize(..2)], v6.to_vec()),
    }
}

/// The device of a test run, all, a group, another, any.
fn station(random: &mut Rng) -> [u8; 6] {
    match random.u8(..6) {
        0 | 1 => [0; 6],
        2 => [0xff; 6],
        3 => [0x01, 0, 0x5e, 0, 0, 1],
        4 => [2, 0, 0, 0, 0, 9],
        _ => [random.u8(..), 0, 0, 0, 0, random.u8(..)],
    }
}

/// Overwrites what of the bytes is within the frame.
fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = frame.get_mut(at..) {
        let len = bytes.len().min(to.len());
        to[..len].copy_from_slice(&bytes[..len]);
    }
}

/// Makes the length of a frame without tags what the frame is long.
fn lengths_made_right(frame: &mut [u8]) {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => {
            let len = frame.len() as u16 - 14;
            put(frame, 16, &len.to_be_bytes());
        }
        Some([0x86, 0xdd]) if frame.len() >= 54 => {
            let len = frame.len() as u16 - 54;
            put(frame, 18, &len.to_be_bytes());
        }
        _ => {}
    }
}

/// A frame that is right in itself, and mostly a SYN.
fn base(random: &mut Rng, link: Link) -> Vec<u8> {
    let v6 = random.bool();
    let rarely = |random: &mut Rng| random.u8(..8) == 0;
    let mut spec = if v6 { Spec::v6() } else { Spec::default() };
    let pick = |random: &mut Rng| {
        // The first two have gates most often.
        if random.bool() {
            random.usize(..2)
        } else {
            random.usize(..6)
        }
    };
    if v6 {
        spec.destination = V6[pick(random)].into();
        if rarely(random) {
            spec.source = V6[random.usize(..V6.len())].into();
        }
    } else {
        spec.destination = Ipv4Addr::from(V4[pick(random)]).into();
        if rarely(random) {
            spec.source = Ipv4Addr::from(V4[random.usize(..V4.len())]).into();
        }
        spec.options = vec![1; 4 * [0, 0, 0, 1, 2, 10][random.usize(..6)]];
    }
    spec.destination_port = PORTS[[0, 0, 0, 1, 1, 2, 3, 5][random.usize(..8)]];
    spec.source_port = 40_000 + random.u16(..4);
    spec.isn = ISNS[random.usize(..ISNS.len())];
    for _ in 0..[0, 0, 0, 0, 1, 1, 2, 3][random.usize(..8)] {
        let kind = [0x8100, 0x88a8][random.usize(..2)];
        spec.vlans.push((kind, random.u16(..)));
    }
    if v6 && random.bool() {
        spec.extensions = chain(random);
    }
    if rarely(random) {
        spec.flags = random.u8(..);
    } else if rarely(random) {
        spec.flags |= flags::ECE | flags::CWR;
    }
    if rarely(random) {
        spec.fragment = WORDS[random.usize(..WORDS.len())];
    }
    if rarely(random) {
        spec.protocol = BYTES[random.usize(..BYTES.len())];
    }
    spec.tcp_options = vec![1; 4 * random.usize(..=10)];
    if rarely(random) {
        spec.payload = vec![7; random.usize(..200)];
    }
    spec.checksum = [
        Checksum::Whole,
        Checksum::Whole,
        Checksum::Partial,
        Checksum::Wrong,
    ][random.usize(..4)];
    spec.padded_to = [0, 60, 64, 300][random.usize(..4)];
    if link == Link::Bare {
        spec.source = if v6 { BARE_V6.into() } else { BARE_V4.into() };
        spec.vlans.clear();
        return spec.build()[14..].to_vec();
    }
    let mut frame = spec.build();
    let to = if random.bool() {
        [0; 6]
    } else {
        station(random)
    };
    frame[..6].copy_from_slice(&to);
    frame
}

/// Extension headers, more than are looked behind at the most.
fn chain(random: &mut Rng) -> Vec<(u8, Vec<u8>)> {
    (0..random.usize(..=8))
        .map(|_| match random.u8(..6) {
            0 => (
                extension::HOP_BY_HOP,
                options_header(8 * random.usize(1..=3)),
            ),
            1 => (
                extension::ROUTING,
                vec![0, 0, 0, random.u8(..2), 0, 0, 0, 0],
            ),
            2 => {
                let offset = [0, 0, 0, 1, 8][random.usize(..5)];
                (extension::FRAGMENT, vec![0, 0, 0, offset, 0, 0, 0, 0])
            }
            3 => (extension::AUTH, [vec![0, 4], vec![0; 22]].concat()),
            _ => (
                extension::DESTINATION,
                options_header(8 * random.usize(1..=3)),
            ),
        })
        .collect()
}
