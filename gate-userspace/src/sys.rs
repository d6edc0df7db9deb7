//! The `bpf(2)` commands that aya 0.14 doesn't have, or wraps with a fallback that gate
//! must not take, and the barrier.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{
    BPF_F_BEFORE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_prog_info,
};
use gate_common::abi::Direction;

pub mod load;
pub mod mapping;
pub mod pidfd;
pub mod probes;

/// Entries that one batch call asks for.
const BATCH: usize = 4096;

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is a valid bpf_attr of the size that is passed, and lives
    // through the call; the pointers in it were set by the callers below from live buffers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// For commands that return a descriptor.
fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: bpf_attr is a union of plain integers and arrays, for which zero is valid, and
    // which the kernel wants zeroed.
    unsafe { zeroed() }
}

/// All entries of a hash map (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6). `K` and `V` must be the
/// map's own key and value.
///
/// # Errors
/// The kernel's.
pub fn lookup_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut chunk = BATCH;
    // The kernel's cursor: a bucket number, opaque to us.
    let mut cursor: Option<u32> = None;
    loop {
        let mut keys = Vec::<K>::with_capacity(chunk);
        let mut values = Vec::<V>::with_capacity(chunk);
        let mut next = 0_u32;
        let mut attr = zeroed_attr();
        let in_batch = cursor;
        attr.batch.in_batch = in_batch
            .as_ref()
            .map_or(0, |at| std::ptr::from_ref(at) as u64);
        attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = chunk as u32;
        attr.batch.map_fd = map.as_raw_fd() as u32;
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        let done = match result {
            Ok(_) => false,
            // The end; what was found on the way is there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket has more entries than asked for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                chunk *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel wrote `count` keys and values, no more than the capacity, and
        // Pod values are valid whatever the bytes; reading the union's batch is fine, as the
        // call was a batch call.
        unsafe {
            let count = attr.batch.count as usize;
            keys.set_len(count);
            values.set_len(count);
        }
        entries.extend(keys.into_iter().zip(values));
        if done {
            return Ok(entries);
        }
        cursor = Some(next);
    }
}

/// Deletes the entries with these keys; one that is gone already is no error
/// (`BPF_MAP_DELETE_BATCH`, Linux 5.6).
///
/// # Errors
/// The kernel's.
pub fn delete_all<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut rest = keys;
    while !rest.is_empty() {
        let mut attr = zeroed_attr();
        attr.batch.keys = rest.as_ptr() as u64;
        attr.batch.count = rest.len() as u32;
        attr.batch.map_fd = map.as_raw_fd() as u32;
        let result = bpf(bpf_cmd::BPF_MAP_DELETE_BATCH, &mut attr);
        // SAFETY: the kernel set `count` to the entries that it deleted.
        let deleted = unsafe { attr.batch.count } as usize;
        rest = match result {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                rest.get(deleted + 1..).unwrap_or_default()
            }
            Err(error) => return Err(error),
        };
    }
    Ok(())
}

/// Writes these entries (`BPF_MAP_UPDATE_BATCH`, Linux 5.6). `K` and `V` must be
/// the map's own key and value. After a failure some of them may be written.
///
/// # Errors
/// The kernel's.
pub fn update_all<K: Pod, V: Pod>(map: BorrowedFd<'_>, entries: &[(K, V)]) -> io::Result<()> {
    for chunk in entries.chunks(BATCH) {
        let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().copied().unzip();
        let mut attr = zeroed_attr();
        attr.batch.keys = keys.as_ptr() as u64;
        attr.batch.values = values.as_ptr() as u64;
        attr.batch.count = chunk.len() as u32;
        attr.batch.map_fd = map.as_raw_fd() as u32;
        bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr)?;
    }
    Ok(())
}

