//! The user's folder for what is fetched once: a toolchain, a linker, a web server for the tests.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};

use crate::recipe;

/// Unfinished fetches begin with this, and are never looked at again.
const UNFINISHED: &str = ".fetch-";

/// The cache folder, locked against other runs until this is dropped.
pub struct Cache {
    folder: PathBuf,
    _lock: File,
}

impl Cache {
    /// Makes the folder where needed and waits for its lock.
    pub fn open() -> Result<Self> {
        let folder =
            recipe::cache_folder().context("set HOME or XDG_CACHE_HOME to an absolute path")?;
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let path = folder.join("lock");
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("Another run uses {}. Waiting for it.", folder.display());
                lock.lock()
                    .with_context(|| format!("lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// The place of one finished thing.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Lets `make` fill a fresh folder and return the part of it to keep under `name`.
    ///
    /// The part is moved into place in one step: whatever stops a fetch, no half of it is ever
    /// taken for the whole.
    pub fn install(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        self.remove_unfinished();
        let scratch = self.path(&format!("{UNFINISHED}{}", process::id()));
        fs::create_dir(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let made = make(&scratch).and_then(|made| {
            let place = self.path(name);
            remove(&place)?;
            fs::rename(&made, &place)
                .with_context(|| format!("move {} to {}", made.display(), place.display()))?;
            Ok(place)
        });
        let removed = remove(&scratch);
        made.and_then(|place| removed.map(|()| place))
    }

    /// Replaces a file in one step. An unchanged file keeps its time, so that nothing that
    /// depends on it is built again.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let place = self.path(name);
        if fs::read_to_string(&place).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let fresh = self.path(&format!("{UNFINISHED}{name}"));
        fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
        fs::rename(&fresh, &place)
            .with_context(|| format!("move {} to {}", fresh.display(), place.display()))
    }

    /// We hold the lock, so whatever is unfinished is of a run that was stopped. What can't be
    /// removed, because a child of that run still writes there, can next time.
    fn remove_unfinished(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let _ = remove(&entry.path());
            }
        }
    }
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
