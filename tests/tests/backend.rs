//! Taking the listening sockets of a backend, out of the process that has them: which ones, whose,
//! and what is refused. Needs root.

mod common;

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use common::wait_until;
use gate_tests::topology::{Place, Process, Side, Topology, server_v4};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::error::{BackendError, Error, exit};
use gate_userspace::sockets::{Backend, listeners_on, take, take_of};
use gate_userspace::sys::pidfd::in_cgroup;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// The user that backends of another user run as.
const NOBODY: u32 = 65_534;

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A listening socket of the server's; `text` is as in `[::]:80 only`.
#[track_caller]
fn listening(topology: &Topology, text: &str) -> Socket {
    let make = || {
        let (bound, only) = match text.strip_suffix(" only") {
            Some(bound) => (address(bound), true),
            None => (address(text), false),
        };
        let socket = Socket::new(Domain::for_address(bound), Type::STREAM, None)?;
        if bound.is_ipv6() {
            socket.set_only_v6(only)?;
        }
        socket.set_reuse_port(true)?;
        socket.bind(&bound.into())?;
        socket.listen(16)?;
        Ok(socket)
    };
    topology.run(Side::Server, make).unwrap()
}

/// A process that has these sockets open, and does nothing with them. This one has them no more.
#[track_caller]
fn hold(topology: &Topology, place: impl Into<Place>, sockets: Vec<Socket>) -> Process {
    hold_as(topology, place, sockets, None)
}

