//! Where the kernel's objects are pinned, who may touch them, and the lock.
//!
//! ```text
//! /sys/fs/bpf/gate/            0700, root's; flock on it is the lock
//!   v8/                        the ABI version
//!     4026531840/              the network namespace, by inode
//!       GATES, HELD, …         the maps
//!       links/2-xdp            the link that attaches to interface 2
//!       filters/3-tc-ingress   the program of a filter on interface 3
//!       qdiscs/3               its clsact qdisc is gate's own
//!       names/3-web            gate 3 is called web
//!       managed/gates/3-web    the configuration made it; in it: guard, handover, if it made those
//!       managed/interfaces/2   the configuration attached to interface 2
//!       steering/sk_lookup     the link that attaches to the look-up of listeners
//!       steering/connect4      a link that attaches to the connections of a cgroup's processes
//!       temporary              attached by a restart, which will detach
//!       restarts/1             flock on it: gate 1 is being restarted
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gate_common::abi::ABI_VERSION;
use gate_common::flow::GateId;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::attach;
use crate::error::{Error, Result};
use crate::gates::GateName;
use crate::hooks::Slot;
use crate::steering;

mod anchor;
mod lock;
mod managed;

pub use anchor::Anchor;
pub(crate) use lock::locked;
pub use lock::{Lock, RestartLock};
pub use managed::{Made, Managed};

/// The mount point of bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The folder of all that gate pins.
pub const GATE: &str = "/sys/fs/bpf/gate";

/// The folder of the pinned links.
pub const LINKS: &str = "links";
/// The folder of the filters' programs.
pub const FILTERS: &str = "filters";
/// The folder of the records of qdiscs.
pub const QDISCS: &str = "qdiscs";

/// The folder of the links of programs on sockets.
pub const STEERING: &str = "steering";

/// The folder of the gates' names.
const NAMES: &str = "names";

/// The mark of attachments that a restart made and will detach.
const TEMPORARY: &str = "temporary";

/// The pin folder of the current network namespace.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    namespace: String,
}

impl Pins {
    /// The pins of the calling thread's network namespace; they need not exist.
    ///
    /// # Errors
    /// [`Error::NoBpffs`] where bpffs isn't mounted.
    pub fn here() -> Result<Self> {
        let path = Path::new(BPFFS);
        let is_bpffs = statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
        if !is_bpffs {
            return Err(Error::NoBpffs { path: path.into() });
        }
        let namespace = "/proc/thread-self/ns/net";
        let inode = fs::metadata(namespace)
            .map_err(Error::call("stat", namespace))?
            .ino();
        Ok(Self {
            root: GATE.into(),
            namespace: inode.to_string(),
        })
    }

