//! The state word: all of a gate's state in 64 bits, so that one store flips it for every
//! endpoint, on every CPU and hook, at once.
//!
//! | bits | meaning |
//! |---|---|
//! | 0–7 | [`Mode`] |
//! | 8–15 | flags: bit 8, the gate's own health checks pass; bit 9, the gate is guarded; bit 10, its allowed sources pass; bit 11, it was closed because its backend is down |
//! | 16–63 | the lease's deadline, in ticks of 1,024 ns since boot (over nine years) |

/// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`, `bpf_ktime_get_boot_ns`,
/// Linux 5.8).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootTime(pub u64);

/// What happens to a SYN for the gate's endpoints.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It passes.
    Open = 0,
    /// It is kept, and replayed on opening.
    Hold = 1,
    /// It is dropped silently; the client retransmits it.
    Drop = 2,
    /// It is answered with a RST.
    Reject = 3,
}

impl Mode {
    #[inline(always)]
    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Hold,
            2 => Self::Drop,
            3 => Self::Reject,
            // An unknown mode is doubt, and doubt passes.
            _ => Self::Open,
        }
    }

    /// The word that people use for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Hold => "hold",
            Self::Drop => "drop",
            Self::Reject => "reject",
        }
    }
}

/// A mode that needs a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closed {
    /// [`Mode::Hold`].
    Hold,
    /// [`Mode::Drop`].
    Drop,
    /// [`Mode::Reject`].
    Reject,
}

impl From<Closed> for Mode {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Hold => Self::Hold,
            Closed::Drop => Self::Drop,
            Closed::Reject => Self::Reject,
        }
    }
}

/// What a gate is at some moment, the lease taken into account. Whether it is guarded
/// ([`StateWord::is_guarded`]) is apart from this, and matters where it is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effective {
    /// Open because someone opened it.
    Open,
    /// Open because the lease ran out.
    Expired,
    /// Closed, and the lease runs.
    Closed(Closed),
}

const CHECKS_PASS: u64 = 1 << 8;
const GUARDED: u64 = 1 << 9;
const ALLOWED_PASS: u64 = 1 << 10;
const BACKEND_DOWN: u64 = 1 << 11;
const DEADLINE_SHIFT: u32 = 16;
const TICK_SHIFT: u32 = 10;

/// One gate's state; the value of the `GATES` map. Invariant: a closed word always has a
/// deadline, because [`StateWord::closed`] is the only way to make one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateWord(pub u64);

impl StateWord {
    /// The word of an open gate, and of a slot that was never used.
    pub const OPEN: Self = Self(0);

    /// The word of a gate closed until `deadline`, which is rounded up to the next tick of
    /// 1,024 ns.
    #[must_use]
    pub fn closed(mode: Closed, deadline: BootTime) -> Self {
        let ticks = deadline
            .0
            .div_ceil(1 << TICK_SHIFT)
            .min(u64::MAX >> DEADLINE_SHIFT);
        Self(ticks << DEADLINE_SHIFT | u64::from(Mode::from(mode) as u8))
    }

    /// The same word, but what is in the `CHECKS` map passes while the gate is closed.
    #[must_use]
    pub const fn with_checks(self) -> Self {
        Self(self.0 | CHECKS_PASS)
    }

    /// Whether the gate's own health checks pass.
    #[inline(always)]
    #[must_use]
    pub const fn lets_checks_pass(self) -> bool {
        self.0 & CHECKS_PASS != 0
    }

    /// The same word, but sources that are in the `ALLOW` map for the gate pass while it is closed.
    #[must_use]
    pub const fn with_allows(self) -> Self {
        Self(self.0 | ALLOWED_PASS)
    }

    /// Whether the gate's allowed sources pass.
    #[inline(always)]
    #[must_use]
    pub const fn lets_allowed_pass(self) -> bool {
        self.0 & ALLOWED_PASS != 0
    }

