//! The maps, and what the programs do with them.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use gate_common::abi::{
    ALLOWED, AllowKey, CHECKING as SLOTS, Counter, Cursor, DEFAULT_HELD, GateStats, Guard, HeldSyn,
    Holds, MAX_ALLOWED, MAX_CHECKS, MAX_GATES, MAX_MISSING, Missing, REPLAY_BATCH, ReplayFrame,
    checking_slot,
};
use gate_common::flow::{Address, AttemptKey, EndpointKey, FlowKey, GateId, Port, PortEntry};
use gate_common::parse::Syn;
use gate_common::reset::V6_LEN;
use gate_common::state::{BootTime, StateWord};
use gate_common::verdict::Tables;

use crate::hook::Hook;
use crate::{endpoints, listeners, room, routes};

/// Not zero while any gate is closed or guarded. A global, which a program reads without a look-up; it is
/// the whole of the `.bss` map, which user space pins under this name.
#[unsafe(no_mangle)]
static mut ARMED: u64 = 0;

/// Not zero for programs on interfaces whose frames have no Ethernet header (tun, WireGuard, GRE).
/// A constant to the verifier.
#[unsafe(no_mangle)]
static LAYER3: u32 = 0;

/// The state words. Who looks at all of them often maps them.
#[map]
static GATES: Array<u64> = Array::with_max_entries(MAX_GATES, BPF_F_MMAPABLE);

/// The held SYNs, newest frame of each flow. Not LRU: what is held stays held.
#[map]
pub static HELD: HashMap<FlowKey, HeldSyn> = HashMap::with_max_entries(DEFAULT_HELD, 0);

/// Attempts that were injected, or that passed after the lease: never (again) to be injected.
/// Entered with `BPF_NOEXIST`, so exactly one can.
#[map]
static RELEASED: HashMap<AttemptKey, GateId> = HashMap::with_max_entries(DEFAULT_HELD, 0);

/// The connections of health checks that are being made.
#[map]
static CHECKS: LruHashMap<FlowKey, GateId> = LruHashMap::with_max_entries(MAX_CHECKS, 0);

/// How many connections of health checks are being made from source ports, by their slot. It spares
/// other SYNs the look into `CHECKS`.
#[map]
static CHECKING: Array<u64> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

/// The sources that pass a closed gate.
#[map]
static ALLOW: LpmTrie<AllowKey, u32> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);

/// How gates are guarded.
#[map]
static GUARDS: Array<Guard> = Array::with_max_entries(MAX_GATES, BPF_F_MMAPABLE);

/// The guarded destinations where nothing listens.
#[map]
static MISSING: HashMap<EndpointKey, Missing> =
    HashMap::with_max_entries(MAX_MISSING, BPF_F_NO_PREALLOC);

/// Counters.
#[map]
static STATS: PerCpuArray<GateStats> = PerCpuArray::with_max_entries(MAX_GATES, 0);

/// How long SYNs were held. No program uses it: user space writes it where it injects.
#[map]
static HOLDS: Array<Holds> = Array::with_max_entries(MAX_GATES, 0);

/// Room to put a [`HeldSyn`] together, which is too large for the stack.
#[map]
static SCRATCH: PerCpuArray<HeldSyn> = PerCpuArray::with_max_entries(1, 0);

/// The frames of one injection, oldest first. Private to the process that releases.
#[map]
pub static REPLAY: Array<ReplayFrame> = Array::with_max_entries(REPLAY_BATCH, 0);

/// Where in `REPLAY` the injection is.
#[map]
pub static CURSOR: Array<Cursor> = Array::with_max_entries(1, 0);

/// A reading of the clock.
#[repr(C)]
#[derive(Clone, Copy)]
struct Reading {
    jiffy: u64,
    time: BootTime,
}

/// This CPU's last reading of the clock.
#[map]
static CLOCK: PerCpuArray<Reading> = PerCpuArray::with_max_entries(1, 0);

/// The time.
#[inline(always)]
pub fn exact_now() -> BootTime {
    // SAFETY: the helper has no preconditions (Linux 5.8).
    BootTime(unsafe { bpf_ktime_get_boot_ns() })
}

