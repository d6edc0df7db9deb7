//! The object of the programs on sockets.

use std::os::fd::{AsFd, BorrowedFd};

use aya::programs::{CgroupSockAddr, SkLookup};
use aya::{Ebpf, EbpfLoader};

use super::{load_error, loaded, program};
use crate::error::{Error, Result};
use crate::pins::{self, Lock, Pins};
use crate::sys;
use crate::tables::handovers::MAPS;

/// The BPF object, as build.rs compiled it.
pub static STEER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Maps that the other object made.
const SHARED: [&str; 3] = ["ENDPOINTS", "PORTS", "PEERS"];

/// The programs, loaded as they are needed.
pub(crate) struct Steering(Ebpf);

impl Steering {
    /// Loads the object, and pins those of its maps that are not there. The other object's must be.
    pub(crate) fn load(pins: &Pins, _lock: &Lock) -> Result<Self> {
        let own = MAPS.iter().map(|(name, _, _)| *name);
        let paths: Vec<_> = own
            .chain(SHARED)
            .map(|name| (name, pins.map(name)))
            .collect();
        // No socket is of namespace 0.
        let cookie = sys::namespace_cookie()
            .map_err(Error::call("getsockopt", "SO_NETNS_COOKIE"))?
            .unwrap_or_default();
        let mut loader = EbpfLoader::new();
        loader.override_global("NETNS", &cookie, true);
        for (name, path) in &paths {
            loader.map_pin_path(name, path.as_path());
        }
        let ebpf = loader.load(STEER).map_err(load_error)?;
        for (_, path) in &paths {
            pins::restrict(path)?;
        }
        Ok(Self(ebpf))
    }

    /// The program that chooses listening sockets.
    pub(crate) fn lookup(&mut self) -> Result<BorrowedFd<'_>> {
        const NAME: &str = "gate_sk_lookup";
        let program: &mut SkLookup = program(&mut self.0, NAME)?;
        if program.fd().is_err() {
            loaded(NAME, program.load())?;
        }
        let fd = program
            .fd()
            .map_err(Error::aya(format!("program {NAME}")))?;
        Ok(fd.as_fd())
    }

    /// One of the programs on a cgroup's sockets.
    pub(crate) fn of_cgroup(&mut self, name: &'static str) -> Result<BorrowedFd<'_>> {
        let program: &mut CgroupSockAddr = program(&mut self.0, name)?;
        if program.fd().is_err() {
            loaded(name, program.load())?;
        }
        let fd = program
            .fd()
            .map_err(Error::aya(format!("program {name}")))?;
        Ok(fd.as_fd())
    }
}
