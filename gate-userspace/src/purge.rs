//! Removes every trace of gate from this host: those of all network namespaces whose pins are in
//! this bpffs, and of all versions. The configuration stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::attach;
use crate::datapath::{self, Downed};
use crate::error::{Error, Result};
use crate::pins::{self, Pins};
use crate::steering;

/// The folder of what the daemon makes while it runs.
pub const RUNTIME: &str = "/run/gate";

/// Where `ip netns` mounts the namespaces that it names.
const NAMED: &str = "/run/netns";

/// What [`purge`] removed.
#[derive(Debug, Default)]
pub struct Purged {
    /// Of the calling thread's network namespace, if anything was there.
    pub here: Option<Downed>,
    /// Of other network namespaces, by inode.
    pub elsewhere: BTreeMap<u64, Elsewhere>,
    /// What there was besides: folders that were half built, what gate did not make, the daemon's socket
    /// in another place.
    pub rest: Vec<PathBuf>,
    /// Whether [`RUNTIME`] was there.
    pub runtime: bool,
}

impl Purged {
    /// Whether there was nothing to remove.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.here.is_none() && self.elsewhere.is_empty() && self.rest.is_empty() && !self.runtime
    }
}

/// What became of another network namespace's gates.
#[derive(Debug)]
pub enum Elsewhere {
    /// Opened and detached in there, as by `gate down`.
    Downed(Downed),
    /// No process and no mount has it any more: its links and pins are removed.
    Gone,
    /// It could not be entered: its links and pins are removed, so its gates are open, but what it held
    /// is left to its clients, and filters of kernels before Linux 6.6 stay until it ends.
    Unreached {
        /// Why.
        why: String,
    },
}

/// Removes every trace, after it has opened and released what is held. `sockets` are those at which
/// the daemon may answer.
///
/// # Errors
/// [`Error::DaemonRuns`] where one of them answers, as the daemon would attach anew; not with `force`.
/// Else those of the kernel and the file system.
pub fn purge(pins: &Pins, sockets: &BTreeSet<PathBuf>, force: bool) -> Result<Purged> {
    if !force {
        sockets.iter().try_for_each(|socket| check_daemon(socket))?;
    }
    let mut purged = Purged::default();
    let here = namespace_of(Path::new("/proc/thread-self/ns/net"));
    let mut known = namespaces();
    known.retain(|inode| Some(*inode) != here);
    for (inode, place) in places(&known) {
        let left = match place {
            None => Elsewhere::Gone,
            Some(place) => match down_in(&place) {
                Ok(downed) => Elsewhere::Downed(downed.unwrap_or_default()),
                Err(error) => Elsewhere::Unreached {
                    why: error.to_string(),
                },
            },
        };
        purged.elsewhere.insert(inode, left);
    }
    purged.here = datapath::down(pins)?;
    purged.rest = remove_rest(pins, &known)?;
    for socket in sockets.iter().filter(|path| !path.starts_with(RUNTIME)) {
        if is_socket(socket) {
            pins::remove(socket)?;
            purged.rest.push(socket.clone());
        }
    }
    let runtime = Path::new(RUNTIME);
    purged.runtime = runtime.exists();
    pins::remove(runtime)?;
    Ok(purged)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Fails where somebody answers at the daemon's socket.
fn check_daemon(socket: &Path) -> Result<()> {
    match UnixStream::connect(socket) {
        Ok(_) => Err(Error::DaemonRuns {
            socket: socket.to_owned(),
        }),
        // A socket that a killed daemon left refuses; where there is none, there is no daemon.
        Err(_) => Ok(()),
    }
}

/// The network namespaces that have pins of any version.
fn namespaces() -> BTreeSet<u64> {
    let versions = pins::entries(Path::new(pins::GATE));
    let folders = versions.iter().flat_map(|version| pins::entries(version));
    folders.filter_map(|folder| inode(&folder)).collect()
}

fn inode(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.parse().ok()
}

fn namespace_of(path: &Path) -> Option<u64> {
    Some(fs::metadata(path).ok()?.ino())
}

/// A path to each of these namespaces, where a process is in it or `ip netns` names it.
fn places(wanted: &BTreeSet<u64>) -> BTreeMap<u64, Option<PathBuf>> {
    let mut found: BTreeMap<u64, Option<PathBuf>> =
        wanted.iter().map(|inode| (*inode, None)).collect();
    if wanted.is_empty() {
        return found;
    }
    let processes = pins::entries(Path::new("/proc"));
    let of_processes = processes
        .into_iter()
        .filter(|path| inode(path).is_some())
        .map(|path| path.join("ns/net"));
    for path in pins::entries(Path::new(NAMED))
        .into_iter()
        .chain(of_processes)
    {
        if let Some(place) = namespace_of(&path).and_then(|inode| found.get_mut(&inode)) {
            place.get_or_insert(path);
        }
    }
    found
}

/// As `gate down`, in another network namespace, by a thread of its own.
fn down_in(place: &Path) -> Result<Option<Downed>> {
    let shown = || place.display().to_string();
    let namespace = File::open(place).map_err(Error::call("open", shown()))?;
    let work = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::call("setns", shown())(errno.into()))?;
        datapath::down(&Pins::here()?)
    };
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(downed) => downed,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Removes what is below the root folder still; returns what of it was not a namespace's in `known`.
fn remove_rest(pins: &Pins, known: &BTreeSet<u64>) -> Result<Vec<PathBuf>> {
    let root = Path::new(pins::GATE);
    if !root.exists() {
        return Ok(Vec::new());
    }
    let lock = pins.lock_or_create()?;
    let mut rest = Vec::new();
    for version in pins::entries(root) {
        for folder in pins::entries(&version) {
            // First, so that no program is attached whose maps nobody can reach.
            steering::detach(&folder)?;
            attach::detach_links(&folder)?;
            if inode(&folder).is_none_or(|inode| !known.contains(&inode)) {
                rest.push(folder);
            }
        }
        if version.is_file() {
            rest.push(version.clone());
        }
        pins::remove(&version)?;
    }
    pins.remove_empty(lock);
    Ok(rest)
}
