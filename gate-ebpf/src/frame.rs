//! A frame in direct packet access.

use core::hint::black_box;

use gate_common::parse::Packet;

/// The bytes between a context's `data` and `data_end`.
pub struct Direct {
    start: usize,
    end: usize,
}

impl Direct {
    /// From the context's two pointers.
    #[inline(always)]
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Overwrites the `N` bytes at `at`; false where the frame ends before.
    #[inline(always)]
    pub fn store<const N: usize>(&self, at: usize, bytes: [u8; N]) -> bool {
        let to = black_box(self.start + at);
        if to + N > self.end {
            return false;
        }
        // SAFETY: [to, to + N) lies within the packet, as just checked (and as the verifier
        // checks once more); a byte array has no alignment.
        unsafe { (to as *mut [u8; N]).write(bytes) };
        true
    }
}

/// A frame whose offsets are not known when it is compiled. The pointer that is checked must be the
/// one that is read: verifiers before Linux 6.12 don't know that the same sum is the same pointer,
/// and LLVM likes to add twice.
pub struct Sought(pub Direct);

impl Packet for Sought {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let from = black_box(self.0.start + at);
        if from + N > self.0.end {
            return None;
        }
        // SAFETY: as in `Direct`.
        Some(unsafe { (from as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Packet for Direct {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let from = self.start + at;
        if from + N > self.end {
            return None;
        }
        // SAFETY: [from, from + N) lies within the packet, as just checked (and as the
        // verifier checks once more); a byte array has no alignment.
        Some(unsafe { (from as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }
}
