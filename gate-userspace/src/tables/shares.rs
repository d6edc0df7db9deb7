//! Who has how much of the table of held SYNs, see [`gate_common::shares`].

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::OnceLock;

use aya::maps::{Array, IterableMap as _, Map, MapData};
use gate_common::flow::FlowKey;
use gate_common::shares::{Room, SHARES, TOTAL};

use crate::error::{Error, Result};
use crate::sys::mapping::Counts;
use crate::tables::typed;

/// The shares, as the data path counts them.
pub(super) struct Shares {
    room: Array<MapData, Room>,
    counts: Array<MapData, u64>,
    words: OnceLock<Counts>,
}

impl Shares {
    pub(super) fn new(room: Array<MapData, Room>, counts: Array<MapData, u64>) -> Self {
        Self {
            room,
            counts,
            words: OnceLock::new(),
        }
    }

    /// These are held no longer. Flows that the data path forgot first are counted twice, until
    /// [`count`](Self::count) puts that right.
    pub(super) fn give_back(&self, flows: &[FlowKey]) -> Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let (words, counts) = (self.words()?, self.of(flows)?);
        for (share, count) in counts {
            words.subtract(share, count);
        }
        Ok(())
    }

    /// Counts anew: these are what is held. What the data path takes in at this very moment may be
    /// missed, which lets as many more in.
    pub(super) fn count(&self, flows: &[FlowKey]) -> Result<()> {
        let (words, counts) = (self.words()?, self.of(flows)?);
        for share in 0..=TOTAL {
            words.set(share, counts.get(&share).copied().unwrap_or(0));
        }
        Ok(())
    }

    /// How many of these flows are in each share, and in all.
    fn of(&self, flows: &[FlowKey]) -> Result<HashMap<u32, u64>> {
        let room = self.room.get(&0, 0).map_err(Error::aya("read ROOM"))?;
        let mut counts = HashMap::from([(TOTAL, flows.len() as u64)]);
        for flow in flows {
            *counts.entry(room.share_of(&flow.source)).or_default() += 1;
        }
        Ok(counts)
    }

    fn words(&self) -> Result<&Counts> {
        if let Some(words) = self.words.get() {
            return Ok(words);
        }
        let map = self.counts.map().fd().as_fd();
        let made = Counts::new(map, SHARES as usize + 1).map_err(Error::call("mmap", "SHARES"))?;
        Ok(self.words.get_or_init(|| made))
    }
}

/// Says what the shares are of, in a new set of pinned maps.
///
/// # Errors
/// Those of the map.
pub fn furnish(folder: &Path, capacity: u32) -> Result<()> {
    let path = folder.join("ROOM");
    let map =
        MapData::from_pin(&path).map_err(Error::aya(format!("open pin {}", path.display())))?;
    let mut room: Array<MapData, Room> = typed(Map::Array(map), &path)?;
    let value = Room {
        capacity: capacity.into(),
        seed: RandomState::new().hash_one(()),
    };
    room.set(0, value, 0).map_err(Error::aya("store ROOM"))
}
