//! Which processes have sockets open.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;

/// A process, by its id in this process namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub id: u32,
    /// The name of its program, cut at 15 bytes by the kernel.
    pub name: String,
}

impl Process {
    /// The process of this id; none where there is none.
    #[must_use]
    pub fn find(id: u32) -> Option<Self> {
        Some(Self {
            id,
            name: name(id)?,
        })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id)
    }
}

/// Who has these sockets open; where several have, the one with the lowest id. It reads every
/// descriptor of every process in /proc, so it is for reports. What can't be read is left out.
#[must_use]
pub fn owners(inodes: &HashSet<u32>) -> HashMap<u32, Process> {
    let mut owners = HashMap::new();
    if inodes.is_empty() {
        return owners;
    }
    for id in processes() {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{id}/fd")) else {
            continue;
        };
        let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let mine = links.filter_map(|link| inode(link.as_os_str().as_bytes()));
        for inode in mine.filter(|inode| inodes.contains(inode)) {
            owners.entry(inode).or_insert_with(|| Process {
                id,
                name: name(id).unwrap_or_default(),
            });
        }
        if owners.len() == inodes.len() {
            break;
        }
    }
    owners
}

/// All process ids, in rising order.
pub(super) fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let id = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let mut ids: Vec<u32> = entries.filter_map(|entry| id(entry.ok()?)).collect();
    ids.sort_unstable();
    ids
}

fn name(id: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{id}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// The inode in a link like `socket:[1234]`.
pub(super) fn inode(link: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(link).ok()?;
    let number = text.strip_prefix("socket:[")?.strip_suffix(']')?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_links_to_sockets_have_an_inode() {
        assert_eq!(inode(b"socket:[1234]"), Some(1234));
        for link in [
            &b"pipe:[1234]"[..],
            b"socket:[]",
            b"socket:[12",
            b"/dev/null",
            b"\xff",
        ] {
            assert_eq!(inode(link), None);
        }
    }

    #[test]
    fn this_process_has_its_own_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd()));
        let inode = inode(link.expect("a link").as_os_str().as_bytes()).expect("an inode");
        let owners = owners(&HashSet::from([inode, 0]));
        assert_eq!(owners.len(), 1);
        assert_eq!(owners[&inode].id, std::process::id());
    }
}
