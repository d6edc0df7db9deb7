//! The pinned maps, typed. Whatever changes them takes the [`Lock`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::OnceLock;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, MapInfo, PerCpuArray};
use gate_common::abi::{AllowKey, GateStats, Guard, HeldSyn, Holds, MAX_GATES, Missing};
use gate_common::flow::{AttemptKey, EndpointKey, FlowKey, GateId, PortEntry, Shortcut};
use gate_common::state::{BootTime, Closed, Effective, StateWord};
use std::os::fd::AsFd;
use std::path::Path;

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::pins::{Lock, Pins};
use crate::sys;
use crate::sys::mapping::{Mapped, Words};

mod allow;
pub mod batch;
mod checks;
mod endpoints;
mod guard;
pub mod handovers;
mod held;
mod holds;
pub mod shares;
mod shortcuts;

pub use checks::Checks;
pub use held::{attempt, waits};
use shares::Shares;

/// The armed flag's name, as a global of the object and as a pin.
pub const ARMED: &str = "ARMED";

/// The pinned maps.
pub const MAPS: [&str; 17] = [
    ARMED,
    "GATES",
    "ENDPOINTS",
    "PORTS",
    "SHORTCUTS",
    "HELD",
    "RELEASED",
    "CHECKS",
    "CHECKING",
    "ALLOW",
    "GUARDS",
    "MISSING",
    "PEERS",
    "STATS",
    "HOLDS",
    "ROOM",
    "SHARES",
];

/// The maps of one network namespace.
pub struct Tables {
    armed: Array<MapData, u64>,
    gates: Array<MapData, StateWord>,
    endpoints: HashMap<MapData, EndpointKey, GateId>,
    ports: Array<MapData, PortEntry>,
    shortcuts: Array<MapData, Shortcut>,
    held: HashMap<MapData, FlowKey, HeldSyn>,
    released: HashMap<MapData, AttemptKey, GateId>,
    allow: LpmTrie<MapData, AllowKey, u32>,
    guards: Array<MapData, Guard>,
    missing: HashMap<MapData, EndpointKey, Missing>,
    stats: PerCpuArray<MapData, GateStats>,
    holds: Array<MapData, Holds>,
    held_max: u32,
    shares: Shares,
    words: OnceLock<Mapped<StateWord>>,
    guarding: OnceLock<Mapped<Guard>>,
}

/// Compares the map with what this version knows, because a pin that is reused is taken as it is.
pub(crate) fn typed<T: TryFrom<Map, Error = MapError>>(
    map: Map,
    path: impl AsRef<Path>,
) -> Result<T> {
    let path = path.as_ref();
    T::try_from(map).map_err(|error| match error {
        // aya says "expected" of what is there.
        MapError::InvalidKeySize { size, expected }
        | MapError::InvalidValueSize { size, expected } => Error::OtherAbi {
            path: path.into(),
            found: format!("{expected} bytes"),
            expected: format!("{size} bytes"),
        },
        error => Error::aya(format!("map {}", path.display()))(error),
    })
}

/// Opens a map's pin.
pub(crate) fn open_map(pins: &Pins, name: &str) -> Result<MapData> {
    let path = pins.map(name);
    MapData::from_pin(&path).map_err(|error| match path.exists() {
        true => Error::aya(format!("open pin {}", path.display()))(error),
        false => missing(pins, name),
    })
}

/// Why a map's pin is not there: a `gate down` may have been first.
pub(crate) fn missing(pins: &Pins, name: &str) -> Error {
    match pins.exist() {
        true => Error::MissingPin {
            path: pins.map(name),
        },
        false => Error::NotUp,
    }
}

