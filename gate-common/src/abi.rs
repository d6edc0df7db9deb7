//! Map values and sizes: plain bytes, no `bool`, no `enum`, no padding. Any change here that
//! an older `gate` could not read raises [`ABI_VERSION`].

use crate::flow::{
    Address, AttemptKey, EndpointKey, FlowKey, GateId, Isn, Port, PortEntry, Shortcut,
};
use crate::shares::Room;
use crate::state::StateWord;

/// Version of the pinned maps; part of the pin folder's name.
pub const ABI_VERSION: u32 = 8;

/// Slots of `GATES` and `STATS`; slot 0 is the host's, so one less gates.
pub const MAX_GATES: u32 = 1024;

/// Most endpoints that can be known at once.
pub const MAX_ENDPOINTS: u32 = 16_384;

/// Held SYNs that fit by default (`gate up --held`).
pub const DEFAULT_HELD: u32 = 16_384;

/// Longest frame that is kept, in bytes: Ethernet, two VLAN tags, IPv6 with some
/// extensions, and a full TCP header.
pub const FRAME_LEN: usize = 256;

/// Bytes of a VLAN tag (IEEE 802.1Q).
pub const TAG_LEN: usize = 4;

/// Longest frame that is captured: it has room for a tag that came beside the frame.
pub const CAPTURE_LEN: usize = FRAME_LEN - TAG_LEN;

/// Health checks whose connection is being made, at most; more push out the oldest.
pub const MAX_CHECKS: u32 = 1024;

/// Slots of `CHECKING`, a power of two.
pub const CHECKING: u32 = 1024;

/// The slot of a source port in `CHECKING`.
#[inline(always)]
#[must_use]
pub const fn checking_slot(source: Port) -> u32 {
    source.number() as u32 % CHECKING
}

/// Most prefixes of sources that can be allowed at once, those of all gates.
pub const MAX_ALLOWED: u32 = 16_384;

/// Most guarded destinations without a listener that can be known at once.
pub const MAX_MISSING: u32 = 16_384;

/// Frames that one injection call takes: well under what a CPU's backlog takes
/// (`net.core.netdev_max_backlog`, 1,000 by default), which fills during the call.
pub const REPLAY_BATCH: u32 = 256;

/// Bytes of `LISTENS`, a power of two and of pages: 4,096 records or more.
pub const LISTENS_LEN: u32 = 1 << 16;

/// A held SYN; value of `HELD`. Times are nanoseconds since boot.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HeldSyn {
    /// When the first SYN of this attempt arrived.
    pub arrived: u64,
    /// When the newest retransmission arrived, whose frame this is.
    pub refreshed: u64,
    /// The gate that holds it.
    pub gate: GateId,
    /// The interface that it came in on, or was to go out on.
    pub ifindex: u32,
    /// Bytes of `frame` in use.
    pub len: u32,
    /// The SYN's sequence number.
    pub isn: Isn,
    /// Which way it was going.
    pub direction: u32,
    /// The packet's mark, as firewalls and routing rules set and read it.
    pub mark: u32,
    /// The packet's priority, as queues read it.
    pub priority: u32,
    /// The VLAN tag that came beside the frame: EtherType in the upper half, TCI in the lower;
    /// 0 for none.
    pub tag: u32,
    /// The frame, from the Ethernet header on (made up where the interface has none), without
    /// trailing padding.
    pub frame: [u8; FRAME_LEN],
}

/// A source and the gate that lets it pass; the key of the trie `ALLOW`, where it follows the length
/// of the prefix in bits: those of the gate, always whole, and those of the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllowKey {
    /// The gate.
    pub gate: GateId,
    /// The source's address.
    pub address: Address,
}

impl AllowKey {
    /// Bits of the gate, before those of the address.
    pub const GATE_BITS: u32 = 32;

    /// Bits of the whole key.
    pub const BITS: u32 = Self::GATE_BITS + 128;
}

/// Value of `ALLOW` for a prefix whose sources pass. Another value takes a part out of a wider
/// prefix.
pub const ALLOWED: u32 = 1;

