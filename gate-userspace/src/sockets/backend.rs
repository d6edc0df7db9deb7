//! Takes the listening sockets of a backend: duplicates of them, by `pidfd_getfd` (Linux 5.6), from
//! the process that has them. The backend need not know, and notices nothing.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::unistd::{Uid, User};
use socket2::{Protocol, SockRef};

use super::holders::{self, Held};
use super::listener::{Listener, has_udp, listeners_on, places, reached};
use super::owners::Process;
use crate::endpoint::Endpoint;
use crate::error::{BackendError, Error, Result};
use crate::features;
use crate::rights;
use crate::sys::pidfd;

/// How often it is looked again where a backend is replaced at this very moment.
const TRIES: usize = 3;

/// A listening socket of a backend, as this process has it now.
#[derive(Debug)]
pub struct Taken {
    /// The duplicate. It keeps the port in use, so it must not live longer than it is needed.
    pub fd: OwnedFd,
    /// The socket.
    pub socket: Listener,
}

/// What takes new connections at an address.
#[derive(Debug)]
pub struct Backend {
    /// Where it is bound; `*` where to any address.
    pub address: Endpoint,
    /// All of its sockets: a `SO_REUSEPORT` group, those of both families, or just one.
    pub sockets: Vec<Taken>,
    /// The process from which the first was taken.
    pub process: Process,
    /// The user that made the first.
    pub uid: u32,
}

/// Takes the sockets that a connection to `address` reaches in the calling thread's network
/// namespace; with a process, only those that it has.
///
/// # Errors
/// [`BackendError`], [`Error::Kernel`], and the kernel's.
pub fn take(address: Endpoint, pid: Option<u32>) -> Result<Backend> {
    for _ in 1..TRIES {
        let found = try_take(address, pid);
        if !matches!(found, Err(Error::Backend(BackendError::NoHolder { .. }))) {
            return found;
        }
        // It may have closed them, for others to listen in its place.
    }
    try_take(address, pid)
}

/// As [`take`]; none where nothing listens.
///
/// # Errors
/// As [`take`], but for that.
pub fn take_if_any(address: Endpoint) -> Result<Option<Backend>> {
    match take(address, None) {
        Ok(backend) => Ok(Some(backend)),
        Err(Error::Backend(BackendError::NothingListens { .. } | BackendError::OnlyUdp { .. })) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Takes the sockets that a process listens with, where all of them are at one address.
///
/// # Errors
/// As [`take`].
pub fn take_of(pid: u32) -> Result<Backend> {
    let (process, had) = of_process(pid)?;
    match places(&had)[..] {
        [] => Err(no_listener(process)),
        [address] => take_all(address, &had, Some(pid)),
        ref several => Err(BackendError::ListensAtSeveral {
            process,
            at: several.to_vec(),
        }
        .into()),
    }
}

fn try_take(address: Endpoint, pid: Option<u32>) -> Result<Backend> {
    let all = list(Some(address.port))?;
    let Some(pid) = pid else {
        let found = reached(&all, address);
        return match found.is_empty() {
            true => Err(nothing_at(address, &all)),
            false => take_all(address, &found, None),
        };
    };
    let (process, had) = of_process(pid)?;
    // Beside another's of the same address, say in one `SO_REUSEPORT` group, its own are meant.
    let found = reached(&had, address);
    match (found.is_empty(), had.is_empty()) {
        (false, _) => take_all(address, &found, Some(pid)),
        (true, true) => Err(no_listener(process)),
        (true, false) => Err(BackendError::ListensElsewhere {
            process,
            address,
            at: places(&had),
        }
        .into()),
    }
}

fn list(port: Option<u16>) -> Result<Vec<Listener>> {
    listeners_on(port).map_err(Error::call("ask", "sock_diag"))
}

/// A process and the sockets that it listens with in this network namespace.
fn of_process(pid: u32) -> Result<(Process, Vec<Listener>)> {
    let process = Process::find(pid).ok_or(BackendError::NoProcess { id: pid })?;
    let inodes = match holders::sockets_of(pid) {
        Ok(inodes) => inodes,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let uid = fs::metadata(format!("/proc/{pid}")).map_or(0, |it| it.uid());
            let user = user(uid);
            return Err(BackendError::OtherUsersProcess { process, user }.into());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BackendError::NoProcess { id: pid }.into());
        }
        Err(error) => return Err(Error::call("read", format!("/proc/{pid}/fd"))(error)),
    };
    let mut all = list(None)?;
    all.retain(|it| inodes.contains(&it.inode));
    Ok((process, all))
}