/// Whether any gate is closed or guarded.
#[inline(always)]
pub fn is_armed() -> bool {
    // SAFETY: programs only read it; volatile, because user space writes it (LLVM can't compile
    // an atomic load for BPF), and one aligned word, so it is never seen torn.
    unsafe { (&raw const ARMED).read_volatile() != 0 }
}

/// Whether the frames begin with the IP header.
#[inline(always)]
pub fn has_no_ethernet() -> bool {
    // SAFETY: nobody writes it once the program is loaded; volatile, because the compiler must
    // not take the value that it has here for the one that it is loaded with.
    unsafe { (&raw const LAYER3).read_volatile() != 0 }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(gate: GateId, counter: Counter) {
    if let Some(stats) = STATS.get_ptr_mut(gate.0) {
        // SAFETY: the pointer is to this CPU's own value. A replay can be interrupted by a hook on
        // the same CPU, but the two count different things.
        unsafe { (*stats).counts[counter as usize] += 1 };
    }
}

/// This CPU's scratch room.
#[inline(always)]
pub fn scratch() -> Option<*mut HeldSyn> {
    SCRATCH.get_ptr_mut(0)
}

/// Room on this CPU to put a RST together, which is too large for the stack.
#[inline(always)]
pub fn reset_room() -> Option<&'static mut [u8; V6_LEN]> {
    let room = scratch()?;
    // SAFETY: the pointer is to this CPU's own scratch value, which only this run uses, and it
    // uses either a `HeldSyn` or this.
    unsafe { (*room).frame.first_chunk_mut() }
}

/// What came of [`claim`].
pub enum Claim {
    /// The attempt is the caller's.
    Won,
    /// It was claimed before, and must not be injected (again).
    Lost,
    /// There is no room to note it.
    Full,
}

/// Notes that `attempt` must not be injected from now on, by anyone but the caller.
#[inline(always)]
pub fn claim(attempt: &AttemptKey, gate: GateId) -> Claim {
    const BPF_NOEXIST: u64 = 1;
    const EEXIST: i32 = -17;
    match RELEASED.insert(attempt, gate, BPF_NOEXIST) {
        Ok(()) => Claim::Won,
        Err(EEXIST) => Claim::Lost,
        Err(_) => Claim::Full,
    }
}

/// Takes a claim back: the attempt was not injected after all.
#[inline(always)]
pub fn unclaim(attempt: &AttemptKey) {
    // It was entered by this very run, so it is there.
    let _removed = RELEASED.remove(attempt);
}

/// Notes that nothing listens at a destination, unless that is known; false where there is no room.
/// The gate is marked first: whoever looks at the mark and finds none must find nothing else either.
#[inline(always)]
pub fn miss(endpoint: &EndpointKey, gate: GateId) -> bool {
    const BPF_NOEXIST: u64 = 1;
    const EEXIST: i32 = -17;
    let Some(guard) = GUARDS.get_ptr_mut(gate.0) else {
        return false;
    };
    // SAFETY: the pointer is to a map value; volatile, because user space writes it too, and one
    // aligned word, so it is never seen torn.
    unsafe { (&raw mut (*guard).dirty).write_volatile(1) };
    if MISSING.get_ptr(endpoint).is_some() {
        return true;
    }
    let missing = Missing {
        since: exact_now().0,
        gate,
        zero: 0,
    };
    // Another CPU may have been first.
    matches!(
        MISSING.insert(endpoint, missing, BPF_NOEXIST),
        Ok(()) | Err(EEXIST)
    )
}

/// Forgets that nothing listened at a SYN's destination. A copy of the SYN that is still held must
/// not be injected from now on.
#[inline(always)]
pub fn back(attempt: &AttemptKey, gate: GateId) {
    let endpoint = &attempt.flow.endpoint;
    if MISSING.get_ptr(endpoint).is_some() {
        // Another CPU may have been first.
        let _removed = MISSING.remove(endpoint);
    }
    if supersede(attempt, gate) {
        // Nobody waits for it. Another CPU may have been first.
        if HELD.remove(attempt.flow).is_ok() {
            room::give_back(&attempt.flow.source);
        }
    }
}

