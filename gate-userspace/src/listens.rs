//! The kernel's word that a socket begins to listen: a program on all sockets of this host writes the
//! port into a ring buffer. It goes with the process, because nothing of it is pinned.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, RingBuf};
use aya::programs::SockOps;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_attach_type::BPF_CGROUP_SOCK_OPS;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroups::Cgroup;
use crate::error::{Error, Result};
use crate::object::{load_error, loaded};
use crate::sys;

/// The BPF object, as build.rs compiled it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/listen.bpf.o"));

const PROGRAM: &str = "gate_listen";

/// Ports at which sockets begin to listen, of all network namespaces.
pub struct Listens {
    ring: AsyncFd<RingBuf<MapData>>,
    _link: OwnedFd,
    _ebpf: Ebpf,
}

impl Listens {
    /// Begins to listen for listeners. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::NoCgroups`], and those of loading and attaching.
    pub fn open() -> Result<Self> {
        let cgroup = Cgroup::at(None)?;
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(load_error)?;
        let missing = || Error::Aya {
            what: format!("program {PROGRAM}"),
            text: "it is not in the object".to_owned(),
        };
        let program: &mut SockOps = ebpf
            .program_mut(PROGRAM)
            .ok_or_else(missing)?
            .try_into()
            .map_err(Error::aya(PROGRAM))?;
        loaded(PROGRAM, program.load())?;
        let program = program.fd().map_err(Error::aya(PROGRAM))?;
        let link =
            sys::attach_to(program.as_fd(), cgroup.folder.as_fd(), BPF_CGROUP_SOCK_OPS).map_err(
                Error::call("attach to cgroup", cgroup.path.display().to_string()),
            )?;
        let ring = ebpf.take_map("LISTENS").ok_or_else(missing)?;
        let ring = RingBuf::try_from(ring).map_err(Error::aya("map LISTENS"))?;
        // SAFETY: the ring buffer owns its map's descriptor, which stays open and the same until the
        // ring buffer is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = registered
            .map_err(|error| error.into_parts().1)
            .map_err(Error::call("epoll_ctl", "map LISTENS"))?;
        Ok(Self {
            ring,
            _link: link,
            _ebpf: ebpf,
        })
    }

    /// Waits until sockets have begun to listen, and returns their ports. Nothing is lost where this is
    /// given up on the way.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn next(&mut self) -> Result<BTreeSet<u16>> {
        loop {
            let mut ready = self
                .ring
                .readable_mut()
                .await
                .map_err(Error::call("epoll_wait", "map LISTENS"))?;
            let ring = ready.get_inner_mut();
            let mut ports = BTreeSet::new();
            while let Some(record) = ring.next() {
                let port = record.first_chunk().copied().map(u32::from_ne_bytes);
                ports.extend(port.and_then(|port| u16::try_from(port).ok()));
            }
            ready.clear_ready();
            if !ports.is_empty() {
                return Ok(ports);
            }
        }
    }
}

/// The ports that the kernel tells of; waits for ever where it doesn't.
///
/// # Errors
/// The kernel's.
pub async fn next(listens: &mut Option<Listens>) -> Result<BTreeSet<u16>> {
    match listens {
        Some(listens) => listens.next().await,
        None => std::future::pending().await,
    }
}