/// How a gate is guarded; value of `GUARDS`, by gate.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// How long SYNs are held from the first one on that finds no listener, in nanoseconds.
    pub lease: u64,
    /// Not zero from then on, until user space has seen that nothing is missing and nothing
    /// held any more.
    pub dirty: u64,
}

/// Since when nothing listens at a guarded destination; value of `MISSING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// When the first SYN came that found no listener, in nanoseconds since boot.
    pub since: u64,
    /// The gate.
    pub gate: GateId,
    /// Always zero.
    pub zero: u32,
}

/// Which way a packet goes through an interface; `direction` of [`HeldSyn`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It comes in.
    Ingress = 0,
    /// It goes out.
    Egress = 1,
}

impl Direction {
    /// The direction of that number; ingress for one that is none.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Egress,
            _ => Self::Ingress,
        }
    }
}

/// How a frame goes back; `way` of [`ReplayFrame`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// It comes in on the interface once more.
    In = 0,
    /// It goes out on the interface once more.
    Out = 1,
    /// User space sends it, and the program only claims the attempt.
    Claim = 2,
}

/// A frame to inject; value of `REPLAY`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ReplayFrame {
    /// The attempt that this is, entered into `RELEASED` before it is injected.
    pub attempt: AttemptKey,
    /// The gate that held it.
    pub gate: GateId,
    /// The interface of `way`.
    pub ifindex: u32,
    /// A [`Way`].
    pub way: u32,
    /// The packet's mark.
    pub mark: u32,
    /// The packet's priority.
    pub priority: u32,
    /// Not zero where it goes only while a socket of this network namespace listens for it.
    pub awaits: u32,
    /// Bytes of `frame` in use: even, from 60 to [`FRAME_LEN`].
    pub len: u32,
    /// The frame, checksums complete.
    pub frame: [u8; FRAME_LEN],
}

/// Why a frame does not go back; `blocked` of [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Block {
    /// Nothing keeps it.
    No = 0,
    /// The CPU's backlog or the table of what was injected is full, or the interface is gone.
    Full = 1,
    /// It awaits a listener, and there is none.
    Nobody = 2,
}

/// How far an injection is; value of `CURSOR`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The next frame of `REPLAY`.
    pub next: u32,
    /// A [`Block`]: why that frame could not be injected. Nothing more is tried then.
    pub blocked: u32,
    /// Frames that were injected.
    pub injected: u32,
}

/// What is counted, per gate and CPU. The number is the index in [`GateStats`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// SYN passed: the gate is open (counted only while some gate is closed).
    Passed = 0,
    /// SYN passed: the lease has run out.
    Expired = 1,
    /// SYN kept for the first time.
    Held = 2,
    /// SYN was a retransmission of a held one; the newer frame is kept.
    Refreshed = 3,
    /// SYN dropped by mode `drop`.
    Dropped = 4,
    /// SYN answered with a RST.
    Rejected = 5,
    /// SYN dropped, because the table of held SYNs is full, or its source's prefix has its share of it.
    Overflowed = 6,
    /// SYN dropped, because it carries data or is too long to be kept.
    Uncaptured = 7,
    /// SYN passed: its attempt was released already.
    Replayed = 8,
    /// Held SYN injected.
    Released = 9,
    /// Frame passed that claims to be TCP over IP, but can't be parsed (slot 0 only).
    Unparsed = 10,
    /// SYN of a health check of the gate's own passed, though the gate is closed.
    Checked = 11,
    /// SYN passed a closed gate: its source is allowed.
    Allowed = 12,
}

impl Counter {
    /// All of them, with the names that `gate status --json` uses.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::Passed, "passed"),
        (Self::Expired, "expired"),
        (Self::Held, "held"),
        (Self::Refreshed, "refreshed"),
        (Self::Dropped, "dropped"),
        (Self::Rejected, "rejected"),
        (Self::Overflowed, "overflowed"),
        (Self::Uncaptured, "uncaptured"),
        (Self::Replayed, "replayed"),
        (Self::Released, "released"),
        (Self::Unparsed, "unparsed"),
        (Self::Checked, "checked"),
        (Self::Allowed, "allowed"),
    ];
}

