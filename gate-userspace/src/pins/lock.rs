//! The lock of the pins, and the claims of restarts.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use gate_common::flow::GateId;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{GATE, Pins, entries, make_folder};
use crate::error::{Error, Result};

/// How long a command that has changed nothing yet waits for another's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries.
const LOCK_POLL: Duration = Duration::from_millis(2);

/// The right to change anything. Released on drop, or when the process dies.
#[derive(Debug)]
pub struct Lock {
    pub(super) file: Flock<File>,
}

/// The right to restart one gate. Released on drop, or when the process dies.
#[derive(Debug)]
pub struct RestartLock {
    _file: Flock<File>,
}

impl Pins {
    /// Takes the lock of a namespace that is up.
    ///
    /// # Errors
    /// [`Error::NotUp`], [`Error::OtherAbi`], [`Error::ForeignFolder`], [`Error::Locked`].
    pub fn lock(&self) -> Result<Lock> {
        patiently(|| self.try_lock())
    }

    /// As [`lock`](Self::lock), but none where another command has it now.
    ///
    /// # Errors
    /// [`Error::NotUp`], [`Error::OtherAbi`], [`Error::ForeignFolder`].
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        self.check_owner()?;
        self.check_version()?;
        let lock = match try_flock(&self.root)? {
            Flocked::Taken(file) if is_at(&file, &self.root) => Lock { file },
            Flocked::Busy => return Ok(None),
            // Removed by a `gate down` that we waited for.
            Flocked::Taken(_) | Flocked::Gone => return Err(Error::NotUp),
        };
        if !self.exist() {
            return Err(Error::NotUp);
        }
        Ok(Some(lock))
    }

    /// Takes the lock, making its folder where there is none.
    ///
    /// # Errors
    /// [`Error::ForeignFolder`], [`Error::Locked`].
    pub fn lock_or_create(&self) -> Result<Lock> {
        let start = Instant::now();
        loop {
            make_folder(&self.root)?;
            match self.check_owner() {
                // Removed again, by another that found it empty.
                Err(Error::NotUp) => continue,
                checked => checked?,
            }
            match try_flock(&self.root)? {
                Flocked::Taken(file) if is_at(&file, &self.root) => {
                    return Ok(Lock { file });
                }
                // Removed by a `gate down` that we waited for: make it anew.
                Flocked::Taken(_) | Flocked::Gone => {}
                Flocked::Busy if start.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_POLL),
                Flocked::Busy => return Err(locked()),
            }
        }
    }

    /// Claims a gate for one restart; none where another restart has it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn claim_restart(&self, _lock: &Lock, gate: GateId) -> Result<Option<RestartLock>> {
        let folder = self.restarts();
        make_folder(&folder)?;
        let folder = folder.join(gate.0.to_string());
        make_folder(&folder)?;
        Ok(match try_flock(&folder)? {
            Flocked::Taken(file) => Some(RestartLock { _file: file }),
            Flocked::Busy | Flocked::Gone => None,
        })
    }

    /// Whether some restart is under way.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn has_restarts(&self, _lock: &Lock) -> Result<bool> {
        for folder in entries(&self.restarts()) {
            if matches!(try_flock(&folder)?, Flocked::Busy) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Why the lock was not to be had, by the path that people know.
pub(crate) fn locked() -> Error {
    Error::Locked { path: GATE.into() }
}

/// Tries for the lock for as long as a command waits that has changed nothing yet.
pub(super) fn patiently(attempt: impl Fn() -> Result<Option<Lock>>) -> Result<Lock> {
    let start = Instant::now();
    loop {
        match attempt()? {
            Some(lock) => return Ok(lock),
            None if start.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_POLL),
            None => return Err(locked()),
        }
    }
}

pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(file), Ok(path)) => (file.dev(), file.ino()) == (path.dev(), path.ino()),
        _ => false,
    }
}

/// What came of [`try_flock`].
pub(super) enum Flocked {
    Taken(Flock<File>),
    Busy,
    Gone,
}

pub(super) fn try_flock(folder: &Path) -> Result<Flocked> {
    let file = match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Flocked::Gone),
        file => file.map_err(Error::call("open", folder.display().to_string()))?,
    };
    flock(file, &folder.display().to_string())
}

pub(super) fn flock(file: File, name: &str) -> Result<Flocked> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Flocked::Taken(file)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(Flocked::Busy),
        Err((_, errno)) => Err(Error::call("flock", name)(errno.into())),
    }
}
