//! What the kernel's routes say of a SYN.

use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED, bpf_fib_lookup as Lookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use gate_common::abi::FRAME_LEN;
use gate_common::parse::{Family, Syn};

use crate::hook::Hook;
use crate::maps::scratch;

/// `AF_INET` and `AF_INET6` of linux/socket.h.
const INET: u8 = 2;
const INET6: u8 = 10;

const TCP: u8 = 6;

const WORDS: usize = size_of::<Lookup>() / size_of::<u64>();

const _: () = assert!(size_of::<Lookup>() <= FRAME_LEN && size_of::<Lookup>().is_multiple_of(8));

/// Whether a SYN that came in is for this host, by the kernel's own routing decision. A host that
/// forwards nothing takes in whatever it is sent.
#[inline(always)]
pub fn is_for_this_host<H: Hook>(hook: &H, syn: &Syn) -> bool {
    if hook.is_for_another() {
        return false;
    }
    let Some(room) = scratch() else {
        return true;
    };
    let flow = &syn.attempt.flow;
    // SAFETY: the pointer is to this CPU's own scratch value, which only this run uses; a frame
    // there is larger than a look-up and aligned to eight bytes, and zero is valid for one.
    let result = unsafe {
        let lookup = (&raw mut (*room).frame).cast::<Lookup>();
        // Word by word, and volatile: LLVM makes a loop over bytes of anything else, which would be
        // most of what the verifier has to go through.
        for word in 0..WORDS {
            lookup.cast::<u64>().add(word).write_volatile(0);
        }
        (*lookup).l4_protocol = TCP;
        (*lookup).ifindex = hook.ifindex();
        match syn.at.family {
            Family::V4 => {
                (*lookup).family = INET;
                (*lookup).__bindgen_anon_3.ipv4_src = flow.source.words()[3];
                (*lookup).__bindgen_anon_4.ipv4_dst = flow.endpoint.address.words()[3];
            }
            Family::V6 => {
                (*lookup).family = INET6;
                (*lookup).__bindgen_anon_3.ipv6_src = flow.source.words();
                (*lookup).__bindgen_anon_4.ipv6_dst = flow.endpoint.address.words();
            }
        }
        bpf_fib_lookup(hook.as_ptr(), lookup, size_of::<Lookup>() as i32, 0)
    };
    // An error is doubt.
    result < 0
        || result == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED)
        || result == i64::from(BPF_FIB_LKUP_RET_FWD_DISABLED)
}
