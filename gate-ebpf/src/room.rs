//! Whether there is room for one more held SYN, and who has taken it: see `gate_common::shares`.

#[cfg(target_arch = "bpf")]
use core::arch::asm;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use gate_common::flow::Address;
use gate_common::shares::{Room, SHARES as COUNT, TOTAL};

/// What the shares are of. Written once, before any program is attached.
#[map]
static ROOM: Array<Room> = Array::with_max_entries(1, 0);

/// How many SYNs the sources of a prefix have in `HELD`, and all of them. Two CPUs that look at the same
/// moment may both take the last place, and who dies may leave counts behind: each release that ends
/// puts that right.
#[map]
static SHARES: Array<u64> = Array::with_max_entries(COUNT + 1, BPF_F_MMAPABLE);

/// Takes a place for one more SYN of this source; false where there is none.
#[inline(always)]
pub fn take(source: &Address) -> bool {
    let Some(room) = ROOM.get(0) else {
        return false;
    };
    let Some((share, total)) = counts(room, source) else {
        return false;
    };
    // SAFETY: both are pointers to map values; volatile, because others write them, and one aligned word
    // each, so it is never seen torn.
    let has_place = unsafe { room.has_place(share.read_volatile(), total.read_volatile()) };
    if has_place {
        add(share, total, 1);
    }
    has_place
}

/// Gives the place of a SYN of this source back.
#[inline(always)]
pub fn give_back(source: &Address) {
    if let Some(room) = ROOM.get(0)
        && let Some((share, total)) = counts(room, source)
    {
        add(share, total, u64::MAX);
    }
}

/// The two counts that a held SYN is in.
#[inline(always)]
fn counts(room: &Room, source: &Address) -> Option<(*mut u64, *mut u64)> {
    let share = SHARES.get_ptr_mut(room.share_of(source))?;
    Some((share, SHARES.get_ptr_mut(TOTAL)?))
}

#[inline(always)]
fn add(share: *mut u64, total: *mut u64, number: u64) {
    for count in [share, total] {
        // SAFETY: the pointer is to a map value, an aligned word; others add to it by the same
        // instruction (`BPF_XADD`, Linux 3.19).
        #[cfg(target_arch = "bpf")]
        unsafe {
            asm!("lock *(u64 *)({count} + 0) += {number}", count = in(reg) count, number = in(reg) number);
        }
        #[cfg(not(target_arch = "bpf"))]
        let _checked_only = (count, number);
    }
}
