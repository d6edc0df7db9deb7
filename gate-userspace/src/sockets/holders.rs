//! Which process has a socket open, and under which number.

use std::collections::HashSet;
use std::fs::{self, ReadDir};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt as _;

use super::listener::Listener;
use super::owners::{inode, processes};
use crate::error::Result;
use crate::sys::pidfd;

/// A socket in the descriptor table of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub process: u32,
    pub descriptor: RawFd,
    pub inode: u32,
}

/// Shows `take` who has these sockets, until it has taken each once; only the process that is asked
/// for, or any. Those of the control groups in which the sockets were made come first, so that a
/// service is found at once among thousands of processes. Returns whether some process could not be
/// looked into.
pub(super) fn search(
    listeners: &[Listener],
    pid: Option<u32>,
    mut take: impl FnMut(Held) -> Result<bool>,
) -> Result<bool> {
    let mut wanted: HashSet<u32> = listeners.iter().map(|it| it.inode).collect();
    let mut seen = HashSet::new();
    let mut was_denied = false;
    for process in candidates(listeners, pid) {
        if seen.insert(process) {
            match look_into(process, &mut wanted, &mut take)? {
                Looked::Denied => was_denied = true,
                Looked::Done => {}
            }
        }
        // Here, so that the next list isn't made in vain.
        if wanted.is_empty() {
            break;
        }
    }
    Ok(was_denied)
}

/// Whom to ask, in this order; each list is made when the one before it is at its end. The newest of a
/// list come first: a backend that is handed to has mostly just begun. This process comes last: what
/// it has are duplicates.
fn candidates(listeners: &[Listener], pid: Option<u32>) -> Box<dyn Iterator<Item = u32> + '_> {
    if let Some(pid) = pid {
        return Box::new([pid].into_iter());
    }
    let own = std::process::id();
    let lists: [Box<dyn Fn() -> Vec<u32> + '_>; 2] =
        [Box::new(|| of_cgroups(listeners)), Box::new(processes)];
    let others = lists.into_iter().flat_map(|list| {
        let mut list = list();
        list.sort_unstable_by(|one, other| other.cmp(one));
        list
    });
    Box::new(others.filter(move |id| *id != own).chain([own]))
}

fn of_cgroups(listeners: &[Listener]) -> Vec<u32> {
    let groups: HashSet<u64> = listeners.iter().filter_map(|it| it.cgroup).collect();
    // What can't be read is no more than a hint that is missing.
    let processes = groups
        .into_iter()
        .filter_map(|id| pidfd::in_cgroup(id).ok());
    processes.flatten().collect()
}

enum Looked {
    Done,
    Denied,
}

fn look_into(
    process: u32,
    wanted: &mut HashSet<u32>,
    take: &mut impl FnMut(Held) -> Result<bool>,
) -> Result<Looked> {
    let looked = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Looked::Denied,
        // It has ended.
        _ => Looked::Done,
    };
    let sockets = match Sockets::of(process) {
        Err(error) => return Ok(looked(error)),
        Ok(sockets) => sockets,
    };
    for socket in sockets {
        let (descriptor, inode) = match socket {
            Err(error) => return Ok(looked(error)),
            Ok(socket) => socket,
        };
        let held = Held {
            process,
            descriptor,
            inode,
        };
        if wanted.contains(&inode) && take(held)? {
            wanted.remove(&inode);
            if wanted.is_empty() {
                break;
            }
        }
    }
    Ok(Looked::Done)
}

/// The inodes of the sockets that a process has.
///
/// # Errors
/// `ENOENT` where there is no such process, `EACCES` without the right to trace it.
pub(super) fn sockets_of(process: u32) -> io::Result<HashSet<u32>> {
    Sockets::of(process)?.map(|socket| Ok(socket?.1)).collect()
}

/// The sockets among a process's descriptors, in rising order, each read when it is asked for:
/// number and inode.
struct Sockets(ReadDir);

impl Sockets {
    fn of(process: u32) -> io::Result<Self> {
        fs::read_dir(format!("/proc/{process}/fd")).map(Self)
    }
}

impl Iterator for Sockets {
    type Item = io::Result<(RawFd, u32)>;

    fn next(&mut self) -> Option<Self::Item> {
        for entry in &mut self.0 {
            let path = match entry {
                Err(error) => return Some(Err(error)),
                Ok(entry) => entry.path(),
            };
            match fs::read_link(&path) {
                // It was closed meanwhile; of a process that has ended the kernel says `EACCES`.
                Err(_) if fs::symlink_metadata(&path).is_err() => {}
                Err(error) => return Some(Err(error)),
                Ok(target) => {
                    let number = path
                        .file_name()
                        .and_then(|name| name.to_str()?.parse().ok());
                    let inode = inode(target.as_os_str().as_bytes());
                    if let (Some(number), Some(inode)) = (number, inode) {
                        return Some(Ok((number, inode)));
                    }
                }
            }
        }
        None
    }
}