/// Writes `values` to an array map from index 0 on (`BPF_MAP_UPDATE_BATCH`, Linux 5.6).
///
/// # Errors
/// The kernel's.
pub fn update_array<V: Pod>(map: BorrowedFd<'_>, values: &[V]) -> io::Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let keys: Vec<u32> = (0..values.len() as u32).collect();
    let mut attr = zeroed_attr();
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = values.len() as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Attaches an XDP program to an interface by a link (Linux 5.9). aya's own call would fall
/// back to netlink, which can replace another's program and can't be pinned.
///
/// `flags` are the kernel's `XDP_FLAGS_*`.
///
/// # Errors
/// The kernel's: `EBUSY` and `EEXIST` where another program is attached.
pub fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = flags;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Attaches a program to a network namespace or a cgroup, beside those of others (Linux 5.7).
///
/// # Errors
/// The kernel's.
pub fn attach_to(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = target.as_raw_fd() as u32;
    attr.link_create.attach_type = kind as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Puts another program behind a link, atomically (Linux 5.7).
///
/// # Errors
/// The kernel's.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link's program at once; unpinning alone lets the kernel do it some time later
/// (Linux 5.9).
///
/// # Errors
/// The kernel's.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Pins an object in bpffs.
///
/// # Errors
/// The kernel's.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
///
/// # Errors
/// The kernel's.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

fn tcx(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
        Direction::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
    }
}

/// Attaches a TC program to an interface by a link, before all that are there (TCX, Linux 6.6).
///
/// # Errors
/// The kernel's.
pub fn attach_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    direction: Direction,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = tcx(direction);
    attr.link_create.flags = BPF_F_BEFORE;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// The ids of the programs on an interface's TCX hook, in the order in which they run; none
/// where the kernel has no TCX.
///
/// # Errors
/// The kernel's.
pub fn tcx_programs(ifindex: u32, direction: Direction) -> io::Result<Option<Vec<u32>>> {
    // BPF_MPROG_MAX.
    let mut ids = [0_u32; 64];
    let mut attr = zeroed_attr();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = tcx(direction);
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = ids.len() as u32;
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
        Ok(_) => {
            // SAFETY: the kernel set the count, and any bytes are a valid u32.
            let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
            Ok(Some(ids.into_iter().take(count).collect()))
        }
        // The attach type is unknown.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        // Nothing was ever attached, or the interface is gone.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Ok(Some(Vec::new()))
        }
        Err(error) => Err(error),
    }
}

/// What the kernel says of an XDP or TCX link.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The interface, by its index in the namespace that it is in; 0 once it is gone.
    pub ifindex: u32,
    /// The program.
    pub program: u32,
}

/// Reads an XDP or TCX link's interface and program (Linux 5.9).
///
/// # Errors
/// The kernel's.
pub fn link(link: BorrowedFd<'_>) -> io::Result<Link> {
    // SAFETY: bpf_link_info is plain integers, for which zero is valid.
    let mut info: bpf_link_info = unsafe { zeroed() };
    object_info(link, &mut info)?;
    Ok(Link {
        // SAFETY: any bytes are a valid u32. The index comes first for XDP and for TCX; for
        // another type of link it would be another number, but none is pinned where this is
        // asked.
        ifindex: unsafe { info.__bindgen_anon_1.xdp.ifindex },
        program: info.prog_id,
    })
}

/// The cgroup that a cgroup link is attached to, by its id, which is its folder's inode; none once
/// that is gone (Linux 5.7).
///
/// # Errors
/// The kernel's.
pub fn cgroup_of(link: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    // SAFETY: bpf_link_info is plain integers, for which zero is valid.
    let mut info: bpf_link_info = unsafe { zeroed() };
    object_info(link, &mut info)?;
    // SAFETY: any bytes are a valid u64.
    let id = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    Ok((id != 0).then_some(id))
}

/// The network namespace that a link is attached to, by inode; none once that is gone (Linux 5.8).
///
/// # Errors
/// The kernel's.
pub fn namespace_of(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    // SAFETY: bpf_link_info is plain integers, for which zero is valid.
    let mut info: bpf_link_info = unsafe { zeroed() };
    object_info(link, &mut info)?;
    // SAFETY: any bytes are a valid u32.
    let inode = unsafe { info.__bindgen_anon_1.netns.netns_ino };
    Ok((inode != 0).then_some(inode))
}

/// The number by which programs know the calling thread's network namespace; none where the kernel
/// doesn't tell (Linux 5.14).
///
/// # Errors
/// The kernel's.
pub fn namespace_cookie() -> io::Result<Option<u64>> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(Some(cookie)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
            error => Err(error),
        },
    }
}

/// A program's id.
///
/// # Errors
/// The kernel's.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: bpf_prog_info is plain integers, for which zero is valid.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    object_info(program, &mut info)?;
    Ok(info.id)
}

/// `T` must be the info structure of the object's kind.
fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = object.as_raw_fd() as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = std::ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// An interface's flags as `ETHTOOL_GFLAGS` gives them (`ETH_FLAG_*` of linux/ethtool.h).
///
/// # Errors
/// The kernel's.
pub fn ethtool_flags(interface: &str) -> io::Result<u32> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // Any socket of the namespace will do to reach its interfaces.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request names an interface by a string that ends in zero and points to an
    // ethtool_value, as SIOCETHTOOL wants; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    match result {
        0 => Ok(value.data),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until every BPF program that runs now has ended: they run inside RCU read-side
/// sections, and this is `synchronize_rcu` (`MEMBARRIER_CMD_GLOBAL`, Linux 4.3).
pub fn rcu_barrier() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full CPUs refuse; a program runs for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