    /// The folder of this ABI version and namespace.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.version_folder(ABI_VERSION).join(&self.namespace)
    }

    fn version_folder(&self, version: u32) -> PathBuf {
        self.root.join(format!("v{version}"))
    }

    /// Where a folder is built, by one process at a time, for whatever namespace; one that is
    /// found there was left by a process that died. (bpffs takes no dots in names.)
    fn building(&self) -> PathBuf {
        self.version_folder(ABI_VERSION).join("building")
    }

    /// Whether anything is pinned for this namespace, or half built.
    #[must_use]
    pub fn leave_traces(&self) -> bool {
        self.exist() || self.building().exists() || !self.of_other_versions().is_empty()
    }

    /// The pin of one map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// The folder of the pinned links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.folder().join(LINKS)
    }

    /// The pin of one attachment's link.
    #[must_use]
    pub fn link(&self, ifindex: u32, slot: Slot) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", slot.name()))
    }

    /// The folder of the filters' programs.
    #[must_use]
    pub fn filters(&self) -> PathBuf {
        self.folder().join(FILTERS)
    }

    /// The pin of one filter's program.
    #[must_use]
    pub fn filter(&self, ifindex: u32, slot: Slot) -> PathBuf {
        self.filters().join(format!("{ifindex}-{}", slot.name()))
    }

    /// The folder of the records of qdiscs.
    #[must_use]
    pub fn qdiscs(&self) -> PathBuf {
        self.folder().join(QDISCS)
    }

    /// The record that an interface's qdisc is gate's own: a folder, because bpffs has no plain
    /// files.
    #[must_use]
    pub fn qdisc(&self, ifindex: u32) -> PathBuf {
        self.qdiscs().join(ifindex.to_string())
    }

    /// The folder of the links of programs on sockets.
    #[must_use]
    pub fn steering(&self) -> PathBuf {
        self.folder().join(STEERING)
    }

    /// The folder of the gates' names.
    #[must_use]
    pub fn names_folder(&self) -> PathBuf {
        self.folder().join(NAMES)
    }

    /// The record that a gate has a name.
    #[must_use]
    pub fn name(&self, gate: GateId, name: &GateName) -> PathBuf {
        self.names_folder().join(format!("{}-{name}", gate.0))
    }

    /// Records that a gate has a name.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn make_name(&self, _lock: &Lock, gate: GateId, name: &GateName) -> Result<()> {
        make_folder(&self.names_folder())?;
        make_folder(&self.name(gate, name))
    }

    /// The named gates.
    #[must_use]
    pub fn names(&self) -> BTreeMap<GateName, GateId> {
        let parse = |path: PathBuf| {
            let (gate, name) = path.file_name()?.to_str()?.split_once('-')?;
            Some((name.parse().ok()?, GateId(gate.parse().ok()?)))
        };
        entries(&self.names_folder())
            .into_iter()
            .filter_map(parse)
            .collect()
    }

    /// The mark of attachments that a restart made and will detach.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.folder().join(TEMPORARY)
    }

    /// Whether anything is pinned here.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.folder().is_dir()
    }

    /// This namespace's folders that other versions of gate made.
    #[must_use]
    pub fn of_other_versions(&self) -> Vec<PathBuf> {
        let own = self.folder();
        entries(&self.root)
            .into_iter()
            .map(|version| version.join(&self.namespace))
            .filter(|folder| *folder != own && folder.is_dir())
            .collect()
    }

    /// Fails where another version's pins are in the way.
    ///
    /// # Errors
    /// [`Error::OtherAbi`].
    pub fn check_version(&self) -> Result<()> {
        let Some(path) = self.of_other_versions().into_iter().next() else {
            return Ok(());
        };
        let found = path
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Err(Error::OtherAbi {
            path,
            found,
            expected: format!("v{ABI_VERSION}"),
        })
    }

    /// Fails where the root folder is not root's alone, or not there.
    ///
    /// # Errors
    /// [`Error::ForeignFolder`], [`Error::NotUp`].
    pub(crate) fn check_owner(&self) -> Result<()> {
        let folder = match fs::symlink_metadata(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotUp),
            folder => folder.map_err(Error::call("stat", self.root.display().to_string()))?,
        };
        // Anyone may make files in bpffs (it has mode 1777), so look who made this one.
        if folder.is_dir() && folder.uid() == 0 && folder.mode() & 0o077 == 0 {
            return Ok(());
        }
        Err(Error::ForeignFolder {
            path: self.root.clone(),
        })
    }

    fn restarts(&self) -> PathBuf {
        self.folder().join("restarts")
    }

    /// Detaches all that is attached, and keeps the maps and the names.
    ///
    /// # Errors
    /// Those of the kernel and the file system.
    pub fn keep_definitions(&self, _lock: &Lock) -> Result<()> {
        attach::detach_all(&self.folder())?;
        make_folder(&self.links())?;
        remove(&self.restarts())?;
        remove(&self.temporary())
    }

    /// Makes the folder with what `fill` pins into it, and with the mark of what restarts attach where
    /// it is `temporary`: whole, or not at all.
    ///
    /// # Errors
    /// Those of `fill` and of the file system; nothing is left then.
    pub fn create<T>(
        &self,
        _lock: &Lock,
        temporary: bool,
        fill: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        make_folder(&self.version_folder(ABI_VERSION))?;
        let building = self.building();
        remove(&building)?;
        make_folder(&building)?;
        make_folder(&building.join(LINKS))?;
        make_folder(&building.join(NAMES))?;
        if temporary {
            make_folder(&building.join(TEMPORARY))?;
        }
        let built = fill(&building).and_then(|filled| {
            fs::rename(&building, self.folder())
                .map_err(Error::call("rename", building.display().to_string()))?;
            Ok(filled)
        });
        if built.is_err() {
            remove(&building)?;
        }
        built
    }

    /// Removes this namespace's pins and what was half built.
    ///
    /// # Errors
    /// Those of the kernel and the file system.
    pub fn clear(&self, _lock: &Lock) -> Result<()> {
        // First, so that no program is attached whose maps nobody can reach.
        steering::detach(&self.folder())?;
        attach::detach_all(&self.folder())?;
        // Whoever dies while the maps go, one by one, must not leave some of them to the next command.
        remove(&self.building())?;
        match fs::rename(self.folder(), self.building()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.map_err(Error::call("rename", self.folder().display().to_string())),
        }?;
        remove(&self.building())
    }

    /// Removes this namespace's pins of other versions, which detaches what they attach.
    ///
    /// # Errors
    /// Those of the kernel and the file system.
    pub fn remove_other_versions(&self, _lock: &Lock) -> Result<()> {
        self.of_other_versions().iter().try_for_each(|folder| {
            steering::detach(folder)?;
            attach::detach_all(folder)?;
            remove(folder)
        })
    }

    /// Removes this namespace's pins, which detaches what they attach, and the folders
    /// above as far as they are empty then.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, lock: Lock) -> Result<()> {
        self.clear(&lock)?;
        self.remove_empty(lock);
        Ok(())
    }

    /// Removes the folders above the namespace's as far as they are empty.
    pub fn remove_empty(&self, lock: Lock) {
        for folder in entries(&self.root).iter().chain([&self.root]) {
            // Fails while another namespace has pins there, which is as it should be.
            let _kept = fs::remove_dir(folder);
        }
        // Only now: until here nobody else may build in these folders.
        drop(lock);
    }
}

/// The paths in a folder; none where it can't be read.
#[must_use]
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect()
}

/// Makes a folder that only root can enter, or finds it there.
///
/// # Errors
/// Those of the file system.
pub fn make_folder(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(Error::call("mkdir", path.display().to_string())),
    }
}

/// Removes a file or a folder with all that is in it, or finds it gone.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::call("remove", path.display().to_string())),
    }
}

/// A pin that others can open lets them write the map, or run the program.
///
/// # Errors
/// Those of the file system.
pub fn restrict(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(Error::call("chmod", path.display().to_string()))
}

/// The interface and the place that the name of an attachment's pin tells.
#[must_use]
pub fn parse_link(path: &Path) -> Option<(u32, Slot)> {
    let (ifindex, slot) = path.file_name()?.to_str()?.split_once('-')?;
    let slot = Slot::ALL.into_iter().find(|known| known.name() == slot)?;
    Some((ifindex.parse().ok()?, slot))
}
