//! A process's descriptors, and the processes of a control group.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where the hierarchy of cgroup v2 is: alone, or beside those of v1.
const CGROUP2: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

fn fd(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

/// Opens a process: what has this id later isn't meant (Linux 5.3).
///
/// # Errors
/// The kernel's: `ESRCH` where there is none, `EINVAL` or `ENOENT` for the id of a thread.
pub fn open(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    fd(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
}

/// Duplicates a descriptor of another process (Linux 5.6).
///
/// # Errors
/// The kernel's: `EPERM` without the right to trace it, `EBADF` where it has none of this number.
pub fn duplicate(process: BorrowedFd<'_>, descriptor: RawFd) -> io::Result<OwnedFd> {
    let process = process.as_raw_fd();
    // SAFETY: the call takes three integers and touches no memory of ours.
    fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, descriptor, 0) })
}

/// The processes that are in a control group, by its id (that of a folder of cgroup v2).
///
/// # Errors
/// Those of the file system; `ESTALE` where the group is gone, `EPERM` without
/// `CAP_DAC_READ_SEARCH`.
pub fn in_cgroup(id: u64) -> io::Result<Vec<u32>> {
    let root = cgroup2().ok_or(io::ErrorKind::NotFound)?;
    let group = open_cgroup(&File::open(root)?, id)?;
    let list = format!("/proc/self/fd/{}/cgroup.procs", group.as_raw_fd());
    let text = fs::read_to_string(list)?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The root of cgroup v2, where it is mounted.
fn cgroup2() -> Option<&'static Path> {
    let is_cgroup2 = |path: &&Path| {
        statfs(*path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
    };
    CGROUP2.into_iter().map(Path::new).find(is_cgroup2)
}

fn open_cgroup(root: &File, id: u64) -> io::Result<OwnedFd> {
    /// `FILEID_KERNFS` of linux/exportfs.h.
    const KERNFS: libc::c_int = 0xfe;
    /// `struct file_handle` with the 8 bytes that kernfs has.
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        id: [u8; 8],
    }
    let mut handle = Handle {
        bytes: 8,
        kind: KERNFS,
        id: id.to_ne_bytes(),
    };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle is laid out as the kernel's, tells how many bytes follow its head, and
    // outlives the call.
    fd(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            root.as_raw_fd(),
            &raw mut handle,
            flags,
        )
    })
}
