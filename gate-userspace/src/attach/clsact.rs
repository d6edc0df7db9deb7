//! Attaching by BPF filters, where the kernel has no TCX (before Linux 6.6), and the `clsact` qdiscs
//! that they are in.
//!
//! A filter has no link that could be pinned. What is pinned is its program, and whose a qdisc is
//! says a record: a folder in [`pins::QDISCS`] with the interface's index as its name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gate_common::abi::Direction;

use super::{By, pin};
use crate::error::{Error, Result};
use crate::filters::{self, Filter};
use crate::hooks::Slot;
use crate::interfaces::{self, Interface};
use crate::pins::{self, Pins};
use crate::sys;

/// The filters of a program on an interface.
///
/// # Errors
/// The kernel's.
pub(super) fn of_program(
    ifindex: u32,
    direction: Direction,
    program: u32,
) -> io::Result<Vec<Filter>> {
    let mut filters = filters::list(ifindex, direction)?;
    filters.retain(|filter| filter.program == program);
    Ok(filters)
}

/// The filters, on the interface that the pin names, of the program that is pinned there.
fn of_pin(pin: &Path, program: &OwnedFd, (ifindex, slot): (u32, Slot)) -> Result<Vec<Filter>> {
    let shown = || pin.display().to_string();
    let id =
        sys::program_id(program.as_fd()).map_err(Error::call("bpf program info of", shown()))?;
    of_program(ifindex, slot.direction(), id).map_err(Error::call("list filters of", shown()))
}

/// Attaches a program by a filter, in a qdisc that is made where there is none.
pub(super) fn attach(
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

/// Removes the filters of the program that is pinned here, if it is a filter's pin.
///
/// # Errors
/// The kernel's.
pub(super) fn detach(path: &Path, program: &OwnedFd) -> Result<()> {
    let is_filter = path.parent().and_then(Path::file_name) == Some(pins::FILTERS.as_ref());
    let Some((ifindex, slot)) = pins::parse_link(path).filter(|_| is_filter) else {
        return Ok(());
    };
    for filter in of_pin(path, program, (ifindex, slot))? {
        filters::remove(ifindex, slot.direction(), &filter)
            .map_err(Error::call("remove filter of", path.display().to_string()))?;
    }
    Ok(())
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

/// Whether a filter of the program that is pinned here is on its interface.
fn is_in_place(pin: &Path) -> Result<bool> {
    let (Some(place), Ok(program)) = (pins::parse_link(pin), sys::open_pin(pin)) else {
        return Ok(false);
    };
    Ok(!of_pin(pin, &program, place)?.is_empty())
}

/// Removes the qdiscs that gate made, and their records, but for these records.
///
/// # Errors
/// Those of the file system.
pub fn remove_qdiscs(folder: &Path, kept: &[PathBuf]) -> Result<()> {
    let mut records = pins::entries(&folder.join(pins::QDISCS));
    records.retain(|record| !kept.contains(record));
    for record in records {
        let index = record
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        match index {
            Some(index) => remove_own_qdisc(index, &record)?,
            None => pins::remove(&record)?,
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

/// Removes filters that gate made and whose pins are gone, as when bpffs was unmounted; returns the
/// names of the interfaces that had some.
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

fn remove_these(ifindex: u32, slot: Slot, orphans: &[Filter]) -> Result<()> {
    for filter in orphans {
        filters::remove(ifindex, slot.direction(), filter).map_err(Error::call(
            "remove filter of interface",
            ifindex.to_string(),
        ))?;
    }
    Ok(())
}

fn orphans(pins: &Pins, ifindex: u32, slot: Slot) -> Result<Vec<Filter>> {
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
