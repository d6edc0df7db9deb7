//! Attaching programs to interfaces, pinned, and finding out what became of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;
use gate_common::abi::Direction;

use crate::error::{Error, Result};
use crate::filters;
use crate::hooks::{Hook, Slot};
use crate::interfaces::{self, Interface, XdpMode};
use crate::pins::{self, Pins};
use crate::sys;

/// Set to attach by `clsact` filters also where the kernel has TCX, as kernels before 6.6 do.
pub const NO_TCX: &str = "GATE_NO_TCX";

/// How an attachment is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// An XDP link.
    Xdp,
    /// A TCX link.
    Tcx,
    /// A filter in a `clsact` qdisc.
    Clsact,
}

impl By {
    /// The word that people use for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// An attachment, as it really is.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The interface's index.
    pub ifindex: u32,
    /// Its place.
    pub slot: Slot,
    /// How it was made.
    pub by: By,
    /// Its program.
    pub program: u32,
    /// The interface's name; none once that is gone or in another network namespace.
    pub interface: Option<String>,
    /// The hook; none where the program is not attached there any more.
    pub hook: Option<Hook>,
    pin: PathBuf,
}

impl Attachment {
    /// Its pin.
    #[must_use]
    pub fn pin(&self) -> &Path {
        &self.pin
    }

    /// Whether it still sees packets of this network namespace.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.hook.is_some()
    }
}

/// The pinned attachments of this namespace.
///
/// # Errors
/// Those of the kernel.
pub fn attachments(pins: &Pins) -> Result<Vec<Attachment>> {
    let interfaces = interfaces::list()?;
    let mut attachments = Vec::new();
    for path in pins::entries(&pins.links()) {
        attachments.extend(attachment(&interfaces, path, false)?);
    }
    for path in pins::entries(&pins.filters()) {
        attachments.extend(attachment(&interfaces, path, true)?);
    }
    attachments.sort_by_key(|attachment| (attachment.ifindex, attachment.slot));
    Ok(attachments)
}

/// The attachment behind one pin; none for a name that gate never gives.
fn attachment(
    interfaces: &[Interface],
    pin: PathBuf,
    is_filter: bool,
) -> Result<Option<Attachment>> {
    let Some((ifindex, slot)) = pins::parse_link(&pin) else {
        return Ok(None);
    };
    let shown = || pin.display().to_string();
    let object = match sys::open_pin(&pin) {
        // Removed this moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        object => object.map_err(Error::call("open pin", shown()))?,
    };
    let (by, program, is_there) = if is_filter {
        let program =
            sys::program_id(object.as_fd()).map_err(Error::call("bpf program info of", shown()))?;
        (By::Clsact, program, true)
    } else {
        let link = sys::link(object.as_fd()).map_err(Error::call("bpf link info of", shown()))?;
        let by = match slot {
            Slot::Xdp => By::Xdp,
            Slot::TcIngress | Slot::TcEgress => By::Tcx,
        };
        // A deleted interface leaves 0; its number may be another's by now.
        (by, link.program, link.ifindex == ifindex)
    };
    let interface = interfaces
        .iter()
        .find(|interface| interface.index == ifindex && is_there);
    let hook = match interface {
        Some(interface) => actual(interface, slot, by, program)?,
        None => None,
    };
    Ok(Some(Attachment {
        ifindex,
        slot,
        by,
        program,
        interface: interface.map(|interface| interface.name.clone()),
        hook,
        pin,
    }))
}

/// The hook on which the program really is.
fn actual(interface: &Interface, slot: Slot, by: By, program: u32) -> Result<Option<Hook>> {
    let direction = slot.direction();
    let is_there = match by {
        By::Xdp => {
            let found = interface.xdp.filter(|(_, id)| *id == program);
            return Ok(found.map(|(mode, _)| Hook::Xdp(mode)));
        }
        By::Tcx => sys::tcx_programs(interface.index, direction)
            .map_err(Error::call("bpf query of", interface.name.as_str()))?
            .is_some_and(|ids| ids.contains(&program)),
        By::Clsact => filters::list(interface.index, direction)
            .map_err(Error::call("list filters of", interface.name.as_str()))?
            .iter()
            .any(|filter| filter.program == program),
    };
    Ok(is_there.then_some(Hook::Tc(direction)))
}