/// It has none here; it may have some in its own network namespace.
fn no_listener(process: Process) -> Error {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
    let here = namespace("thread-self");
    let there = namespace(&process.id.to_string());
    let is_elsewhere = matches!((here, there), (Ok(here), Ok(there)) if here != there);
    match is_elsewhere {
        true => BackendError::OtherNamespace { process }.into(),
        false => BackendError::ListensNowhere { process }.into(),
    }
}

/// What there is instead.
fn nothing_at(address: Endpoint, on_port: &[Listener]) -> Error {
    // Many kernels have sock_diag for UDP as a module, which may be missing.
    if on_port.is_empty() && has_udp(address).unwrap_or(false) {
        return BackendError::OnlyUdp { address }.into();
    }
    let mut elsewhere: Vec<SocketAddr> = on_port.iter().map(|it| it.bound).collect();
    elsewhere.sort_unstable();
    elsewhere.dedup();
    BackendError::NothingListens { address, elsewhere }.into()
}

/// Takes each of these from a process that has it, or from the one that is asked for.
fn take_all(address: Endpoint, listeners: &[Listener], pid: Option<u32>) -> Result<Backend> {
    let mut sockets: Vec<Taken> = Vec::with_capacity(listeners.len());
    let mut first = None;
    let mut refused = None;
    let was_denied = holders::search(listeners, pid, |held| {
        let Some(socket) = listeners.iter().find(|it| it.inode == held.inode) else {
            return Ok(false);
        };
        match duplicate(address, socket, held)? {
            Duplicated::Done(fd) => {
                first.get_or_insert((held.process, socket));
                let socket = socket.clone();
                sockets.push(Taken { fd, socket });
                return Ok(true);
            }
            Duplicated::Denied => refused = Some(held.process),
            Duplicated::Gone => {}
        }
        Ok(false)
    })?;
    let is_missing = |it: &&Listener| !sockets.iter().any(|taken| taken.socket == **it);
    match (listeners.iter().find(is_missing), first) {
        (None, Some((id, socket))) => Ok(Backend {
            address: socket.endpoint(),
            process: process(id),
            uid: socket.uid,
            sockets,
        }),
        (missing, _) => {
            let uid = missing.map_or(0, |it| it.uid);
            Err(not_to_be_had(address, uid, was_denied, refused)?.into())
        }
    }
}

/// Why a user's socket was not found, or not let go of by the process that `refused`.
fn not_to_be_had(
    address: Endpoint,
    uid: u32,
    was_denied: bool,
    refused: Option<u32>,
) -> Result<BackendError> {
    let may_trace = rights::may_trace()?;
    Ok(match refused {
        _ if !may_trace && (was_denied || refused.is_some()) => BackendError::OtherUser {
            address,
            user: user(uid),
        },
        Some(id) => BackendError::NoTracing {
            process: process(id),
            why: match nobody_may_trace() {
                true => "kernel.yama.ptrace_scope is 3, which forbids it until the next boot",
                false => "a security module forbids it, or it is in another user namespace",
            },
        },
        None => BackendError::NoHolder { address },
    })
}

/// What came of a try to duplicate a socket.
enum Duplicated {
    Done(OwnedFd),
    /// The process, or its descriptor, is gone, or is something else by now.
    Gone,
    Denied,
}

/// Duplicates a descriptor and makes sure that it is this socket, and listens.
fn duplicate(address: Endpoint, socket: &Listener, held: Held) -> Result<Duplicated> {
    let process_fd = match pidfd::open(held.process) {
        Err(error) => return failed("pidfd_open", held, error),
        Ok(fd) => fd,
    };
    let fd = match pidfd::duplicate(process_fd.as_fd(), held.descriptor) {
        Err(error) => return failed("pidfd_getfd", held, error),
        Ok(fd) => fd,
    };
    let asked = SockRef::from(&fd);
    // The socket below a listener of Multipath TCP has its inode, but not its cookie.
    if asked.protocol().is_ok_and(|it| it == Some(Protocol::MPTCP)) {
        let process = process(held.process);
        return Err(BackendError::Multipath { address, process }.into());
    }
    let is_it = asked.cookie().is_ok_and(|cookie| cookie == socket.cookie);
    match is_it && asked.is_listener().unwrap_or(false) {
        true => Ok(Duplicated::Done(fd)),
        false => Ok(Duplicated::Gone),
    }
}