    /// The same word, guarded or not: while the gate isn't closed, SYNs that come in for an
    /// endpoint where no socket listens are held.
    #[must_use]
    pub const fn guarded(self, guarded: bool) -> Self {
        match guarded {
            true => Self(self.0 | GUARDED),
            false => Self(self.0 & !GUARDED),
        }
    }

    /// Whether the gate is guarded.
    #[inline(always)]
    #[must_use]
    pub const fn is_guarded(self) -> bool {
        self.0 & GUARDED != 0
    }

    /// The same word, but closed by the daemon, because the gate's backend is down; so that the daemon,
    /// or the next one, knows that it may open it.
    #[must_use]
    pub const fn by_health(self) -> Self {
        Self(self.0 | BACKEND_DOWN)
    }

    /// Whether the daemon closed it because the gate's backend is down.
    #[must_use]
    pub const fn is_by_health(self) -> bool {
        self.0 & BACKEND_DOWN != 0
    }

    /// The stored mode, whatever became of the lease.
    #[inline(always)]
    #[must_use]
    pub const fn mode(self) -> Mode {
        Mode::from_bits(self.0 as u8)
    }

    /// The lease's deadline; meaningless for an open gate.
    #[inline(always)]
    #[must_use]
    pub const fn deadline(self) -> BootTime {
        BootTime((self.0 >> DEADLINE_SHIFT) << TICK_SHIFT)
    }

    /// The gate's state at the time that `now` returns; `now` is asked for closed words only.
    #[inline(always)]
    pub fn at(self, now: impl FnOnce() -> BootTime) -> Effective {
        let closed = match self.mode() {
            Mode::Open => return Effective::Open,
            Mode::Hold => Closed::Hold,
            Mode::Drop => Closed::Drop,
            Mode::Reject => Closed::Reject,
        };
        if now() < self.deadline() {
            Effective::Closed(closed)
        } else {
            Effective::Expired
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unused_slot_is_open() {
        assert_eq!(StateWord(0).at(|| BootTime(0)), Effective::Open);
    }

    #[test]
    fn a_guarded_word_keeps_its_mode_and_deadline() {
        assert_eq!(
            StateWord::OPEN.guarded(true).at(|| BootTime(0)),
            Effective::Open
        );
        let closed = StateWord::closed(Closed::Reject, BootTime(1 << 20));
        for word in [closed, closed.with_checks(), closed.with_allows()] {
            let guarded = word.guarded(true);
            assert!(guarded.is_guarded() && !word.is_guarded());
            assert_eq!(guarded.deadline(), word.deadline());
            assert_eq!(guarded.mode(), word.mode());
            assert_eq!(guarded.lets_checks_pass(), word.lets_checks_pass());
            assert_eq!(guarded.lets_allowed_pass(), word.lets_allowed_pass());
            assert_eq!(guarded.guarded(false), word);
        }
    }

    #[test]
    fn an_unknown_mode_is_open() {
        for bits in 4..=255 {
            let word = StateWord(u64::MAX << 16 | bits);
            assert_eq!(word.at(|| BootTime(0)), Effective::Open, "{bits}");
        }
    }

    proptest! {
        #[test]
        fn the_lease_ends_within_a_tick(deadline in 0_u64..1 << 57, mode in 0..3) {
            let mode = [Closed::Hold, Closed::Drop, Closed::Reject][mode as usize];
            let word = StateWord::closed(mode, BootTime(deadline));
            prop_assert_eq!(word.mode(), Mode::from(mode));
            if deadline > 0 {
                prop_assert_eq!(word.at(|| BootTime(deadline - 1)), Effective::Closed(mode));
            }
            prop_assert_eq!(word.at(|| BootTime(deadline + 1024)), Effective::Expired);
        }

        #[test]
        fn a_deadline_past_the_range_saturates(deadline in 1_u64 << 58..u64::MAX) {
            let word = StateWord::closed(Closed::Hold, BootTime(deadline));
            prop_assert_eq!(word.at(|| BootTime(1 << 57)), Effective::Closed(Closed::Hold));
        }
    }
}
