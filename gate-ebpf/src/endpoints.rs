//! Which gate an endpoint belongs to: the maps that both objects share.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use gate_common::abi::MAX_ENDPOINTS;
use gate_common::flow::{EndpointKey, GateId, Port, PortEntry, SHORTCUTS as SLOTS, Shortcut};

/// Endpoint to gate.
#[map]
static ENDPOINTS: HashMap<EndpointKey, GateId> =
    HashMap::with_max_entries(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);

/// What is known of each port, by its number: an index over `ENDPOINTS`.
#[map]
static PORTS: Array<PortEntry> = Array::with_max_entries(1 << 16, 0);

/// Endpoints by a slot of their own: most of `ENDPOINTS`, without its hash.
#[map]
static SHORTCUTS: Array<Shortcut> = Array::with_max_entries(SLOTS, 0);

/// What is known of a port.
#[inline(always)]
pub fn port(port: Port) -> PortEntry {
    match PORTS.get_ptr(u32::from(port.number())) {
        // SAFETY: the pointer is to a map value; volatile, because user space writes it,
        // and one aligned word, so it is never seen torn.
        Some(entry) => unsafe { entry.read_volatile() },
        None => PortEntry::default(),
    }
}

/// The gate of an endpoint with an address.
#[inline(always)]
pub fn gate_of(endpoint: &EndpointKey) -> Option<GateId> {
    if let Some(shortcut) = SHORTCUTS.get_ptr(Shortcut::slot(endpoint)) {
        // SAFETY: the pointer is to a map value; volatile, because user space writes it. One that is
        // torn fails its own check.
        let gate = unsafe { shortcut.read_volatile() }.gate_of(endpoint);
        if gate.is_some() {
            return gate;
        }
    }
    // SAFETY: a value is one word, so a read of a slot that is being reused sees the old
    // gate or the new one.
    unsafe { ENDPOINTS.get(endpoint) }.copied()
}
