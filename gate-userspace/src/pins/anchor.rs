//! The pins as they were found, whatever becomes of the path to them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::lock::{Flocked, flock, is_at, patiently};
use super::{Lock, Pins};
use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// The folder whose lock it is, kept open: the lock and the pins can be had also where the path does not
/// lead there any more, because bpffs was unmounted or another was mounted over it. All goes by the
/// folder, for the path may be lost between any two looks at it.
#[derive(Debug)]
pub struct Anchor {
    folder: File,
    path: PathBuf,
    pins: Pins,
}

impl Lock {
    /// What the lock of these pins can be had by later.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn anchor(&self, pins: &Pins) -> Result<Anchor> {
        let folder = reopen(&self.file)?;
        Ok(Anchor {
            path: pins.root.clone(),
            pins: Pins {
                root: way_to(&folder),
                namespace: pins.namespace.clone(),
            },
            folder,
        })
    }
}

impl Anchor {
    /// The pins, wherever they are.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Whether the path leads elsewhere, or nowhere.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        !is_at(&self.folder, &self.path)
    }

    /// Whether the folder is there still, out of reach. One that was removed has no link.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        self.is_lost() && self.folder.metadata().is_ok_and(|it| it.nlink() > 0)
    }

    /// Takes the lock, whatever is pinned.
    ///
    /// # Errors
    /// [`Error::Locked`], and those of the file system.
    pub fn lock(&self) -> Result<Lock> {
        patiently(|| self.try_lock())
    }

    /// As [`lock`](Self::lock), but none where another command has it now.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        // A lock belongs to one opening of the folder.
        match flock(reopen(&self.folder)?, &self.path.display().to_string())? {
            Flocked::Taken(file) => Ok(Some(Lock { file })),
            Flocked::Busy | Flocked::Gone => Ok(None),
        }
    }

    /// An error in words, its paths as people know them.
    #[must_use]
    pub fn told(&self, error: &Error) -> String {
        let [way, path] = [&self.pins.root, &self.path].map(|path| path.display().to_string());
        error.to_string().replace(&way, &path)
    }
}

/// A path to an open folder, wherever that is.
fn way_to(folder: &File) -> PathBuf {
    format!("/proc/self/fd/{}", folder.as_raw_fd()).into()
}

/// Opens a folder once more, without a path that may be lost as well (`/proc`).
fn reopen(folder: &File) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = openat(folder, ".", flags, Mode::empty());
    let opened = opened.map_err(|errno| Error::call("open", "the pins' folder")(errno.into()))?;
    Ok(opened.into())
}
