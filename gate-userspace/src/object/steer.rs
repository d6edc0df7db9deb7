//! The object of the programs on sockets.
//!
//! A handover takes effect once its program is attached, so that must be quick. aya's loader reads
//! and parses all types of the kernel first, 6 MB of them, before it can be told that nothing here
//! is relocated by them, and tries out a score of the kernel's features: 25 ms. So of aya only the
//! parser and the maps are used.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use aya::maps::MapData;
use aya_obj::btf::BtfFeatures;
use aya_obj::generated::bpf_attach_type::{
    BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET4_GETPEERNAME, BPF_CGROUP_INET6_CONNECT,
    BPF_CGROUP_INET6_GETPEERNAME, BPF_SK_LOOKUP,
};
use aya_obj::generated::bpf_prog_type::{BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_PROG_TYPE_SK_LOOKUP};
use aya_obj::{EbpfSectionKind, Object};

use super::refusal;
use crate::error::{Error, Result};
use crate::pins::{self, Lock, Pins};
use crate::rights;
use crate::sys;
use crate::tables::handovers::MAPS;

/// The BPF object, as build.rs compiled it.
pub static STEER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Maps that the other object made.
const SHARED: [&str; 4] = ["ENDPOINTS", "PORTS", "SHORTCUTS", "PEERS"];

/// The types that every kernel with such a program knows (Linux 5.9): functions, global ones, and
/// sections. What is newer is put into these words.
const TYPES: BtfFeatures = BtfFeatures::new(true, true, true, false, false, false, false, false);

/// Program to its type and hook.
const PROGRAMS: [(&str, (u32, u32)); 5] = [
    (
        "gate_sk_lookup",
        (BPF_PROG_TYPE_SK_LOOKUP as u32, BPF_SK_LOOKUP as u32),
    ),
    on_sockets("gate_connect4", BPF_CGROUP_INET4_CONNECT as u32),
    on_sockets("gate_connect6", BPF_CGROUP_INET6_CONNECT as u32),
    on_sockets("gate_getpeername4", BPF_CGROUP_INET4_GETPEERNAME as u32),
    on_sockets("gate_getpeername6", BPF_CGROUP_INET6_GETPEERNAME as u32),
];

const fn on_sockets(name: &'static str, hook: u32) -> (&'static str, (u32, u32)) {
    (name, (BPF_PROG_TYPE_CGROUP_SOCK_ADDR as u32, hook))
}

/// The programs, loaded as they are needed.
pub(crate) struct Steering {
    object: Object,
    /// The programs know them by their descriptors.
    _maps: HashMap<String, MapData>,
    loaded: HashMap<&'static str, OwnedFd>,
}

impl Steering {
    /// Makes and pins those of the object's maps that are not there. The other object's must be.
    pub(crate) fn load(pins: &Pins, _lock: &Lock) -> Result<Self> {
        const WHAT: &str = "the programs on sockets";
        let read = || format!("read {WHAT}");
        // No socket is of namespace 0.
        let cookie = sys::namespace_cookie()
            .map_err(Error::call("getsockopt", "SO_NETNS_COOKIE"))?
            .unwrap_or_default();
        let mut object = Object::parse(STEER).map_err(Error::aya(read()))?;
        let cookie = cookie.to_ne_bytes();
        object
            .patch_map_data([("NETNS", (&cookie[..], true))].into())
            .map_err(Error::aya(read()))?;
        let types = object
            .fixup_and_sanitize_btf(&TYPES)
            .map_err(Error::aya(read()))?
            .map(|types| sys::load::load_btf(&types.to_bytes()))
            .transpose()
            .map_err(|error| Error::call("bpf load the types of", WHAT)(error))?;
        let mut maps = HashMap::new();
        let parsed: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        for (name, map) in &parsed {
            let made = make(pins, name, map, types.as_ref().map(AsFd::as_fd))?;
            maps.insert(name.clone(), made);
        }
        let code: HashSet<usize> = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let known = parsed
            .iter()
            .map(|(name, map)| (name.as_str(), maps[name].fd().as_fd().as_raw_fd(), map));
        object
            .relocate_maps(known, &code)
            .map_err(Error::aya(read()))?;
        object.relocate_calls(&code).map_err(Error::aya(read()))?;
        Ok(Self {
            object,
            _maps: maps,
            loaded: HashMap::new(),
        })
    }

    /// The program that chooses listening sockets.
    pub(crate) fn lookup(&mut self) -> Result<BorrowedFd<'_>> {
        self.get("gate_sk_lookup")
    }

    /// One of the programs on a cgroup's sockets.
    pub(crate) fn of_cgroup(&mut self, name: &'static str) -> Result<BorrowedFd<'_>> {
        self.get(name)
    }

    fn get(&mut self, name: &'static str) -> Result<BorrowedFd<'_>> {
        if !self.loaded.contains_key(name) {
            let program = self.load_program(name)?;
            self.loaded.insert(name, program);
        }
        Ok(self.loaded[name].as_fd())
    }

    fn load_program(&self, name: &'static str) -> Result<OwnedFd> {
        let failed = |text: String| Error::Aya {
            what: format!("load program {name}"),
            text,
        };
        let found = self.object.programs.get(name);
        let code = found.and_then(|it| self.object.functions.get(&it.function_key()));
        let kind = PROGRAMS.iter().find(|(other, _)| *other == name);
        let (Some(program), Some(code), Some((_, kind))) = (found, code, kind) else {
            return Err(failed("it is not in the object".to_owned()));
        };
        let loaded =
            sys::load::load_program(*kind, name, &code.instructions, program.license.as_c_str());
        loaded.map_err(|(error, log)| match error.raw_os_error() {
            Some(libc::EPERM) => rights::refused(),
            _ => failed(refusal(&error, &log)),
        })
    }
}

/// Opens a map's pin, or makes the map, and pins it where it is to be.
fn make(
    pins: &Pins,
    name: &str,
    map: &aya_obj::Map,
    types: Option<BorrowedFd<'_>>,
) -> Result<MapData> {
    let is_own = MAPS.contains(&name);
    let is_pinned = is_own || SHARED.contains(&name);
    let path: Option<PathBuf> = is_pinned.then(|| pins.map(name));
    if let Some(path) = path.as_deref().filter(|path| path.exists()) {
        return MapData::from_pin(path).map_err(Error::aya(format!("open pin {}", path.display())));
    }
    let made =
        MapData::create(map.clone(), name, types).map_err(Error::aya(format!("map {name}")))?;
    if map.section_kind() == EbpfSectionKind::Rodata {
        sys::load::settle_constants(made.fd().as_fd(), map.data())
            .map_err(Error::call("bpf write", name.to_owned()))?;
    }
    if let Some(path) = path {
        made.pin(&path)
            .map_err(Error::aya(format!("pin {}", path.display())))?;
        pins::restrict(&path)?;
    }
    Ok(made)
}