fn failed(call: &'static str, held: Held, error: io::Error) -> Result<Duplicated> {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::EBADF | libc::EINVAL | libc::ENOENT) => Ok(Duplicated::Gone),
        Some(libc::EPERM | libc::EACCES) => Ok(Duplicated::Denied),
        Some(libc::ENOSYS) => Err(Error::Kernel {
            release: features::release(),
            feature: "pidfd_getfd",
            since: "5.6",
        }),
        _ => Err(Error::call(call, process(held.process).to_string())(error)),
    }
}

fn nobody_may_trace() -> bool {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    scope.is_ok_and(|scope| scope.trim() == "3")
}

fn process(id: u32) -> Process {
    Process::find(id).unwrap_or(Process {
        id,
        name: String::new(),
    })
}

/// A user's name, or the number of one that has none.
fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => format!("user {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// A listening socket of this process, as sock_diag shows it.
    fn own() -> (TcpListener, Listener) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = listener.local_addr().expect("an address");
        let all = listeners_on(Some(address.port())).expect("a list");
        let found = all.into_iter().find(|it| it.bound == address);
        (listener, found.expect("the socket"))
    }

    fn held(by: &impl std::os::fd::AsRawFd) -> Held {
        Held {
            process: std::process::id(),
            descriptor: by.as_raw_fd(),
            inode: 0,
        }
    }

    #[test]
    fn a_process_takes_its_own() {
        let (listener, found) = own();
        let address = found.endpoint();
        for pid in [None, Some(std::process::id())] {
            let backend = take(address, pid).expect("its socket");
            assert_eq!(backend.address, address);
            assert_eq!(backend.process.id, std::process::id());
            assert_eq!(backend.sockets.len(), 1);
            assert_eq!(backend.sockets[0].socket, found);
            assert_ne!(backend.sockets[0].fd.as_raw_fd(), listener.as_raw_fd());
        }
    }

    #[test]
    fn only_the_very_socket_is_taken() {
        let (listener, found) = own();
        let is_taken = |socket: &Listener, held: Held| {
            let duplicated = duplicate(socket.endpoint(), socket, held).expect("an answer");
            matches!(duplicated, Duplicated::Done(_))
        };
        assert!(is_taken(&found, held(&listener)));
        // Another one has its number by now.
        let (other, _) = own();
        assert!(!is_taken(&found, held(&other)));
        let client = std::net::TcpStream::connect(found.bound).expect("a connection");
        assert!(!is_taken(&found, held(&client)));
        let file = fs::File::open("/dev/null").expect("a file");
        assert!(!is_taken(&found, held(&file)));
        // Nothing has it.
        let nobody = Held {
            descriptor: i32::MAX,
            ..held(&listener)
        };
        assert!(!is_taken(&found, nobody));
        // It listens no more.
        // SAFETY: the call takes two integers and touches no memory of ours.
        let shut = unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
        assert_eq!(shut, 0);
        assert!(!is_taken(&found, held(&listener)));
    }

    #[test]
    fn what_the_kernel_answers_is_told_apart() {
        let by = |errno| {
            let held = Held {
                process: std::process::id(),
                descriptor: 0,
                inode: 0,
            };
            failed("pidfd_getfd", held, io::Error::from_raw_os_error(errno))
        };
        for errno in [libc::ESRCH, libc::EBADF, libc::EINVAL] {
            assert!(matches!(by(errno), Ok(Duplicated::Gone)), "{errno}");
        }
        assert!(matches!(by(libc::EPERM), Ok(Duplicated::Denied)));
        let Err(error @ Error::Kernel { .. }) = by(libc::ENOSYS) else {
            panic!("an old kernel is told as one")
        };
        assert!(error.to_string().contains("pidfd_getfd"), "{error}");
        assert!(matches!(by(libc::EMFILE), Err(Error::Call { .. })));
    }
}
