//! The programs on the connections that processes of this host make.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::generated::bpf_attach_type::{
    self, BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET4_GETPEERNAME, BPF_CGROUP_INET6_CONNECT,
    BPF_CGROUP_INET6_GETPEERNAME,
};

use super::detach_one;
use crate::cgroups::Cgroup;
use crate::error::{Error, Result};
use crate::features;
use crate::object::Steering;
use crate::pins::{self, Lock, Pins};
use crate::sys;

/// The links, each with its program. Those that tell what was asked for come first: no connection is
/// sent anywhere before its process can be told.
const LINKS: [(&str, &str, bpf_attach_type); 4] = [
    (
        "getpeername4",
        "gate_getpeername4",
        BPF_CGROUP_INET4_GETPEERNAME,
    ),
    (
        "getpeername6",
        "gate_getpeername6",
        BPF_CGROUP_INET6_GETPEERNAME,
    ),
    ("connect4", "gate_connect4", BPF_CGROUP_INET4_CONNECT),
    ("connect6", "gate_connect6", BPF_CGROUP_INET6_CONNECT),
];

fn pin(pins: &Pins, name: &str) -> PathBuf {
    pins.steering().join(name)
}

/// The cgroup that a link is attached to; none where it is not there, or its cgroup is not.
fn attached(pins: &Pins, name: &str) -> Option<u64> {
    let link = sys::open_pin(&pin(pins, name)).ok()?;
    sys::cgroup_of(link.as_fd()).ok()?
}

/// The cgroup, by its id, whose processes' connections are sent to backends; none where that is not
/// all in place.
#[must_use]
pub fn connect_cgroup(pins: &Pins) -> Option<u64> {
    let mut ids = LINKS.iter().map(|(name, _, _)| attached(pins, name));
    let first = ids.next()??;
    ids.all(|id| id == Some(first)).then_some(first)
}

/// Whether the programs that send connections to backends are attached.
#[must_use]
pub fn has_connect(pins: &Pins) -> bool {
    connect_cgroup(pins).is_some()
}

/// Makes the maps where there are none, and attaches the programs that send connections to backends:
/// for the processes of this cgroup, or for all of them, as far as their sockets are of the calling
/// thread's network namespace.
///
/// # Errors
/// [`Error::NoCgroups`], [`Error::NotCgroup`], [`Error::OtherCgroup`], [`Error::Kernel`], and the
/// kernel's own; nothing is attached then that was not before.
pub fn attach_connect(pins: &Pins, lock: &Lock, cgroup: Option<&Path>) -> Result<()> {
    let cgroup = Cgroup::at(cgroup)?;
    match connect_cgroup(pins) {
        Some(id) if id == cgroup.id => return Ok(()),
        Some(_) => return Err(Error::OtherCgroup { path: cgroup.path }),
        None => {}
    }
    require()?;
    let mut steering = Steering::load(pins, lock)?;
    let mut links = Vec::new();
    for (name, program, kind) in LINKS {
        // Of a process that died on the way, or of a cgroup that is gone.
        detach_one(&pin(pins, name))?;
        links.push((name, attach(&mut steering, program, &cgroup, kind)?));
    }
    pins::make_folder(&pins.steering())?;
    let pinned = links.iter().try_for_each(|(name, link)| {
        let path = pin(pins, name);
        sys::pin(link.as_fd(), &path).map_err(Error::call("pin", path.display().to_string()))?;
        pins::restrict(&path)
    });
    if pinned.is_err() {
        for (name, _) in links {
            // The first failure counts.
            let _second = detach_one(&pin(pins, name));
        }
    }
    pinned
}

fn attach(
    steering: &mut Steering,
    program: &'static str,
    cgroup: &Cgroup,
    kind: bpf_attach_type,
) -> Result<OwnedFd> {
    let shown = cgroup.path.display().to_string();
    sys::attach_to(steering.of_cgroup(program)?, cgroup.folder.as_fd(), kind)
        .map_err(Error::call("attach to cgroup", shown))
}

/// Fails where the programs could not tell this network namespace from others.
fn require() -> Result<()> {
    let cookie = sys::namespace_cookie().map_err(Error::call("getsockopt", "SO_NETNS_COOKIE"))?;
    match cookie {
        Some(_) => Ok(()),
        None => Err(Error::Kernel {
            release: features::release(),
            feature: "cookies of network namespaces",
            since: "5.14",
        }),
    }
}
