//! Who has how much of the table of held SYNs, see [`gate_common::shares`].

use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::OnceLock;

use aya::maps::{Array, IterableMap as _, Map, MapData};
use gate_common::flow::FlowKey;
use gate_common::shares::{Room, TOTAL};

use crate::error::{Error, Result};
use crate::sys::mapping::Counts;
use crate::tables::typed;

/// The shares, as the data path counts them.
pub(super) struct Shares {
    room: Array<MapData, Room>,
    map: Array<MapData, u64>,
    mapped: OnceLock<Counts>,
}

impl Shares {
    pub(super) fn new(room: Array<MapData, Room>, map: Array<MapData, u64>) -> Self {
        Self {
            room,
            map,
            mapped: OnceLock::new(),
        }
    }

    /// These are held no longer. Flows that the data path forgot first are counted twice, until
    /// [`correct`](Self::correct) puts that right.
    pub(super) fn give_back(&self, flows: &[FlowKey]) -> Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let counts = self.counts()?;
        for (share, number) in self.of(flows)?.into_iter().enumerate() {
            counts.add(share, -number);
        }
        Ok(())
    }

    /// The counts of this moment.
    pub(super) fn look(&self) -> Result<Vec<i64>> {
        Ok(self.counts()?.iter().map(u64::cast_signed).collect())
    }

    /// Puts right what is wrong, when these were held at some moment between two looks. The data path
    /// counts on meanwhile, so what lies between the looks may be right.
    pub(super) fn correct(&self, flows: &[FlowKey], before: &[i64], after: &[i64]) -> Result<()> {
        let counts = self.counts()?;
        let looks = before.iter().zip(after);
        for (share, (held, (before, after))) in self.of(flows)?.iter().zip(looks).enumerate() {
            match drift(*held, *before, *after) {
                0 => {}
                drift => counts.add(share, -drift),
            }
        }
        Ok(())
    }

    /// How many of these flows are in each share, and in all.
    fn of(&self, flows: &[FlowKey]) -> Result<Vec<i64>> {
        let room = self.room.get(&0, 0).map_err(Error::aya("read ROOM"))?;
        let mut counts = vec![0; TOTAL as usize + 1];
        for flow in flows {
            for index in [room.share_of(&flow.source), TOTAL] {
                counts[index as usize] += 1;
            }
        }
        Ok(counts)
    }

    fn counts(&self) -> Result<&Counts> {
        if let Some(counts) = self.mapped.get() {
            return Ok(counts);
        }
        let map = self.map.map().fd().as_fd();
        let made = Counts::new(map, TOTAL as usize + 1).map_err(Error::call("mmap", "SHARES"))?;
        Ok(self.mapped.get_or_init(|| made))
    }
}

/// By how much a count is too high.
fn drift(held: i64, before: i64, after: i64) -> i64 {
    let (least, most) = (before.min(after), before.max(after));
    (least - held).max(0) + (most - held).min(0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_data_path_did_not_do_meanwhile_is_put_right() {
        for (held, before, after, expected) in [
            (5, 5, 5, 0),
            // It took some in, or gave some back, between the looks.
            (7, 5, 9, 0),
            (7, 9, 5, 0),
            // Who died had given nothing back.
            (5, 8, 8, 3),
            (5, 8, 10, 3),
            // Somebody gave back what was given back already.
            (5, 4, 4, -1),
            (0, -2, -2, -2),
            (5, 2, 4, -1),
        ] {
            assert_eq!(
                drift(held, before, after),
                expected,
                "{held} {before} {after}"
            );
        }
    }
}