/// Attaches a program and pins it.
///
/// # Errors
/// The kernel's; nothing is left then.
pub fn attach(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interface: &Interface,
    hook: Hook,
) -> Result<By> {
    match hook {
        Hook::Xdp(mode) => attach_xdp(pins, program, interface, mode),
        Hook::Tc(direction) if has_tcx(interface)? => {
            let link = sys::attach_tcx(program, interface.index, direction)
                .map_err(Error::call("attach TCX to", interface.name.as_str()))?;
            pin(link.as_fd(), &pins.link(interface.index, hook.slot()))?;
            Ok(By::Tcx)
        }
        Hook::Tc(_) => attach_filter(pins, program, interface, hook.slot()),
    }
}

fn has_tcx(interface: &Interface) -> Result<bool> {
    if std::env::var_os(NO_TCX).is_some() {
        return Ok(false);
    }
    let programs = sys::tcx_programs(interface.index, Direction::Ingress)
        .map_err(Error::call("bpf query of", interface.name.as_str()))?;
    Ok(programs.is_some())
}

fn attach_xdp(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interface: &Interface,
    mode: XdpMode,
) -> Result<By> {
    let flags = match mode {
        XdpMode::Native => aya_obj::generated::XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => aya_obj::generated::XDP_FLAGS_SKB_MODE,
        XdpMode::Offloaded => aya_obj::generated::XDP_FLAGS_HW_MODE,
    };
    let link = sys::attach_xdp(program, interface.index, flags)
        .map_err(|error| xdp_error(error, interface, mode))?;
    pin(link.as_fd(), &pins.link(interface.index, Slot::Xdp))?;
    Ok(By::Xdp)
}

fn attach_filter(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interface: &Interface,
    slot: Slot,
) -> Result<By> {
    let (index, name) = (interface.index, interface.name.as_str());
    let record = pins.qdisc(index);
    let is_new = !record.exists();
    if is_new {
        remove_orphans(pins, interface)?;
    } else {
        remove_orphans_of(pins, index, slot)?;
    }
    let ingress_only =
        filters::has_ingress_qdisc(index).map_err(Error::call("list qdiscs of", name))?;
    if ingress_only && slot == Slot::TcEgress {
        return Err(Error::Impossible {
            interface: name.to_owned(),
            why: "it has an ingress qdisc of another's, which has no egress",
            instead: "use --hook tc-ingress",
        });
    }
    if is_new {
        pins::make_folder(&pins.qdiscs())?;
        pins::make_folder(&record)?;
    }
    let undo = || -> Result<()> {
        if is_new {
            remove_own_qdisc(index, &record)?;
        }
        Ok(())
    };
    match filters::make_qdisc(index) {
        // Another's, and it stays.
        Ok(false) if is_new => pins::remove(&record)?,
        Ok(_) => {}
        Err(error) => {
            pins::remove(&record)?;
            return Err(Error::call("make clsact qdisc on", name)(error));
        }
    }
    let path = pins.filter(index, slot);
    let attached = filters::add(index, slot.direction(), program, slot.program())
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Error::FilterTaken {
                interface: name.to_owned(),
                direction: match slot.direction() {
                    Direction::Ingress => "ingress",
                    Direction::Egress => "egress",
                },
            },
            _ => Error::call("add filter to", name)(error),
        })
        .and_then(|()| {
            pins::make_folder(&pins.filters())?;
            pin(program, &path)
        });
    if let Err(error) = attached {
        // The first failure counts.
        let _second = remove_orphans_of(pins, index, slot).and_then(|()| undo());
        return Err(error);
    }
    Ok(By::Clsact)
}

