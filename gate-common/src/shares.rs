//! How much of the table of held SYNs the sources of one prefix may take.
//!
//! A prefix may hold at most [`REACH`] times what is free, all prefixes counted (dynamic thresholds,
//! as switches share the memory for their queues: Choudhury and Hahne, IEEE/ACM Transactions on
//! Networking 6(2), 1998). So one prefix gets seven eighths of an empty table, and there is always
//! room for another; `n` at once that take all they can leave one part in `1 + 7n`.

use crate::flow::Address;

/// How many times what is free a prefix may hold.
pub const REACH: u64 = 7;

/// Prefixes are told apart by their hash. Two with the same one have one share.
pub const SHARES: u32 = 4096;

/// The index behind the shares: what all of them are together.
pub const TOTAL: u32 = SHARES;

/// What the shares are of; value of `ROOM`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Held SYNs that there is room for; 0 where nobody's share is limited.
    pub capacity: u64,
    /// Nobody outside can tell which prefixes have the same hash.
    pub seed: u64,
}

impl Room {
    /// Whether a prefix that holds `share` may hold one more, when `held` are held in all. A count below
    /// zero is zero: who gives a place back twice must not close the table.
    #[inline(always)]
    #[must_use]
    pub const fn has_place(&self, share: u64, held: u64) -> bool {
        let (share, held) = (above_zero(share), above_zero(held));
        self.capacity == 0 || share < REACH * self.capacity.saturating_sub(held)
    }

    /// The index of the share of a source: of its /24 (IPv4), or of its /48 (IPv6), which is what one
    /// site gets (RFC 6177).
    #[inline(always)]
    #[must_use]
    pub const fn share_of(&self, source: &Address) -> u32 {
        let [a, b, _, v4] = source.words();
        let prefix = match source.is_v4() {
            true => u32::from_be(v4) as u64 >> 8,
            // Set apart from those of IPv4 by the highest bit.
            false => 1 << 63 | (u32::from_be(a) as u64) << 16 | u32::from_be(b) as u64 >> 16,
        };
        (prefix.wrapping_mul(self.seed | 1) >> (u64::BITS - SHARES.ilog2())) as u32
    }
}

#[inline(always)]
const fn above_zero(count: u64) -> u64 {
    match count.cast_signed() < 0 {
        true => 0,
        false => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        capacity: 16_384,
        seed: 0x9e37_79b9_7f4a_7c15,
    };

    /// As many as go in by one prefix.
    fn fill(room: Room, others: u64) -> u64 {
        let mut share = 0;
        while room.has_place(share, others + share) {
            share += 1;
        }
        share
    }

    #[test]
    fn one_prefix_gets_seven_eighths() {
        assert_eq!(fill(ROOM, 0), 16_384 / 8 * 7);
        for capacity in 1..100 {
            let room = Room { capacity, ..ROOM };
            let got = fill(room, 0);
            assert!(got > 0, "{capacity}");
            assert!(got < capacity || capacity < 8, "{capacity}: {got}");
        }
    }

    #[test]
    fn there_is_room_for_the_next_prefix() {
        // One after the other, each takes seven eighths of what the others left.
        let mut others = 0;
        for left in [2_048, 256, 32, 4] {
            others += fill(ROOM, others);
            assert_eq!(ROOM.capacity - others, left);
        }
    }

    #[test]
    fn prefixes_that_come_at_once_get_as_much_as_each_other() {
        for prefixes in [2, 3, 10] {
            let (mut share, mut held) = (0, 0);
            while ROOM.has_place(share, held) {
                share += 1;
                held += prefixes;
            }
            let left = ROOM.capacity - held;
            assert!(
                left.abs_diff(ROOM.capacity / (1 + 7 * prefixes)) <= prefixes,
                "{left}"
            );
        }
    }

    #[test]
    fn a_full_table_has_no_place_and_no_capacity_no_limit() {
        assert!(!ROOM.has_place(0, ROOM.capacity));
        assert!(!ROOM.has_place(0, ROOM.capacity + 1));
        assert!(Room::default().has_place(1 << 40, 1 << 40));
    }

    #[test]
    fn a_count_below_zero_is_zero() {
        let below = 0_u64.wrapping_sub(3);
        assert!(ROOM.has_place(0, below));
        assert!(ROOM.has_place(below, 0));
        assert!(!ROOM.has_place(below, ROOM.capacity));
    }

    #[test]
    fn sources_of_one_prefix_share() {
        let v4 = |octets| ROOM.share_of(&Address::from_v4(octets));
        assert_eq!(v4([10, 1, 2, 3]), v4([10, 1, 2, 255]));
        assert_ne!(v4([10, 1, 2, 3]), v4([10, 1, 3, 3]));
        let v6 = |site: u8, host: u8| {
            let mut octets = [0; 16];
            (octets[0], octets[5], octets[6], octets[15]) = (0x20, site, host, host);
            ROOM.share_of(&Address::from_v6(octets))
        };
        assert_eq!(v6(1, 0), v6(1, 9));
        assert_ne!(v6(1, 0), v6(2, 0));
    }

    #[test]
    fn prefixes_spread_over_the_shares() {
        let mut counts = [0_u32; SHARES as usize];
        for prefix in 0..0x10_0000_u32 {
            let [_, a, b, c] = prefix.to_be_bytes();
            let index = ROOM.share_of(&Address::from_v4([a, b, c, 1]));
            counts[index as usize] += 1;
        }
        // 256 each, if they were spread evenly.
        assert!(counts.iter().all(|count| (64..1024).contains(count)));
    }
}
