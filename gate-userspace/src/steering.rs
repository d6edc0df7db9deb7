//! The programs on sockets, attached while some handover or alias needs them.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use aya_obj::generated::bpf_attach_type::BPF_SK_LOOKUP;

use crate::error::{Error, Result};
use crate::object::Steering;
use crate::pins::{self, Lock, Pins};
use crate::sys;

/// The name of the link that attaches to the look-up of listening sockets.
const LOOKUP: &str = "sk_lookup";

/// Whether the program that chooses listening sockets is attached.
#[must_use]
pub fn has_lookup(pins: &Pins) -> bool {
    pins.steering().join(LOOKUP).exists()
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
    let mut steering = Steering::load(pins, lock)?;
    let namespace = File::open(NAMESPACE).map_err(Error::call("open", NAMESPACE))?;
    let link = sys::attach_to(steering.lookup()?, namespace.as_fd(), BPF_SK_LOOKUP)
        .map_err(Error::call("attach sk_lookup to", NAMESPACE))?;
    pins::make_folder(&pins.steering())?;
    let path = pins.steering().join(LOOKUP);
    sys::pin(link.as_fd(), &path).map_err(Error::call("pin", path.display().to_string()))?;
    pins::restrict(&path)
}

/// Detaches all of them.
///
/// # Errors
/// Those of the file system.
pub fn detach(folder: &Path) -> Result<()> {
    let folder = folder.join(pins::STEERING);
    for path in pins::entries(&folder) {
        if let Ok(link) = sys::open_pin(&path) {
            // An error means that what it was attached to is gone.
            let _gone = sys::detach_link(link.as_fd());
        }
        pins::remove(&path)?;
    }
    pins::remove(&folder)
}
