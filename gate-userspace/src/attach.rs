//! Attaching programs to interfaces, pinned, and finding out what became of them.

mod clsact;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;
use gate_common::abi::Direction;

use crate::error::{Error, Result};
use crate::filters;
use crate::hooks::{Hook, Slot};
use crate::interfaces::{self, Interface, XdpMode};
use crate::pins::{self, Pins};
use crate::sys;

pub use clsact::{forget_lost_qdiscs, remove_all_orphans, remove_qdiscs};

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

    /// One as tests need it: live where its interface has a name.
    #[cfg(test)]
    pub(crate) fn example(ifindex: u32, interface: Option<&str>, slot: Slot) -> Self {
        Self {
            ifindex,
            slot,
            by: By::Xdp,
            program: 1,
            interface: interface.map(str::to_owned),
            hook: interface.map(|_| Hook::Xdp(XdpMode::Native)),
            pin: PathBuf::new(),
        }
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
    attachments_of(&pins.folder())
}

/// The attachments that are pinned in a namespace's folder, also one of another version.
///
/// # Errors
/// Those of the kernel.
pub fn attachments_of(folder: &Path) -> Result<Vec<Attachment>> {
    let interfaces = interfaces::list()?;
    let mut attachments = Vec::new();
    for path in pins::entries(&folder.join(pins::LINKS)) {
        attachments.extend(attachment(&interfaces, path, false)?);
    }
    for path in pins::entries(&folder.join(pins::FILTERS)) {
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
        By::Clsact => !clsact::of_program(interface.index, direction, program)
            .map_err(Error::call("list filters of", interface.name.as_str()))?
            .is_empty(),
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
            pin_link(pins, link.as_fd(), interface, hook.slot())?;
            Ok(By::Tcx)
        }
        Hook::Tc(_) => clsact::attach(pins, program, interface, hook.slot()),
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
    pin_link(pins, link.as_fd(), interface, Slot::Xdp)?;
    Ok(By::Xdp)
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
            let ours = clsact::of_program(attachment.ifindex, direction, attachment.program)
                .map_err(Error::call("list filters of", shown.as_str()))?;
            if let Some(filter) = ours.first() {
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
        clsact::detach(path, &object)?;
    }
    pins::remove(path)
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
    remove_qdiscs(folder, &[])?;
    pins::remove(&folder.join(pins::QDISCS))
}

/// Detaches the links that are pinned in the folder of a namespace that this process is not in, and
/// removes all pins of what is attached there. Filters can only be removed from within.
///
/// # Errors
/// Those of the file system.
pub fn detach_links(folder: &Path) -> Result<()> {
    for path in pins::entries(&folder.join(pins::LINKS)) {
        if let Ok(link) = sys::open_pin(&path) {
            // An error means that its interface is gone.
            let _gone = sys::detach_link(link.as_fd());
        }
        pins::remove(&path)?;
    }
    [pins::LINKS, pins::FILTERS, pins::QDISCS]
        .iter()
        .try_for_each(|part| pins::remove(&folder.join(part)))
}

/// Pins a link. A process that died while it detached may have left no folder for it.
fn pin_link(pins: &Pins, link: BorrowedFd<'_>, interface: &Interface, slot: Slot) -> Result<()> {
    pins::make_folder(&pins.links())?;
    pin(link, &pins.link(interface.index, slot))
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