#[track_caller]
fn hold_as(
    topology: &Topology,
    place: impl Into<Place>,
    sockets: Vec<Socket>,
    uid: Option<u32>,
) -> Process {
    let inodes = sockets.iter().map(inode).collect();
    let mut command = Command::new("sleep");
    command.arg("infinity");
    if let Some(uid) = uid {
        command.uid(uid);
    }
    let numbers: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure makes one system call for each number, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for number in &numbers {
                // Cleared, the flag lets it through the exec.
                if libc::fcntl(*number, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let process = topology.spawn(place, &mut command).unwrap();
    drop(sockets);
    wait_until_only(&inodes, process.id());
    process
}

fn inode(socket: &Socket) -> u32 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    let link = link.to_str().unwrap();
    let number = link
        .strip_prefix("socket:[")
        .and_then(|it| it.strip_suffix(']'));
    number.unwrap().parse().unwrap()
}

/// A child that another test is starting has all that this process had, until it runs its program.
#[track_caller]
fn wait_until_only(inodes: &HashSet<u32>, process: u32) {
    let has_some = |id: u32| {
        let links = std::fs::read_dir(format!("/proc/{id}/fd"))
            .into_iter()
            .flatten();
        let links = links.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let names: Vec<String> = inodes.iter().map(|it| format!("socket:[{it}]")).collect();
        links
            .filter(|it| names.iter().any(|name| it == Path::new(name)))
            .count()
            > 0
    };
    wait_until("nobody else has them", || {
        let ids = std::fs::read_dir("/proc").unwrap();
        let ids = ids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.filter(|id| *id != process).all(|id: u32| !has_some(id))
    });
}

#[track_caller]
fn end(process: &Process) {
    process.signal(Signal::SIGKILL).unwrap();
    wait_until("it has ended", || process.has_ended().unwrap());
}

fn on_server(
    topology: &Topology,
    f: impl FnOnce() -> gate_userspace::Result<Backend> + Send,
) -> Result<Backend, Error> {
    topology.run(Side::Server, || Ok(f())).unwrap()
}

/// It is refused with one line that has all of these words; this is it, for a look at the kind.
#[track_caller]
fn refused(found: Result<Backend, Error>, code: u8, words: &[&str]) -> BackendError {
    let error = found.expect_err("it is refused");
    let line = error.to_string();
    assert_eq!(error.exit_code(), code, "{line}");
    for word in words.iter().chain(&["nothing was changed"]) {
        assert!(line.contains(word), "no {word:?} in: {line}");
    }
    assert!(!line.contains('\n') && !line.contains("  "), "{line}");
    match error {
        Error::Backend(error) => error,
        error => panic!("{error:?}"),
    }
}

fn cookies(sockets: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut cookies: Vec<u64> = sockets.into_iter().collect();
    cookies.sort_unstable();
    cookies
}

#[test]
fn what_a_connection_reaches_is_taken() {
    // Who listens, at what it is asked for, which of them are taken, and where they are bound.
    for (all, asked, expected, bound) in [
        (&["10.0.0.5:80"][..], "10.0.0.5:80", &[0][..], "10.0.0.5:80"),
        (&["0.0.0.0:80"], "10.0.0.5:80", &[0], "*:80"),
        (&["[::]:80"], "10.0.0.5:80", &[0], "*:80"),
        (&["[::]:80"], "[fd00::5]:80", &[0], "*:80"),
        (&["[::1]:80"], "[::1]:80", &[0], "[::1]:80"),
        (&["[::]:80 only", "0.0.0.0:80"], "*:80", &[0, 1], "*:80"),
        (&["[::]:80 only", "0.0.0.0:80"], "[::1]:80", &[0], "*:80"),
        (
            &["0.0.0.0:80", "127.0.0.1:80", "127.0.0.1:81"],
            "127.0.0.1:80",
            &[1],
            "127.0.0.1:80",
        ),
        // A group of one process.
        (
            &["10.0.0.5:80", "10.0.0.5:80", "10.0.0.5:80"],
            "10.0.0.5:80",
            &[0, 1, 2],
            "10.0.0.5:80",
        ),
    ] {
        let topology = Topology::new().unwrap();
        let sockets: Vec<Socket> = all.iter().map(|it| listening(&topology, it)).collect();
        let wanted = cookies(expected.iter().map(|it| sockets[*it].cookie().unwrap()));
        let holder = hold(&topology, Side::Server, sockets);
        let mut by_pid = vec![None, Some(holder.id())];
        while let Some(pid) = by_pid.pop() {
            let backend = on_server(&topology, || take(endpoint(asked), pid)).expect(asked);
            let taken = backend
                .sockets
                .iter()
                .map(|it| SockRef::from(&it.fd).cookie().unwrap());
            assert_eq!(cookies(taken), wanted, "{all:?} {asked}");
            assert_eq!(backend.address, endpoint(bound));
            assert_eq!((backend.process.id, backend.uid), (holder.id(), 0));
            assert_eq!(backend.process.name, "sleep");
        }
        end(&holder);
    }
}

#[test]
fn a_taken_socket_is_the_backends_own() {
    let topology = Topology::new().unwrap();
    let holder = hold(
        &topology,
        Side::Server,
        vec![listening(&topology, "10.0.0.5:80")],
    );
    let mut backend = on_server(&topology, || take(endpoint("10.0.0.5:80"), None)).unwrap();
    let client = topology
        .run(Side::Client, || Ok(TcpStream::connect(server_v4(80))?))
        .unwrap();
    let taken = Socket::from(backend.sockets.pop().unwrap().fd);
    let (_connected, from) = taken.accept().unwrap();
    assert_eq!(from.as_socket(), client.local_addr().ok());
    // The duplicate goes with this process, and is closed on exec.
    let flags = fcntl(&taken, FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    end(&holder);
}

#[test]
fn a_group_is_taken_from_all_of_its_processes() {
    let topology = Topology::new().unwrap();
    let sockets: Vec<Socket> = (0..3)
        .map(|_| listening(&topology, "10.0.0.5:80"))
        .collect();
    let all = cookies(sockets.iter().map(|it| it.cookie().unwrap()));
    let holders: Vec<Process> = sockets
        .into_iter()
        .map(|socket| hold(&topology, Side::Server, vec![socket]))
        .collect();
    let whole = on_server(&topology, || take(endpoint("10.0.0.5:80"), None)).unwrap();
    assert_eq!(
        cookies(whole.sockets.iter().map(|it| it.socket.cookie)),
        all
    );
    // One process of it, when that is asked for.
    let second = holders[1].id();
    for one in [
        on_server(&topology, || take_of(second)),
        on_server(&topology, || take(endpoint("10.0.0.5:80"), Some(second))),
    ] {
        let one = one.unwrap();
        assert_eq!((one.sockets.len(), one.process.id), (1, second));
    }
    holders.iter().for_each(end);
}

#[test]
fn where_nothing_listens_it_tells_what_does_elsewhere() {
    let topology = Topology::new().unwrap();
    let at = |text: &str| on_server(&topology, || take(endpoint(text), None));
    let words = ["nothing listens on 10.0.0.5:80: ", "start the backend"];
    refused(at("10.0.0.5:80"), exit::STATE, &words);
    let holder = hold(
        &topology,
        Side::Server,
        vec![
            listening(&topology, "127.0.0.1:80"),
            listening(&topology, "[fd00::5]:80"),
        ],
    );
    let words = ["10.0.0.5:80, but on 127.0.0.1:80, [fd00::5]:80:"];
    refused(at("10.0.0.5:80"), exit::STATE, &words);
    refused(at("*:80"), exit::STATE, &["*:80, but on 127.0.0.1:80, "]);
    // A socket that is only bound is no listener.
    let bound = topology.run(Side::Server, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&address("10.0.0.5:81").into())?;
        Ok(socket)
    });
    refused(at("10.0.0.5:81"), exit::STATE, &["nothing listens"]);
    drop(bound);
    end(&holder);
}

