//! The programs on sockets, attached while some handover or alias needs them.

mod connect;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use aya_obj::generated::bpf_attach_type::BPF_SK_LOOKUP;

use crate::error::{Error, Result};
use crate::features::{self, Probe};
use crate::object::Steering;
use crate::pins::{self, Lock, Pins};
use crate::sys;
use crate::tables::handovers::{Handovers, Needed};

pub use connect::{attach_connect, connect_cgroup, has_connect};

/// The name of the link that attaches to the look-up of listening sockets.
const LOOKUP: &str = "sk_lookup";

/// Whether the program that chooses listening sockets is attached.
#[must_use]
pub fn has_lookup(pins: &Pins) -> bool {
    let link = sys::open_pin(&pins.steering().join(LOOKUP));
    let namespace = link.and_then(|link| sys::namespace_of(link.as_fd()));
    // A link to a namespace that is gone attaches nothing, though its number may be ours now.
    matches!(namespace, Ok(Some(_)))
}

/// Fails where the kernel has no program that chooses listening sockets.
///
/// # Errors
/// [`Error::Kernel`].
pub fn check_lookup() -> Result<()> {
    features::require_one(Probe::SkLookup)
}

/// Makes the maps where there are none, and attaches the program that chooses listening sockets to
/// the calling thread's network namespace.
///
/// # Errors
/// The kernel's.
pub fn attach_lookup(pins: &Pins, lock: &Lock) -> Result<()> {
    const NAMESPACE: &str = "/proc/thread-self/ns/net";
    if has_lookup(pins) {
        return Ok(());
    }
    check_lookup()?;
    let mut steering = Steering::load(pins, lock)?;
    let namespace = File::open(NAMESPACE).map_err(Error::call("open", NAMESPACE))?;
    let link = sys::attach_to(steering.lookup()?, namespace.as_fd(), BPF_SK_LOOKUP)
        .map_err(Error::call("attach sk_lookup to", NAMESPACE))?;
    pins::make_folder(&pins.steering())?;
    let path = pins.steering().join(LOOKUP);
    detach_one(&path)?;
    sys::pin(link.as_fd(), &path).map_err(Error::call("pin", path.display().to_string()))?;
    pins::restrict(&path)
}

/// The maps, which attaching has made.
///
/// # Errors
/// Those of the kernel.
pub(crate) fn maps(pins: &Pins) -> Result<Handovers> {
    Handovers::open(pins)?.ok_or(Error::NotUp)
}

/// Detaches what no handover and no alias needs any more.
///
/// # Errors
/// Those of the maps and of the file system.
pub fn detach_if_idle(pins: &Pins, _lock: &Lock) -> Result<()> {
    let needed = match Handovers::open(pins)? {
        Some(handovers) => handovers.needed()?,
        None => Needed::default(),
    };
    for path in pins::entries(&pins.steering()) {
        let is_lookup = path.file_name().is_some_and(|name| name == LOOKUP);
        let is_needed = match is_lookup {
            true => needed.lookup,
            false => needed.connect,
        };
        if !is_needed {
            detach_one(&path)?;
        }
    }
    Ok(())
}

/// Detaches all of them.
///
/// # Errors
/// Those of the file system.
pub fn detach(folder: &Path) -> Result<()> {
    let folder = folder.join(pins::STEERING);
    for path in pins::entries(&folder) {
        detach_one(&path)?;
    }
    pins::remove(&folder)
}

/// Detaches what a link's pin attaches, if there is one, and removes it.
fn detach_one(path: &Path) -> Result<()> {
    if let Ok(link) = sys::open_pin(path) {
        // An error means that what it was attached to is gone.
        let _gone = sys::detach_link(link.as_fd());
    }
    pins::remove(path)
}
