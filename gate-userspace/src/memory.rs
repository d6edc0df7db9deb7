//! What happens when memory runs out: one line, and the exit code of a failure.
//!
//! Rust's own answer is to abort. The kernel holds the state, so to end here is as good as to be killed.

use std::alloc::{GlobalAlloc, Layout, System};

use gate_userspace::error::exit;

/// What is said then.
const LINE: &[u8] = b"gate: not enough memory: allow it more\n";

/// The system's memory, or the end.
pub struct OrEnd;

// SAFETY: all is handed on to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for OrEnd {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        or_end(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        or_end(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's.
        or_end(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn or_end(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        // SAFETY: the bytes are a constant; neither call takes memory or a lock.
        unsafe {
            let _unseen = libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len());
            libc::_exit(i32::from(exit::FAILURE));
        }
    }
    memory
}