#[test]
fn a_udp_socket_is_told_as_one() {
    let topology = Topology::new().unwrap();
    let _udp = topology.run(Side::Server, || Ok(UdpSocket::bind("[::]:53")?));
    for text in ["10.0.0.5:53", "[::1]:53", "*:53"] {
        let found = on_server(&topology, || take(endpoint(text), None));
        let error = refused(found, exit::STATE, &[text, "but UDP"]);
        assert!(matches!(error, BackendError::OnlyUdp { .. }), "{error:?}");
    }
    let found = on_server(&topology, || take(endpoint("10.0.0.5:54"), None));
    refused(found, exit::STATE, &["nothing listens on 10.0.0.5:54: "]);
}

#[test]
fn a_process_is_asked_for_what_it_listens_with() {
    let topology = Topology::new().unwrap();
    let none = hold(&topology, Side::Server, Vec::new());
    let one = hold(
        &topology,
        Side::Server,
        vec![
            listening(&topology, "0.0.0.0:80"),
            listening(&topology, "[::]:80 only"),
        ],
    );
    let two = hold(
        &topology,
        Side::Server,
        vec![
            listening(&topology, "10.0.0.5:81"),
            listening(&topology, "0.0.0.0:82"),
        ],
    );
    let of = |holder: &Process| {
        let id = holder.id();
        on_server(&topology, || take_of(id))
    };
    let found = of(&one).unwrap();
    assert_eq!(
        (found.address, found.sockets.len()),
        (endpoint("*:80"), 2),
        "{found:?}"
    );
    refused(
        of(&none),
        exit::STATE,
        &["sleep (", "listens on no TCP port"],
    );
    refused(of(&two), exit::USAGE, &["*:82, 10.0.0.5:81: say which"]);
    let id = two.id();
    let found = on_server(&topology, || take(endpoint("10.0.0.5:81"), Some(id)));
    assert_eq!(found.unwrap().sockets.len(), 1);
    // Another's address.
    let found = on_server(&topology, || take(endpoint("10.0.0.5:80"), Some(id)));
    let words = ["does not listen on 10.0.0.5:80, but on *:82, 10.0.0.5:81"];
    refused(found, exit::STATE, &words);
    let id = none.id();
    let found = on_server(&topology, || take(endpoint("10.0.0.5:80"), Some(id)));
    refused(found, exit::STATE, &["listens on no TCP port"]);
    // One that has ended.
    end(&none);
    for found in [
        on_server(&topology, || take_of(id)),
        on_server(&topology, || take(endpoint("10.0.0.5:80"), Some(id))),
    ] {
        refused(found, exit::STATE, &[&format!("no process {id}: ")]);
    }
    [one, two].iter().for_each(end);
}

#[test]
fn another_namespaces_process_is_refused() {
    let topology = Topology::new().unwrap();
    let other = topology.namespace().unwrap();
    let listener = topology.run(&other, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&address("127.0.0.1:80").into())?;
        socket.listen(16)?;
        Ok(socket)
    });
    let holder = hold(&topology, &other, vec![listener.unwrap()]);
    let id = holder.id();
    let enter = format!("nsenter --net=/proc/{id}/ns/net");
    for found in [
        on_server(&topology, || take_of(id)),
        on_server(&topology, || take(endpoint("127.0.0.1:80"), Some(id))),
    ] {
        refused(found, exit::STATE, &["another network namespace", &enter]);
    }
    // By its address alone there is nothing here.
    let found = on_server(&topology, || take(endpoint("127.0.0.1:80"), None));
    refused(found, exit::STATE, &["nothing listens on 127.0.0.1:80"]);
    // A process that is elsewhere by now, with a socket of here.
    let here = hold(&topology, &other, vec![listening(&topology, "10.0.0.5:80")]);
    let id = here.id();
    assert!(on_server(&topology, || take_of(id)).is_ok());
    assert!(on_server(&topology, || take(endpoint("10.0.0.5:80"), None)).is_ok());
    end(&here);
    end(&holder);
}

