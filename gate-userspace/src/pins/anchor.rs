//! The lock where its folder's path is lost.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use super::{Flocked, Lock, Pins, flock, is_at, patiently};
use crate::error::{Error, Result};

/// The folder whose lock it is, kept open: the lock can be had also where the path does not lead there
/// any more, because bpffs was unmounted or another was mounted over it.
#[derive(Debug)]
pub struct Anchor(File);

impl Lock {
    /// What the lock can be had by later.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn anchor(&self) -> Result<Anchor> {
        reopen(&self.file).map(Anchor)
    }
}

impl Anchor {
    /// Whether the path leads elsewhere, or nowhere.
    #[must_use]
    pub fn is_lost(&self, pins: &Pins) -> bool {
        !is_at(&self.0, &pins.root)
    }

    /// Whether the folder is there still, out of reach. One that was removed has no link.
    #[must_use]
    pub fn is_out_of_reach(&self, pins: &Pins) -> bool {
        self.is_lost(pins) && self.0.metadata().is_ok_and(|folder| folder.nlink() > 0)
    }

    /// Takes the lock, by the path where that leads there.
    ///
    /// # Errors
    /// As [`Pins::lock`].
    pub fn lock(&self, pins: &Pins) -> Result<Lock> {
        match self.is_lost(pins) {
            true => patiently(pins, || self.try_lock()),
            false => pins.lock(),
        }
    }

    /// Takes the lock, whatever became of the path; none where another command has it now. What it is
    /// the lock of are the maps that were opened while the path led there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        // A lock belongs to one opening of the folder.
        match flock(reopen(&self.0)?, "gate's folder")? {
            Flocked::Taken(file) => Ok(Some(Lock { file })),
            Flocked::Busy | Flocked::Gone => Ok(None),
        }
    }
}

/// Opens a folder once more, wherever it is.
fn reopen(folder: &File) -> Result<File> {
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    File::open(&path).map_err(Error::call("open", path))
}
