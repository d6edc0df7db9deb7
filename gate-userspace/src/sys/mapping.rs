//! Array maps as memory: reading and counting takes no call.

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
    memory: Memory,
    value: PhantomData<V>,
}

impl<V: Words> Mapped<V> {
    /// Maps an array of so many entries, whose values are `V`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(map: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        Ok(Self {
            memory: Memory::new(map, entries * V::COUNT, libc::PROT_READ)?,
            value: PhantomData,
        })
    }

    /// All values, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = V> {
        self.memory.words().chunks_exact(V::COUNT).map(|value| {
            let mut words = [0; 2];
            for (to, from) in words.iter_mut().zip(value) {
                *to = from.load(Ordering::Relaxed);
            }
            V::from_words(words)
        })
    }
}

/// An array map of counts, mapped for reading and writing (`BPF_F_MMAPABLE`, Linux 5.5). Programs
/// count there meanwhile. It keeps the map alive.
pub struct Counts(Memory);

impl Counts {
    /// Maps an array of so many counts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(map: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        Memory::new(map, entries, libc::PROT_READ | libc::PROT_WRITE).map(Self)
    }

    /// All counts, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.0
            .words()
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
    }

    /// Adds to a count, or takes off it.
    pub fn add(&self, index: usize, number: i64) {
        if let Some(word) = self.0.words().get(index) {
            word.fetch_add(number.cast_unsigned(), Ordering::Relaxed);
        }
    }
}

/// Words that programs and processes share.
struct Memory {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the memory is only touched by atomic instructions, and is there until the drop, on whatever
// thread.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(map: BorrowedFd<'_>, len: usize, protection: libc::c_int) -> io::Result<Self> {
        // SAFETY: the kernel chooses a free place, so nothing of ours is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * size_of::<u64>(),
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `len` words, and a page is aligned. Others write them meanwhile, each
        // as a whole.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<u64>();
        // SAFETY: it was mapped with this length, and nobody has a reference into it any more.
        let _unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
    }
}
