//! What sockets that a handover sent elsewhere were connected to: a map that both objects share.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use gate_common::handover::Peer;

/// Socket to what its process asked for. It goes with the socket.
#[btf_map]
pub static PEERS: SkStorage<Peer> = SkStorage::new();

/// What is known of a socket, which may be null.
#[inline(always)]
pub fn of<'a>(socket: *mut bpf_sock) -> Option<&'a Peer> {
    if socket.is_null() {
        return None;
    }
    let map = (&raw const PEERS).cast_mut();
    // SAFETY: the socket is valid as long as the program runs, or holds its reference. The value is
    // written by connect(2) only, which has the socket to itself.
    unsafe {
        bpf_sk_storage_get(map.cast(), socket.cast(), core::ptr::null_mut(), 0)
            .cast::<Peer>()
            .as_ref()
    }
}