impl Tables {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::NotUp`] where there are none, [`Error::MissingPin`], [`Error::OtherAbi`] where they differ.
    pub fn open(pins: &Pins) -> Result<Self> {
        if !pins.exist() {
            pins.check_version()?;
            return Err(Error::NotUp);
        }
        // Loading would make those anew that are not there, of which the attached programs know nothing.
        if let Some(name) = MAPS.iter().find(|name| !pins.map(name).exists()) {
            return Err(missing(pins, name));
        }
        let data = |name: &str| open_map(pins, name);
        let held = data("HELD")?;
        let held_max = held.info().map_err(Error::aya("map HELD"))?.max_entries();
        Ok(Self {
            armed: typed(Map::Array(data(ARMED)?), pins.map(ARMED))?,
            gates: typed(Map::Array(data("GATES")?), pins.map("GATES"))?,
            endpoints: typed(Map::HashMap(data("ENDPOINTS")?), pins.map("ENDPOINTS"))?,
            ports: typed(Map::Array(data("PORTS")?), pins.map("PORTS"))?,
            shortcuts: typed(Map::Array(data("SHORTCUTS")?), pins.map("SHORTCUTS"))?,
            held: typed(Map::HashMap(held), pins.map("HELD"))?,
            released: typed(Map::HashMap(data("RELEASED")?), pins.map("RELEASED"))?,
            allow: typed(Map::LpmTrie(data("ALLOW")?), pins.map("ALLOW"))?,
            guards: typed(Map::Array(data("GUARDS")?), pins.map("GUARDS"))?,
            missing: typed(Map::HashMap(data("MISSING")?), pins.map("MISSING"))?,
            stats: typed(Map::PerCpuArray(data("STATS")?), pins.map("STATS"))?,
            holds: typed(Map::Array(data("HOLDS")?), pins.map("HOLDS"))?,
            held_max,
            shares: Shares::new(
                typed(Map::Array(data("ROOM")?), pins.map("ROOM"))?,
                typed(Map::Array(data("SHARES")?), pins.map("SHARES"))?,
            ),
            words: OnceLock::new(),
            guarding: OnceLock::new(),
        })
    }

    /// Held SYNs that there is room for.
    #[must_use]
    pub fn held_max(&self) -> u32 {
        self.held_max
    }

    /// A gate's state word.
    ///
    /// # Errors
    /// Those of the map.
    pub fn state(&self, gate: GateId) -> Result<StateWord> {
        self.gates
            .get(&gate.0, 0)
            .map_err(Error::aya(format!("read state of gate {}", gate.0)))
    }

    /// The state words of all slots, used or not, in order. They are mapped, so it takes no call.
    ///
    /// # Errors
    /// The kernel's, the first time.
    pub fn states(&self) -> Result<Vec<(GateId, StateWord)>> {
        let words = mapped(&self.words, self.gates.map(), "GATES")?;
        Ok(slots().zip(words.iter()).collect())
    }

    /// All endpoints with their gates.
    ///
    /// # Errors
    /// Those of the map.
    pub fn endpoints(&self) -> Result<BTreeMap<Endpoint, GateId>> {
        let entries = sys::lookup_all::<EndpointKey, GateId>(self.endpoints.map().fd().as_fd())
            .map_err(Error::call("bpf batch look-up in", "ENDPOINTS"))?;
        Ok(entries
            .into_iter()
            .map(|(key, gate)| (Endpoint::from(key), gate))
            .collect())
    }

    /// The gate of an endpoint, if it ever had one.
    ///
    /// # Errors
    /// Those of the map.
    pub fn gate_of(&self, endpoint: Endpoint) -> Result<Option<GateId>> {
        match self.endpoints.get(&endpoint.into(), 0) {
            Ok(gate) => Ok(Some(gate)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::aya(format!("look up {endpoint}"))(error)),
        }
    }

    /// A gate's counters, summed over the CPUs.
    ///
    /// # Errors
    /// Those of the map.
    pub fn stats(&self, gate: GateId) -> Result<GateStats> {
        let per_cpu = self
            .stats
            .get(&gate.0, 0)
            .map_err(Error::aya(format!("read counters of gate {}", gate.0)))?;
        let mut sum = GateStats::default();
        for cpu in per_cpu.iter() {
            for (sum, count) in sum.counts.iter_mut().zip(cpu.counts) {
                *sum += count;
            }
        }
        Ok(sum)
    }

    /// Stores a state word; a guarded gate stays guarded. A word that closes or guards arms the
    /// data path first; another disarms it afterwards where it was the last.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn set_state(
        &mut self,
        _lock: &Lock,
        gate: GateId,
        word: StateWord,
        now: BootTime,
    ) -> Result<()> {
        let guarded = self.state(gate)?.is_guarded();
        self.store(gate, word.guarded(guarded), now)
    }

    fn store(&mut self, gate: GateId, word: StateWord, now: BootTime) -> Result<()> {
        if is_active(word, now) {
            self.set_armed(true)?;
        }
        self.gates
            .set(gate.0, word, 0)
            .map_err(Error::aya(format!("store state of gate {}", gate.0)))?;
        match is_active(word, now) {
            true => Ok(()),
            false => self.disarm_if_idle(now),
        }
    }

    /// Whether any gate is closed or guarded.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn any_active(&self, now: BootTime) -> Result<bool> {
        for gate in self.endpoints()?.into_values().collect::<BTreeSet<_>>() {
            if is_active(self.state(gate)?, now) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn disarm_if_idle(&mut self, now: BootTime) -> Result<()> {
        match self.any_active(now)? {
            true => Ok(()),
            false => self.set_armed(false),
        }
    }

    /// Clears up after leases that ran out and processes that died: forgets what gates hold
    /// that hold no more, whose clients have retransmitted or gone, and disarms the data path
    /// where no gate is closed or guarded.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn settle(&mut self, lock: &Lock, now: BootTime) -> Result<()> {
        let mut holding = BTreeSet::new();
        let mut guarded = BTreeMap::new();
        let mut allowing = BTreeSet::new();
        for gate in self.endpoints()?.into_values().collect::<BTreeSet<_>>() {
            let word = self.state(gate)?;
            if word.lets_allowed_pass() && matches!(word.at(|| now), Effective::Closed(_)) {
                allowing.insert(gate);
            }
            if word.is_guarded() {
                guarded.insert(gate, self.guard(gate)?);
            }
            if word.at(|| now) == Effective::Closed(Closed::Hold) {
                holding.insert(gate);
            }
        }
        let waits = |syn: &HeldSyn| {
            let guard = guarded.get(&syn.gate);
            holding.contains(&syn.gate) || guard.is_some_and(|guard| waits(syn, *guard, now))
        };
        let held: HashSet<AttemptKey> = self
            .held()?
            .iter()
            .filter(|(_, syn)| waits(syn))
            .map(|(flow, syn)| attempt(flow, syn))
            .collect();
        self.forget_allowed(&allowing)?;
        self.forget_held(lock, |_, syn| !waits(syn))?;
        self.forget_released(lock, |attempt, gate| {
            !(holding.contains(&gate) || held.contains(attempt))
        })?;
        self.forget_missing(lock, |_, missing| !guarded.contains_key(&missing.gate))?;
        self.calm(lock, &guarded.into_keys().collect())?;
        self.disarm_if_idle(now)
    }

    /// Whether these are the maps that are pinned now, and not those of an earlier `gate up`.
    #[must_use]
    pub fn are_current(&self, pins: &Pins) -> bool {
        let (own, pinned) = self.ids(pins);
        own.is_some() && own == pinned
    }

    /// Whether others are pinned in their place. Where none are pinned any more, or it can't be told,
    /// nobody put any there, and the words tell what a `gate down` did before.
    #[must_use]
    pub fn are_replaced(&self, pins: &Pins) -> bool {
        let (own, pinned) = self.ids(pins);
        pinned.is_some() && own != pinned
    }

    /// The kernel's numbers of the map of the words, and of the one that is pinned.
    fn ids(&self, pins: &Pins) -> (Option<u32>, Option<u32>) {
        let id = |info: Result<MapInfo, MapError>| info.ok().map(|info| info.id());
        let pinned = MapInfo::from_pin(pins.map("GATES"));
        (id(self.gates.map().info()), id(pinned))
    }

    /// Closes a gate. What it held before goes on being held only where it goes on holding:
    /// all else is of an older time, and its clients have retransmitted or gone.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn close(
        &mut self,
        lock: &Lock,
        gate: GateId,
        word: StateWord,
        now: BootTime,
    ) -> Result<()> {
        let holding = Effective::Closed(Closed::Hold);
        let before = self.state(gate)?;
        let held = before.at(|| now) == holding || before.is_guarded();
        if word.at(|| now) != holding || !held {
            self.discard(lock, &BTreeSet::from([gate]))?;
        }
        self.set_state(lock, gate, word, now)?;
        // A guard's lease begins anew once the gate is open.
        self.forget_missing(lock, |_, missing| missing.gate == gate)
    }

    /// The armed flag.
    ///
    /// # Errors
    /// Those of the map.
    pub fn is_armed(&self) -> Result<bool> {
        let armed = self
            .armed
            .get(&0, 0)
            .map_err(Error::aya("read the armed flag"))?;
        Ok(armed != 0)
    }

    fn set_armed(&mut self, armed: bool) -> Result<()> {
        self.armed
            .set(0, u64::from(armed), 0)
            .map_err(Error::aya("store the armed flag"))
    }
}

/// Whether SYNs must be judged because of a gate with this word.
fn is_active(word: StateWord, now: BootTime) -> bool {
    word.is_guarded() || matches!(word.at(|| now), Effective::Closed(_))
}

/// All slots.
fn slots() -> impl Iterator<Item = GateId> {
    (0..MAX_GATES).map(GateId)
}

/// An array over all slots, mapped when it is first asked for.
fn mapped<'a, V: Words>(
    mapped: &'a OnceLock<Mapped<V>>,
    map: &MapData,
    name: &'static str,
) -> Result<&'a Mapped<V>> {
    if let Some(mapped) = mapped.get() {
        return Ok(mapped);
    }
    let made =
        Mapped::new(map.fd().as_fd(), MAX_GATES as usize).map_err(Error::call("mmap", name))?;
    Ok(mapped.get_or_init(|| made))
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::E2BIG | libc::ENOMEM | libc::ENOSPC)
    )
}