/// Claims an attempt of which a copy is held: its retransmission passes. True where there is one.
#[inline(always)]
pub fn supersede(attempt: &AttemptKey, gate: GateId) -> bool {
    // SAFETY: a pointer is to a map value; should its slot be reused this moment, it has another ISN.
    let held = unsafe { HELD.get(attempt.flow) };
    let is_held = held.is_some_and(|held| held.isn == attempt.isn);
    if is_held {
        claim(attempt, gate);
    }
    is_held
}

/// The kernel's maps and clock, its sockets, and its routes as a hook sees them.
pub struct Kernel<'a, H>(pub &'a H);

impl<H: Hook> Tables for Kernel<'_, H> {
    #[inline(always)]
    fn is_for_this_host(&self, syn: &Syn) -> bool {
        routes::is_for_this_host(self.0, syn)
    }

    #[inline(always)]
    fn is_for_many(&self) -> bool {
        self.0.is_for_many()
    }

    #[inline(always)]
    fn port(&self, port: Port) -> PortEntry {
        endpoints::port(port)
    }

    #[inline(always)]
    fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId> {
        endpoints::gate_of(endpoint)
    }

    #[inline(always)]
    fn asked_for(&self, syn: &Syn) -> Option<GateId> {
        self.0.asked_for(syn)
    }

    #[inline(always)]
    fn state(&self, gate: GateId) -> StateWord {
        match GATES.get_ptr(gate.0) {
            // SAFETY: the pointer is to a map value; volatile, because user space writes it,
            // and one aligned word, so it is never seen torn.
            Some(word) => StateWord(unsafe { word.read_volatile() }),
            None => StateWord::OPEN,
        }
    }

    #[inline(always)]
    fn is_check(&self, flow: &FlowKey) -> bool {
        let count = CHECKING.get_ptr(checking_slot(flow.source_port));
        // SAFETY: the pointer is to a map value; volatile, because user space counts there, and one
        // aligned word, so it is never seen torn.
        let is_one = count.is_some_and(|count| unsafe { count.read_volatile() } != 0);
        is_one && CHECKS.get_ptr(flow).is_some()
    }

    #[inline(always)]
    fn is_allowed(&self, gate: GateId, source: &Address) -> bool {
        let address = *source;
        let key = Key::new(AllowKey::BITS, AllowKey { gate, address });
        ALLOW.get(&key).is_some_and(|value| *value == ALLOWED)
    }

    #[inline(always)]
    fn has_listener(&self, syn: &Syn) -> bool {
        listeners::is_there(self.0, &syn.attempt.flow, syn.at.family)
    }

    #[inline(always)]
    fn guard(&self, gate: GateId) -> Guard {
        match GUARDS.get_ptr(gate.0) {
            // SAFETY: the pointer is to a map value; volatile, because user space writes it. Its
            // two words mean something each by itself.
            Some(guard) => unsafe { guard.read_volatile() },
            None => Guard::default(),
        }
    }

    #[inline(always)]
    fn missing(&self, endpoint: &EndpointKey) -> Option<Missing> {
        // SAFETY: should its slot be reused this moment, another destination's time counts once.
        unsafe { MISSING.get(endpoint) }.copied()
    }

    #[inline(always)]
    fn is_released(&self, attempt: &AttemptKey) -> bool {
        RELEASED.get_ptr(attempt).is_some()
    }

    /// The time, at most a jiffy old: reading the clock costs more than all the rest of a
    /// verdict, so a CPU does it once a jiffy.
    #[inline(always)]
    fn now(&self) -> BootTime {
        let Some(clock) = CLOCK.get_ptr_mut(0) else {
            return exact_now();
        };
        // SAFETY: the helper has no preconditions (Linux 5.6), and the pointer is to this
        // CPU's own value.
        unsafe {
            let jiffy = bpf_jiffies64();
            if (*clock).jiffy != jiffy {
                (*clock).time = exact_now();
                (*clock).jiffy = jiffy;
            }
            (*clock).time
        }
    }
}