/// Takes `CAP_SYS_PTRACE` from the calling thread for good.
fn lose_the_right_to_trace() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const SYS_PTRACE: u32 = 19;
    let mut header = [VERSION_3, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: both are as long as version 3 of the call has them, and outlive both calls.
    unsafe {
        if libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        sets[0] &= !(1 << SYS_PTRACE);
        if libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[test]
fn another_users_socket_takes_the_right_to_trace() {
    let topology = Topology::new().unwrap();
    let socket = listening(&topology, "10.0.0.5:80");
    let holder = hold_as(&topology, Side::Server, vec![socket], Some(NOBODY));
    let id = holder.id();
    // With all rights it is no matter whose it is; the socket is of who made it.
    let found = on_server(&topology, || take(endpoint("10.0.0.5:80"), None)).unwrap();
    assert_eq!((found.process.id, found.uid), (id, 0));
    drop(found);
    let without = |f: fn(u32) -> gate_userspace::Result<Backend>| {
        topology
            .run(Side::Server, || {
                lose_the_right_to_trace()?;
                Ok(f(id))
            })
            .unwrap()
    };
    let found = without(|_| take(endpoint("10.0.0.5:80"), None));
    refused(found, exit::RIGHTS, &["root's", "CAP_SYS_PTRACE"]);
    for by_pid in [
        (|id| take_of(id)) as fn(u32) -> gate_userspace::Result<Backend>,
        |id| take(endpoint("10.0.0.5:80"), Some(id)),
    ] {
        refused(
            without(by_pid),
            exit::RIGHTS,
            &["sleep (", "nobody's", "CAP_SYS_PTRACE"],
        );
    }
    end(&holder);
}

#[test]
fn a_socket_whose_process_is_not_seen_is_not_taken() {
    let topology = Topology::new().unwrap();
    let socket = listening(&topology, "10.0.0.5:80");
    // In flight between processes, no descriptor table has it.
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let inodes = HashSet::from([inode(&socket)]);
    send(&near, OwnedFd::from(socket));
    wait_until_only(&inodes, 0);
    let found = on_server(&topology, || take(endpoint("10.0.0.5:80"), None));
    refused(
        found,
        exit::STATE,
        &["no process that can be looked into has it"],
    );
    drop(far);
}

/// Sends a descriptor, and closes it here.
fn send(over: &std::os::unix::net::UnixStream, descriptor: OwnedFd) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let numbers = [descriptor.as_raw_fd()];
    sendmsg::<()>(
        over.as_raw_fd(),
        &[io::IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&numbers)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    drop(descriptor);
}

#[test]
fn a_listener_of_multipath_tcp_is_told_as_one() {
    let topology = Topology::new().unwrap();
    let make = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP))?;
        socket.bind(&address("10.0.0.5:80").into())?;
        socket.listen(16)?;
        Ok(socket)
    };
    let Ok(socket) = topology.run(Side::Server, make) else {
        println!("SKIPPED: needs CONFIG_MPTCP");
        return;
    };
    let holder = hold(&topology, Side::Server, vec![socket]);
    let found = on_server(&topology, || take(endpoint("10.0.0.5:80"), None));
    refused(
        found,
        exit::STATE,
        &["sleep (", "10.0.0.5:80", "Multipath TCP"],
    );
    end(&holder);
}

#[test]
fn a_socket_tells_its_control_group_and_that_its_processes() {
    let topology = Topology::new().unwrap();
    let socket = listening(&topology, "10.0.0.5:80");
    let found = topology.run(Side::Server, || Ok(listeners_on(Some(80))?));
    let [listener] = &found.unwrap()[..] else {
        panic!("one socket listens")
    };
    assert_eq!(listener.cookie, socket.cookie().unwrap());
    match listener.cgroup {
        // The group of the process that made it, which is this one.
        Some(id) => assert!(in_cgroup(id).unwrap().contains(&std::process::id())),
        None => println!("SKIPPED: needs CONFIG_SOCK_CGROUP_DATA"),
    }
}
