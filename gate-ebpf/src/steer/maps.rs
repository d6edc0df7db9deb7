//! The maps, and what the programs read there.

use core::marker::PhantomData;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, SockHash};
use gate_common::abi::MAX_GATES;
use gate_common::flow::{EndpointKey, GateId, Port, PortEntry};
use gate_common::handover::{
    Alias, ListenerKey, MAX_ALIASES, MAX_LISTENERS, MAX_SPLITS, Share, Split, Steered, Tables,
};

use crate::endpoints;

/// Gate to split; 0 for none. One store hands a whole gate over.
#[map]
static HANDOVERS: Array<u32> = Array::with_max_entries(MAX_GATES, BPF_F_MMAPABLE);

/// The splits.
#[map]
static SPLITS: HashMap<u32, Split> = HashMap::with_max_entries(MAX_SPLITS, BPF_F_NO_PREALLOC);

/// The listening sockets of the backends. The kernel takes out what is closed.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(MAX_LISTENERS, 0);

/// The aliases.
#[map]
static ALIASES: HashMap<EndpointKey, Alias> =
    HashMap::with_max_entries(MAX_ALIASES, BPF_F_NO_PREALLOC);

/// A storage of sockets whose values connections take over from their listener. (aya has one that
/// they don't.) The fields are for the loader, which reads their types.
#[repr(C)]
struct Inherited<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
    _value: PhantomData<T>,
}

// SAFETY: the pointers are null and nobody follows them.
unsafe impl<T> Sync for Inherited<T> {}

/// The backend whose listener accepted a connection, as it is bound. No program reads it: user space
/// marks listeners, the kernel hands the mark on, and sock_diag tells it.
#[btf_map]
static SERVED: Inherited<EndpointKey> = Inherited {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
    _value: PhantomData,
};

/// The kernel's maps.
pub struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn port(&self, port: Port) -> PortEntry {
        endpoints::port(port)
    }

    #[inline(always)]
    fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId> {
        endpoints::gate_of(endpoint)
    }

    #[inline(always)]
    fn share(&self, gate: GateId, hook: Steered) -> Option<Share> {
        // SAFETY: the pointer is to a map value; volatile, because user space writes it, and one
        // aligned word, so it is never seen torn.
        let id = HANDOVERS
            .get_ptr(gate.0)
            .map(|id| unsafe { id.read_volatile() })?;
        if id == 0 {
            return None;
        }
        // SAFETY: splits never change, and one is removed a grace period after the last word that
        // named it.
        let split = unsafe { SPLITS.get(id) }?;
        if !split.is_by(hook) {
            return None;
        }
        // SAFETY: the helper has no preconditions.
        split.pick(unsafe { bpf_get_prandom_u32() })
    }

    #[inline(always)]
    fn alias(&self, local: &EndpointKey) -> Option<Alias> {
        // SAFETY: should its slot be reused this moment, one connection meets another alias.
        unsafe { ALIASES.get(local) }.copied()
    }
}
