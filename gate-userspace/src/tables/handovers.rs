//! The maps of handovers and aliases, typed. They are made by the first of either.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, SkStorage, SockHash};
use gate_common::flow::{EndpointKey, GateId};
use gate_common::handover::{Alias, ListenerKey, MAX_ALIASES, MAX_SOCKETS, Split, Steered};

use super::{is_full, mapped, missing, open_map, slots, typed};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::pins::{self, Lock, Pins};
use crate::sockets::Backend;
use crate::sys;
use crate::sys::mapping::Mapped;

/// The pinned maps.
pub const MAPS: [&str; 5] = ["HANDOVERS", "SPLITS", "LISTENERS", "ALIASES", "SERVED"];

/// Which hooks are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// The look-up of listeners.
    pub lookup: bool,
    /// connect(2).
    pub connect: bool,
}

/// The maps of one network namespace.
pub struct Handovers {
    words: Array<MapData, u32>,
    mapped: OnceLock<Mapped<u32>>,
    splits: HashMap<MapData, u32, Split>,
    listeners: SockHash<MapData, ListenerKey>,
    aliases: HashMap<MapData, EndpointKey, Alias>,
    served: SkStorage<MapData, EndpointKey>,
    /// The same map: aya's type doesn't tell its descriptor.
    served_data: MapData,
}

impl Handovers {
    /// Opens the pinned maps; none where there never was a handover or an alias.
    ///
    /// # Errors
    /// [`Error::OtherAbi`], [`Error::MissingPin`], and those of the kernel.
    pub fn open(pins: &Pins) -> Result<Option<Self>> {
        if let Some(name) = MAPS.iter().find(|name| !pins.map(name).exists()) {
            // Whoever dies while he makes them leaves some of them, and nothing that is attached.
            return match pins::entries(&pins.steering()).is_empty() {
                true => Ok(None),
                false => Err(missing(pins, name)),
            };
        }
        let data = |name: &str| open_map(pins, name);
        Ok(Some(Self {
            words: typed(Map::Array(data("HANDOVERS")?), pins.map("HANDOVERS"))?,
            mapped: OnceLock::new(),
            splits: typed(Map::HashMap(data("SPLITS")?), pins.map("SPLITS"))?,
            listeners: typed(Map::SockHash(data("LISTENERS")?), pins.map("LISTENERS"))?,
            aliases: typed(Map::HashMap(data("ALIASES")?), pins.map("ALIASES"))?,
            served: typed(Map::SkStorage(data("SERVED")?), pins.map("SERVED"))?,
            served_data: data("SERVED")?,
        }))
    }