/// Puts another program behind an attachment, atomically.
///
/// # Errors
/// The kernel's.
pub fn update(attachment: &Attachment, program: BorrowedFd<'_>) -> Result<()> {
    let path = &attachment.pin;
    let shown = path.display().to_string();
    match attachment.by {
        By::Xdp | By::Tcx => {
            let link = sys::open_pin(path).map_err(Error::call("open pin", shown.as_str()))?;
            sys::update_link(link.as_fd(), program)
                .map_err(Error::call("bpf link update of", shown))
        }
        By::Clsact => {
            let direction = attachment.slot.direction();
            let filters = filters::list(attachment.ifindex, direction)
                .map_err(Error::call("list filters of", shown.as_str()))?;
            let ours = filters
                .iter()
                .find(|filter| filter.program == attachment.program);
            if let Some(filter) = ours {
                filters::replace(attachment.ifindex, direction, filter, program)
                    .map_err(Error::call("replace filter of", shown))?;
            }
            let new = path.with_file_name("new");
            pins::remove(&new)?;
            pin(program, &new)?;
            std::fs::rename(&new, path).map_err(Error::call("rename", new.display().to_string()))
        }
    }
}

/// Detaches, and removes the pin.
///
/// # Errors
/// Those of the kernel and the file system.
pub fn detach(path: &Path) -> Result<()> {
    if let Ok(object) = sys::open_pin(path) {
        // A filter's pin is its program, which is no link: the call fails. An error of a link
        // means that its interface is gone.
        let _gone = sys::detach_link(object.as_fd());
        detach_filter(path, &object)?;
    }
    pins::remove(path)
}

fn detach_filter(path: &Path, object: &OwnedFd) -> Result<()> {
    let is_filter = path.parent().and_then(Path::file_name) == Some(pins::FILTERS.as_ref());
    let Some((ifindex, slot)) = pins::parse_link(path).filter(|_| is_filter) else {
        return Ok(());
    };
    let shown = || path.display().to_string();
    let program =
        sys::program_id(object.as_fd()).map_err(Error::call("bpf program info of", shown()))?;
    let direction = slot.direction();
    let filters =
        filters::list(ifindex, direction).map_err(Error::call("list filters of", shown()))?;
    for filter in filters.iter().filter(|filter| filter.program == program) {
        filters::remove(ifindex, direction, filter)
            .map_err(Error::call("remove filter of", shown()))?;
    }
    Ok(())
}

/// Detaches all that is pinned in a namespace's folder, and removes what was made for it.
///
/// # Errors
/// Those of the kernel and the file system.
pub fn detach_all(folder: &Path) -> Result<()> {
    forget_lost_qdiscs(folder)?;
    for links in [pins::LINKS, pins::FILTERS] {
        let links = folder.join(links);
        for path in pins::entries(&links) {
            detach(&path)?;
        }
        pins::remove(&links)?;
    }
    let qdiscs = folder.join(pins::QDISCS);
    for record in pins::entries(&qdiscs) {
        let index = record
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        match index {
            Some(index) => remove_own_qdisc(index, &record)?,
            None => pins::remove(&record)?,
        }
    }
    pins::remove(&qdiscs)
}

/// Forgets the qdiscs that went with all of gate's filters in them: what is in their place now, on
/// that interface or on another with its index, is another's.
///
/// # Errors
/// Those of the kernel and the file system.
pub fn forget_lost_qdiscs(folder: &Path) -> Result<()> {
    for record in pins::entries(&folder.join(pins::QDISCS)) {
        let mut filters = pins::entries(&folder.join(pins::FILTERS));
        filters.retain(|pin| {
            let of = pins::parse_link(pin).map(|(ifindex, _)| ifindex.to_string());
            of.as_deref().map(AsRef::as_ref) == record.file_name()
        });
        let mut lost = !filters.is_empty();
        for pin in filters {
            lost &= !is_in_place(&pin)?;
        }
        if lost {
            pins::remove(&record)?;
        }
    }
    Ok(())
}

/// Whether the filter of this pin is on its interface.
fn is_in_place(pin: &Path) -> Result<bool> {
    let shown = || pin.display().to_string();
    let (Some((ifindex, slot)), Ok(program)) = (pins::parse_link(pin), sys::open_pin(pin)) else {
        return Ok(false);
    };
    let id =
        sys::program_id(program.as_fd()).map_err(Error::call("bpf program info of", shown()))?;
    let filters = filters::list(ifindex, slot.direction())
        .map_err(Error::call("list filters of", shown()))?;
    Ok(filters.iter().any(|filter| filter.program == id))
}

