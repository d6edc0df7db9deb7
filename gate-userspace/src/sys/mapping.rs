//! An array map as memory: reading it takes no call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use gate_common::abi::Guard;
use gate_common::state::StateWord;

/// A value that is one or two words, each of which means something by itself. The kernel puts the
/// values of an array 8 bytes apart, or a multiple of that.
pub trait Words {
    /// How many words it takes: 1 or 2.
    const COUNT: usize;

    /// The value of these words; the second is zero where it takes one.
    fn from_words(words: [u64; 2]) -> Self;
}

impl Words for StateWord {
    const COUNT: usize = 1;

    fn from_words([word, _]: [u64; 2]) -> Self {
        Self(word)
    }
}

impl Words for Guard {
    const COUNT: usize = 2;

    fn from_words([lease, dirty]: [u64; 2]) -> Self {
        Self { lease, dirty }
    }
}

impl Words for u32 {
    const COUNT: usize = 1;

    /// The lower half: the maps are those of little-endian programs.
    fn from_words([word, _]: [u64; 2]) -> Self {
        word as Self
    }
}

/// An array map, mapped for reading (`BPF_F_MMAPABLE`, Linux 5.5). It keeps the map alive.
pub struct Mapped<V> {
    start: NonNull<AtomicU64>,
    entries: usize,
    bytes: usize,
    value: PhantomData<V>,
}

// SAFETY: the memory is only read, by atomic loads, and is there until the drop, on whatever thread.
unsafe impl<V> Send for Mapped<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for Mapped<V> {}

impl<V: Words> Mapped<V> {
    /// Maps an array of so many entries, whose values are `V`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(map: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        let bytes = entries * V::COUNT * size_of::<u64>();
        // SAFETY: the kernel chooses a free place, so nothing of ours is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            entries,
            bytes,
            value: PhantomData,
        })
    }

    /// All values, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = V> {
        (0..self.entries).map(|index| {
            let mut words = [0; 2];
            for (at, word) in words.iter_mut().enumerate().take(V::COUNT) {
                // SAFETY: the mapping has `entries` times `COUNT` words, and a page is aligned. Others
                // write them meanwhile, each as a whole.
                let from = unsafe { self.start.add(index * V::COUNT + at).as_ref() };
                *word = from.load(Ordering::Relaxed);
            }
            V::from_words(words)
        })
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has a reference into it any more.
        let _unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
