//! The cgroup v2 hierarchy.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs, statfs};

use crate::error::{Error, Result};

/// A cgroup.
#[derive(Debug)]
pub struct Cgroup {
    /// Its folder.
    pub path: PathBuf,
    /// The same, open.
    pub folder: File,
    /// Its id.
    pub id: u64,
}

impl Cgroup {
    /// The cgroup of a folder; none for that with all processes.
    ///
    /// # Errors
    /// [`Error::NoCgroups`], [`Error::NotCgroup`].
    pub fn at(path: Option<&Path>) -> Result<Self> {
        let root = root()?;
        let path = path.unwrap_or(&root);
        let not_one = || Error::NotCgroup {
            path: path.into(),
            root: root.clone(),
        };
        let folder = File::open(path).map_err(|_| not_one())?;
        let is_one =
            fstatfs(&folder).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let found = folder
            .metadata()
            .map_err(Error::call("stat", path.display().to_string()))?;
        if !is_one || !found.is_dir() {
            return Err(not_one());
        }
        Ok(Self {
            path: path.into(),
            folder,
            id: found.ino(),
        })
    }
}

/// Where the hierarchy is mounted.
fn root() -> Result<PathBuf> {
    const MOUNTS: &str = "/proc/thread-self/mountinfo";
    let mounts = fs::read(MOUNTS).map_err(Error::call("read", MOUNTS))?;
    mounts
        .split(|byte| *byte == b'\n')
        .filter_map(mounted)
        // Another mount may hide it.
        .find(|path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC))
        .ok_or(Error::NoCgroups)
}

/// The mount point that a line of `mountinfo` tells, where the whole of a cgroup v2 hierarchy is
/// there (proc_pid_mountinfo(5)).
fn mounted(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (of_hierarchy, at) = (fields.nth(3)?, fields.next()?);
    // Optional fields end with a hyphen.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let is_whole = of_hierarchy == b"/" && kind == b"cgroup2";
    is_whole.then(|| OsString::from_vec(unescaped(at)).into())
}

/// Without the escapes of mountinfo: three octal digits behind a backslash.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok();
        match behind.get(..3).and_then(octal) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &behind[3..];
            }
            _ => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_among_the_mounts() {
        for (line, expected) in [
            (
                "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw",
                Some("/sys/fs/cgroup"),
            ),
            (
                "38 31 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                "38 31 0:37 / /mnt/my\\040groups rw shared:1 master:2 - cgroup2 none rw",
                Some("/mnt/my groups"),
            ),
            (
                "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
                None,
            ),
            ("38 31 0:37 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
            ("31 23 0:28 / /cgroup2 rw - tmpfs cgroup2 rw", None),
            ("", None),
        ] {
            assert_eq!(
                mounted(line.as_bytes()),
                expected.map(PathBuf::from),
                "{line}"
            );
        }
    }
}