/// A gate's counters on one CPU; value of `STATS`, indexed by [`Counter`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateStats {
    /// Events since `gate up`.
    pub counts: [u64; 16],
}

/// Upper bounds of the buckets of [`Holds`], in nanoseconds; the last bucket has none.
pub const HOLD_BOUNDS: [u64; 15] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// How long a gate's SYNs were held until they were injected; value of `HOLDS`, by gate. Those that
/// passed as retransmissions, after a lease say, are not in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// How many are above the bound before, and not above the bucket's own.
    pub buckets: [u64; HOLD_BOUNDS.len() + 1],
    /// All their times together, in nanoseconds.
    pub sum: u64,
}

impl Holds {
    /// Counts one that was held for so many nanoseconds.
    pub fn add(&mut self, held: u64) {
        let bucket = HOLD_BOUNDS.partition_point(|bound| *bound < held);
        self.buckets[bucket] += 1;
        self.sum = self.sum.saturating_add(held);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

const _: () = {
    assert!(size_of::<EndpointKey>() == 20);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<AttemptKey>() == 44);
    assert!(size_of::<PortEntry>() == 4);
    assert!(size_of::<Shortcut>() == 28);
    assert!(size_of::<StateWord>() == 8);
    assert!(size_of::<GateId>() == 4);
    assert!(size_of::<HeldSyn>() == 48 + FRAME_LEN);
    assert!(size_of::<ReplayFrame>() == 72 + FRAME_LEN);
    assert!(size_of::<GateStats>() == 128);
    assert!(size_of::<Cursor>() == 12);
    assert!(size_of::<AllowKey>() == 20);
    assert!(size_of::<Guard>() == 16);
    assert!(size_of::<Missing>() == 16);
    assert!(size_of::<Holds>() == 8 * 17);
    assert!(size_of::<Room>() == 16);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        AllowKey, AttemptKey, Cursor, EndpointKey, FlowKey, GateId, GateStats, Guard, HeldSyn,
        Holds, Missing, PortEntry, ReplayFrame, Room, Shortcut,
    };
    use crate::state::StateWord;
    use aya::Pod;

    // SAFETY: all are repr(C) or repr(transparent) over integers and byte arrays, without
    // padding (the size assertions above add up), so any bytes are a valid value.
    unsafe impl Pod for EndpointKey {}
    // SAFETY: as above.
    unsafe impl Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl Pod for AttemptKey {}
    // SAFETY: as above.
    unsafe impl Pod for GateId {}
    // SAFETY: as above.
    unsafe impl Pod for PortEntry {}
    // SAFETY: as above.
    unsafe impl Pod for Shortcut {}
    // SAFETY: as above.
    unsafe impl Pod for StateWord {}
    // SAFETY: as above.
    unsafe impl Pod for HeldSyn {}
    // SAFETY: as above.
    unsafe impl Pod for ReplayFrame {}
    // SAFETY: as above.
    unsafe impl Pod for Cursor {}
    // SAFETY: as above.
    unsafe impl Pod for GateStats {}
    // SAFETY: as above.
    unsafe impl Pod for AllowKey {}
    // SAFETY: as above.
    unsafe impl Pod for Guard {}
    // SAFETY: as above.
    unsafe impl Pod for Missing {}
    // SAFETY: as above.
    unsafe impl Pod for Holds {}
    // SAFETY: as above.
    unsafe impl Pod for Room {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_in_the_bucket_whose_bound_it_does_not_exceed() {
        let mut holds = Holds::default();
        for (held, bucket) in [
            (0, 0),
            (1_000_000, 0),
            (1_000_001, 1),
            (60_000_000_000, 14),
            (60_000_000_001, 15),
        ] {
            let before = holds;
            holds.add(held);
            assert_eq!(holds.buckets[bucket], before.buckets[bucket] + 1, "{held}");
            assert_eq!(
                (holds.count(), holds.sum),
                (before.count() + 1, before.sum + held)
            );
        }
    }

    #[test]
    fn the_bounds_rise() {
        assert!(HOLD_BOUNDS.is_sorted_by(|one, next| one < next));
    }
}