/// Removes the qdiscs that gate made, but for those that these records tell of.
///
/// # Errors
/// Those of the file system.
pub fn remove_qdiscs(pins: &Pins, kept: &[PathBuf]) -> Result<()> {
    for record in pins::entries(&pins.qdiscs()) {
        let index = record
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let Some(index) = index.filter(|_| !kept.contains(&record)) {
            remove_own_qdisc(index, &record)?;
        }
    }
    Ok(())
}

/// Removes a qdisc that gate made, unless others have filters in it now.
fn remove_own_qdisc(ifindex: u32, record: &Path) -> Result<()> {
    // An error means that the interface is gone, or the qdisc.
    if filters::count(ifindex).is_ok_and(|count| count == 0) {
        let _gone = filters::remove_qdisc(ifindex);
    }
    pins::remove(record)
}

/// Removes filters that gate made and whose pins are gone, as when bpffs was unmounted; returns
/// whether there were any.
///
/// # Errors
/// Those of the kernel.
pub fn remove_all_orphans(pins: &Pins) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for interface in interfaces::list()? {
        if remove_orphans(pins, &interface)? {
            names.push(interface.name);
        }
    }
    Ok(names)
}

/// Those of one interface, and the qdisc where nothing else is in it; nobody can tell any more whose
/// that was.
fn remove_orphans(pins: &Pins, interface: &Interface) -> Result<bool> {
    let mut found = false;
    for slot in [Slot::TcIngress, Slot::TcEgress] {
        let orphans = orphans(pins, interface.index, slot)?;
        found |= !orphans.is_empty();
        remove_these(interface.index, slot, &orphans)?;
    }
    if found {
        remove_own_qdisc(interface.index, &pins.qdisc(interface.index))?;
    }
    Ok(found)
}

fn remove_orphans_of(pins: &Pins, ifindex: u32, slot: Slot) -> Result<()> {
    remove_these(ifindex, slot, &orphans(pins, ifindex, slot)?)
}

fn remove_these(ifindex: u32, slot: Slot, orphans: &[filters::Filter]) -> Result<()> {
    for filter in orphans {
        filters::remove(ifindex, slot.direction(), filter).map_err(Error::call(
            "remove filter of interface",
            ifindex.to_string(),
        ))?;
    }
    Ok(())
}

fn orphans(pins: &Pins, ifindex: u32, slot: Slot) -> Result<Vec<filters::Filter>> {
    let pinned = sys::open_pin(&pins.filter(ifindex, slot))
        .ok()
        .and_then(|program| sys::program_id(program.as_fd()).ok());
    let filters = filters::list(ifindex, slot.direction()).map_err(Error::call(
        "list filters of interface",
        ifindex.to_string(),
    ))?;
    Ok(filters
        .into_iter()
        .filter(|filter| filter.name == slot.program() && Some(filter.program) != pinned)
        .collect())
}

fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<()> {
    sys::pin(object, path).map_err(Error::call("pin", path.display().to_string()))?;
    pins::restrict(path)
}

fn xdp_error(error: io::Error, interface: &Interface, mode: XdpMode) -> Error {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            // Asked anew: the program may have come since the interface was looked up.
            let id = interfaces::list()
                .ok()
                .and_then(|all| interfaces::named(&all, &interface.name).ok()?.xdp)
                .map_or(0, |(_, id)| id);
            Error::HookTaken {
                interface: interface.name.clone(),
                program: program_name(id),
                id,
            }
        }
        Some(
            libc::EOPNOTSUPP
            | libc::EINVAL
            | libc::ERANGE
            | libc::ENOMEM
            | libc::ENOSPC
            | libc::E2BIG,
        ) if mode == XdpMode::Native => Error::NoNativeXdp {
            interface: interface.name.clone(),
            why: crate::hooks::refusal(error.raw_os_error(), interface.mtu),
        },
        _ => Error::call("attach XDP to", interface.name.as_str())(error),
    }
}

/// The name that a loaded program has.
#[must_use]
pub fn program_name(id: u32) -> String {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "without a name".to_owned())
}