    /// How a gate's new connections are shared; none where they go to its own listener.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn split(&self, gate: GateId) -> Result<Option<Split>> {
        let id = self.word(gate)?;
        match self.splits.get(&id, 0) {
            Ok(split) if id != 0 => Ok(Some(split)),
            Ok(_) | Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::aya("look up in SPLITS")(error)),
        }
    }

    fn word(&self, gate: GateId) -> Result<u32> {
        self.words
            .get(&gate.0, 0)
            .map_err(Error::aya(format!("read the handover of gate {}", gate.0)))
    }

    /// Shares a gate's new connections as this split says, from one store on; none gives them to its
    /// own listener again.
    ///
    /// # Errors
    /// Those of the maps; nothing is changed then.
    pub fn switch(&mut self, _lock: &Lock, gate: GateId, split: Option<&Split>) -> Result<()> {
        let id = match split {
            None => 0,
            Some(split) => {
                // A gate has two slots. The one that is not in use went out of use with an earlier
                // command, so no program reads it any more.
                let id = match 2 * gate.0 {
                    even if self.word(gate)? == even => even + 1,
                    even => even,
                };
                self.splits
                    .insert(id, split, 0)
                    .map_err(Error::aya("enter into SPLITS"))?;
                id
            }
        };
        self.words
            .set(gate.0, id, 0)
            .map_err(Error::aya(format!("store the handover of gate {}", gate.0)))
    }

    /// Enters the listening sockets of a backend, taken wherever it listens, instead of those that it
    /// was known by. Connections that they accept from now on are marked with where they are bound.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn enter(&mut self, _lock: &Lock, backend: EndpointKey, from: &[Backend]) -> Result<()> {
        let all = || from.iter().flat_map(|it| &it.sockets);
        // All of a group get connections, whichever of them are entered.
        for taken in all() {
            self.served
                .insert(&taken.fd, EndpointKey::from(taken.socket.endpoint()), 0)
                .map_err(Error::aya("mark a listening socket in SERVED"))?;
        }
        // One of each family in turn: neither is left out, however many the other has.
        let of = |is_v6| all().filter(move |taken| taken.socket.is_v6 == is_v6);
        let (mut v4, mut v6) = (of(false), of(true));
        let pairs = std::iter::from_fn(|| match (v4.next(), v6.next()) {
            (None, None) => None,
            pair => Some([pair.0, pair.1]),
        });
        let entered = (0..MAX_SOCKETS).zip(pairs.flatten().flatten());
        let mut count = 0;
        for (index, taken) in entered {
            self.listeners
                .insert(ListenerKey { backend, index }, taken.fd.as_raw_fd(), 0)
                .map_err(Error::aya("enter a listening socket into LISTENERS"))?;
            count = index + 1;
        }
        for index in count..MAX_SOCKETS {
            self.leave(ListenerKey { backend, index })?;
        }
        Ok(())
    }

    fn leave(&mut self, key: ListenerKey) -> Result<()> {
        match self.listeners.remove(&key) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(error) => Err(Error::aya("remove from LISTENERS")(error)),
        }
    }

    /// Forgets the listening sockets of all backends but these.
    ///
    /// # Errors
    /// Those of the map.
    pub fn keep(&mut self, _lock: &Lock, backends: &BTreeSet<Endpoint>) -> Result<()> {
        for key in self.listener_keys()? {
            if !backends.contains(&key.backend.into()) {
                self.leave(key)?;
            }
        }
        Ok(())
    }

    fn listener_keys(&self) -> Result<Vec<ListenerKey>> {
        let keys: Result<Vec<_>, MapError> = self.listeners.keys().collect();
        keys.map_err(Error::aya("list LISTENERS"))
    }

    /// How many of a backend's listening sockets are still open.
    ///
    /// # Errors
    /// Those of the map.
    pub fn listening(&self, backend: EndpointKey) -> Result<usize> {
        let keys = self.listener_keys()?;
        Ok(keys.iter().filter(|key| key.backend == backend).count())
    }

    /// The gates that are handed over or have an alias: their slots are nobody else's.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn gates(&self) -> Result<BTreeSet<GateId>> {
        let mut gates: BTreeSet<GateId> = self.handed()?.collect();
        gates.extend(self.aliases()?.into_iter().map(|(_, alias)| alias.gate));
        Ok(gates)
    }

    fn handed(&self) -> Result<impl Iterator<Item = GateId>> {
        Ok(self.words()?.into_iter().map(|(gate, _)| gate))
    }

    /// The gates that are handed over, in order, and the splits that are in use; another split has
    /// another number. They are mapped, so it takes no call.
    ///
    /// # Errors
    /// The kernel's, the first time.
    pub fn words(&self) -> Result<Vec<(GateId, u32)>> {
        let words = mapped(&self.mapped, self.words.map(), "HANDOVERS")?;
        let handed = slots().zip(words.iter());
        Ok(handed.filter(|(_, split)| *split != 0).collect())
    }

    /// Which hooks some handover or alias needs.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn needed(&self) -> Result<Needed> {
        let mut needed = Needed {
            lookup: !self.aliases()?.is_empty(),
            connect: false,
        };
        for gate in self.handed()? {
            match self.split(gate)? {
                Some(split) if split.is_by(Steered::Lookup) => needed.lookup = true,
                Some(_) => needed.connect = true,
                None => {}
            }
        }
        Ok(needed)
    }

    /// All aliases.
    ///
    /// # Errors
    /// Those of the map.
    pub fn aliases(&self) -> Result<Vec<(EndpointKey, Alias)>> {
        sys::lookup_all(self.aliases.map().fd().as_fd())
            .map_err(Error::call("bpf batch look-up in", "ALIASES"))
    }

    /// Enters an alias, or changes it.
    ///
    /// # Errors
    /// [`Error::Full`], and those of the map.
    pub fn set_alias(&mut self, _lock: &Lock, at: EndpointKey, alias: Alias) -> Result<()> {
        match self.aliases.insert(at, alias, 0) {
            Err(MapError::SyscallError(error)) if is_full(&error.io_error) => Err(Error::Full {
                what: "the table of aliases",
                max: MAX_ALIASES,
            }),
            set => set.map_err(Error::aya("enter into ALIASES")),
        }
    }

    /// Forgets an alias.
    ///
    /// # Errors
    /// Those of the map.
    pub fn forget_alias(&mut self, _lock: &Lock, at: EndpointKey) -> Result<()> {
        match self.aliases.remove(&at) {
            Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(error) => Err(Error::aya("remove from ALIASES")(error)),
        }
    }

    /// The storage that tells which backend a connection is served by.
    #[must_use]
    pub fn served(&self) -> BorrowedFd<'_> {
        self.served_data.fd().as_fd()
    }
}
