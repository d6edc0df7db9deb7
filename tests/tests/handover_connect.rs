//! New connections go to another backend by connect(2), on the host that makes them: the server's
//! side is the proxy's host here, and the backends are on the client's. Needs root and cgroup v2.

mod common;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    BEFORE_RETRANSMISSION, Dial, Ended, LIMIT, MS, assert_refusal, close_at, dial, exists, gate,
    listen_at, refused, shell, snapshot, wait_until, wait_until_held, with_gate,
};
use gate_tests::exe;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{INTERFACE, Side, Topology};
use gate_userspace::cgroups::Cgroup;
use gate_userspace::pins::Pins;
use gate_userspace::steering;
use socket2::{Domain, Socket, Type};

/// The gate's endpoint, and its own backend.
const A: &str = "10.0.0.1:8080";
/// The backend that it is handed to.
const B: &str = "10.0.0.1:8082";
const A6: &str = "[fd00::1]:8080";
const B6: &str = "[fd00::1]:8082";
/// The IPv4 endpoint, as IPv6 sockets name it.
const A_MAPPED: &str = "[::ffff:10.0.0.1]:8080";

const STEERING: &str = "find /sys/fs/bpf/gate -path '*steering*' -type f 2>/dev/null | wc -l";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A backend on another host, which counts who comes.
struct Backend(TcpListener);

impl Backend {
    fn new(topology: &Topology, side: Side, address: &str) -> Self {
        let listener = listen_at(topology, side, at(address));
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    /// The connections that have come since this was asked last.
    fn taken(&self) -> Vec<TcpStream> {
        let next = || match self.0.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        };
        std::iter::from_fn(next).collect()
    }

    /// That one more connection comes, and no other has.
    #[track_caller]
    fn gets_one(&self) -> TcpStream {
        let late = Instant::now() + LIMIT;
        loop {
            // The last part of its handshake may be under way still.
            let mut taken = self.taken();
            assert!(taken.len() < 2, "{taken:?}");
            if let Some(one) = taken.pop() {
                return one;
            }
            assert!(Instant::now() < late, "no connection");
            sleep(MS);
        }
    }

    /// Ends it, and waits until nobody has its socket any more.
    fn close(self, topology: &Topology, side: Side) {
        close_at(topology, side, self.0);
    }
}

/// The proxy's host, and two backends on another.
struct Proxy {
    topology: Topology,
    a: Backend,
    b: Backend,
}

impl Proxy {
    fn new() -> Self {
        let topology = Topology::new().unwrap();
        let a = Backend::new(&topology, Side::Client, A);
        let b = Backend::new(&topology, Side::Client, B);
        Self { topology, a, b }
    }

    /// Hands the gate over to B.
    fn handed() -> Self {
        let proxy = Self::new();
        proxy.hand_over(&["--to", B]);
        proxy
    }

    #[track_caller]
    fn hand_over(&self, args: &[&str]) {
        gate(&self.topology, &[&["handover", A], args].concat());
    }

    /// Connects as a process of the proxy's host does.
    #[track_caller]
    fn connect(&self, target: &str) -> TcpStream {
        let target = at(target);
        let connect = || Ok(TcpStream::connect_timeout(&target, LIMIT)?);
        self.topology.run(Side::Server, connect).unwrap()
    }

    /// That a connection to A gets to this backend, and believes that it is at A.
    #[track_caller]
    fn goes_to(&self, backend: &Backend) {
        let stream = self.connect(A);
        assert_eq!(stream.peer_addr().unwrap(), at(A));
        backend.gets_one();
    }
}

/// Both ends can talk to each other.
#[track_caller]
fn talk(mut client: &TcpStream, mut backend: &TcpStream) {
    backend.set_nonblocking(false).unwrap();
    client.write_all(b"there").unwrap();
    backend.read_exact(&mut [0; 5]).unwrap();
    backend.write_all(b"back").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn new_connections_go_to_the_backend_and_their_process_believes_that_it_got_what_it_asked_for() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::new();
    let kept = proxy.connect(A);
    let at_a = proxy.a.gets_one();
    proxy.hand_over(&["--to", B]);
    let stream = proxy.connect(A);
    assert_eq!(stream.peer_addr().unwrap(), at(A));
    let at_b = proxy.b.gets_one();
    assert_eq!(at_b.peer_addr().unwrap(), stream.local_addr().unwrap());
    // What was established before goes on where it is, and what was asked for by its own name is
    // told by that.
    talk(&kept, &at_a);
    talk(&stream, &at_b);
    assert_eq!(kept.peer_addr().unwrap(), at(A));
    assert_eq!(proxy.connect(B).peer_addr().unwrap(), at(B));
    proxy.b.gets_one();
    proxy.hand_over(&["--back"]);
    proxy.goes_to(&proxy.a);
    talk(&stream, &at_b);
    talk(&kept, &at_a);
    // With the last handover go the programs that tell what was asked for.
    assert_eq!(stream.peer_addr().unwrap(), at(B));
    assert_eq!(shell(&proxy.topology, Side::Server, STEERING), "0\n");
}

#[test]
fn ipv6_and_ipv4_on_ipv6_sockets() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::handed();
    let v6 = [A6, B6].map(|it| Backend::new(&proxy.topology, Side::Client, it));
    let stream = proxy.connect(A6);
    assert_eq!(stream.peer_addr().unwrap(), at(A6));
    v6[0].gets_one();
    gate(&proxy.topology, &["handover", A6, "--to", B6]);
    let stream = proxy.connect(A6);
    assert_eq!(stream.peer_addr().unwrap(), at(A6));
    v6[1].gets_one();
    // That is an IPv4 connection, and goes as such.
    let mapped = proxy.connect(A_MAPPED);
    assert_eq!(mapped.peer_addr().unwrap(), at(A_MAPPED));
    proxy.b.gets_one();
    for (args, words) in [
        (["handover", A, "--to", B6], ["no IPv4", A]),
        (["handover", A6, "--to", B], ["no IPv6", A6]),
        (["handover", A, "--to", "*:8082"], ["*:8082", "by address"]),
    ] {
        refused(&proxy.topology, &args, 3, &words);
    }
    let mut wildcard = vec!["handover", "*:8080", "--to", B];
    wildcard.extend(["--hook", "cgroup-connect"]);
    refused(&proxy.topology, &wildcard, 3, &["*:8080", "by address"]);
}

#[test]
fn each_backend_gets_its_part() {
    const ALL: usize = 1000;
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::new();
    proxy.hand_over(&["--to", &format!("{A}=9"), "--to", &format!("{B}=1")]);
    let target = at(A);
    let connect = |_| Ok(TcpStream::connect_timeout(&target, LIMIT)?);
    let all = || (0..ALL).map(connect).collect();
    let streams: Vec<TcpStream> = proxy.topology.run(Side::Server, all).unwrap();
    let told = |stream: &TcpStream| stream.peer_addr().unwrap() == target;
    assert!(streams.iter().all(told));
    let (mut a, mut b) = (0, 0);
    let late = Instant::now() + LIMIT;
    while a + b < ALL && Instant::now() < late {
        a += proxy.a.taken().len();
        b += proxy.b.taken().len();
    }
    assert_eq!(a + b, ALL);
    // Six standard deviations of 1000 tosses at 1 in 10.
    assert!((100 - 57..=100 + 57).contains(&b), "{a} at A, {b} at B");
    let args = [
        "handover",
        A,
        "--to",
        "10.0.0.1:8082=0",
        "--to",
        "10.0.0.1:8083=0",
    ];
    refused(&proxy.topology, &args, 2, &["weights sum to 0"]);
    proxy.hand_over(&["--to", &format!("{A}=0"), "--to", B]);
    for _ in 0..20 {
        proxy.goes_to(&proxy.b);
    }
}

#[test]
fn other_namespaces_and_other_protocols_are_left_alone() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::handed();
    // The same cgroup, another network namespace.
    let elsewhere = || Ok(TcpStream::connect_timeout(&at(A), LIMIT)?);
    let stream = proxy.topology.run(Side::Client, elsewhere).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), at(A));
    proxy.a.gets_one();
    let datagram = || {
        let socket = UdpSocket::bind("10.0.0.5:0")?;
        socket.connect(A)?;
        Ok(socket.peer_addr()?)
    };
    let peer = proxy.topology.run(Side::Server, datagram).unwrap();
    assert_eq!(peer, at(A));
    proxy.goes_to(&proxy.b);
}

#[test]
fn a_connect_that_does_not_wait_goes_there_too() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::handed();
    let socket = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&at(A).into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            result => result?,
        }
        Ok(TcpStream::from(socket))
    };
    let stream = proxy.topology.run(Side::Server, socket).unwrap();
    wait_until("it is connected", || stream.peer_addr().is_ok());
    assert_eq!(stream.peer_addr().unwrap(), at(A));
    proxy.b.gets_one();
}

#[test]
fn a_socket_that_is_used_again_is_told_of_its_own_connection() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let Proxy { topology, a, b } = Proxy::handed();
    b.close(&topology, Side::Client);
    let socket = topology
        .run(Side::Server, || {
            Ok(Socket::new(Domain::IPV4, Type::STREAM, None)?)
        })
        .unwrap();
    let refused = socket.connect(&at(A).into()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let b = Backend::new(&topology, Side::Client, B);
    socket.connect(&at(B).into()).unwrap();
    b.gets_one();
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(at(B)));
    assert!(a.taken().is_empty());
}

#[test]
fn a_backend_of_this_host_that_is_gone_leaves_the_endpoint_its_own() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    const HERE: &str = "10.0.0.5:8083";
    let proxy = Proxy::new();
    let words = &[HERE, "listens"];
    refused(&proxy.topology, &["handover", A, "--to", HERE], 3, words);
    for loopback in [HERE, "127.0.0.1:8084"] {
        let local = Backend::new(&proxy.topology, Side::Server, loopback);
        proxy.hand_over(&["--to", loopback]);
        proxy.goes_to(&local);
        local.close(&proxy.topology, Side::Server);
        proxy.goes_to(&proxy.a);
        // And back, once it is there again.
        let local = Backend::new(&proxy.topology, Side::Server, loopback);
        proxy.goes_to(&local);
    }
}

/// Holds, and connects; returns when that is held.
#[track_caller]
fn held(proxy: &Proxy, backend: &Backend) {
    gate(&proxy.topology, &["hold", A]);
    let client = dial(&proxy.topology, Side::Server, Dial::to(at(A)));
    wait_until_held(&proxy.topology, A, 1);
    assert!(!client.is_finished());
    let start = Instant::now();
    gate(&proxy.topology, &["open", A]);
    let (ended, _, socket) = client.finish_with_socket();
    assert_eq!(ended, Ended::Connected);
    assert!(start.elapsed() < BEFORE_RETRANSMISSION);
    let peer = socket.unwrap().peer_addr().unwrap();
    assert_eq!(peer.as_socket(), Some(at(A)));
    backend.gets_one();
}

#[test]
fn a_closed_gate_holds_and_rejects_what_is_bound_for_its_backend() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::new();
    gate(&proxy.topology, &["up", "--hook", "tc-egress", INTERFACE]);
    held(&proxy, &proxy.a);
    proxy.hand_over(&["--to", B]);
    held(&proxy, &proxy.b);
    gate(&proxy.topology, &["reject", A]);
    let ended = |target| dial(&proxy.topology, Side::Server, Dial::to(target)).finish();
    assert_eq!(ended(at(A)), Ended::Refused);
    // Who goes to the backend by its own name is none of the gate's business.
    assert_eq!(ended(at(B)), Ended::Connected);
    proxy.b.gets_one();
    gate(&proxy.topology, &["open", A]);
    // Held, handed over, and released: each gets where it was sent.
    proxy.hand_over(&["--back"]);
    gate(&proxy.topology, &["hold", A]);
    let before = dial(&proxy.topology, Side::Server, Dial::to(at(A)));
    wait_until_held(&proxy.topology, A, 1);
    proxy.hand_over(&["--to", B]);
    let after = dial(&proxy.topology, Side::Server, Dial::to(at(A)));
    wait_until_held(&proxy.topology, A, 2);
    gate(&proxy.topology, &["open", A]);
    assert_eq!(before.finish(), Ended::Connected);
    assert_eq!(after.finish(), Ended::Connected);
    proxy.a.gets_one();
    proxy.b.gets_one();
}

#[test]
fn a_closed_gate_holds_what_is_bound_for_a_backend_of_this_host() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    const HERE: &str = "10.0.0.5:8083";
    let proxy = Proxy::new();
    gate(&proxy.topology, &["up", "--hook", "tc-egress", INTERFACE]);
    let local = Backend::new(&proxy.topology, Side::Server, HERE);
    let words = &[HERE, "`gate up lo`"];
    gate(&proxy.topology, &["hold", A]);
    refused(&proxy.topology, &["handover", A, "--to", HERE], 3, words);
    gate(&proxy.topology, &["open", A]);
    proxy.hand_over(&["--to", HERE]);
    refused(&proxy.topology, &["hold", A], 3, words);
    gate(&proxy.topology, &["up", "lo"]);
    held(&proxy, &local);
    gate(&proxy.topology, &["reject", A]);
    let client = dial(&proxy.topology, Side::Server, Dial::to(at(A)));
    assert_eq!(client.finish(), Ended::Refused);
}

#[test]
fn a_restart_checks_the_gates_own_backend() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::handed();
    // A check by TCP ends before the backend's process sees it; one by HTTP waits for an answer.
    let check = format!("http://{A}/");
    let restart = [
        "restart",
        A,
        "--check",
        &check,
        "--max-hold",
        "2s",
        "--",
        "true",
    ];
    let output = proxy.topology.gate(restart).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert!(!proxy.a.taken().is_empty());
    assert!(proxy.b.taken().is_empty());
    proxy.goes_to(&proxy.b);
}

#[test]
fn nothing_is_left_after_down() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::new();
    let before = snapshot(&proxy.topology);
    proxy.hand_over(&["--to", B]);
    assert_eq!(shell(&proxy.topology, Side::Server, STEERING), "4\n");
    proxy.goes_to(&proxy.b);
    gate(&proxy.topology, &["down"]);
    assert_eq!(snapshot(&proxy.topology), before);
    assert!(!exists(&proxy.topology, "/sys/fs/bpf/gate"));
    proxy.goes_to(&proxy.a);
}

/// A control group of this test's own.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let root = Cgroup::at(None).unwrap().path;
        let path = root.join(format!("gate-test-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Only a process that is still in it keeps it.
        let late = Instant::now() + LIMIT;
        while self.0.exists() && fs::remove_dir(&self.0).is_err() && Instant::now() < late {
            sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn only_processes_of_the_control_group_are_meant() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let proxy = Proxy::new();
    let group = Group::new();
    let path = group.0.to_str().unwrap();
    for wrong in ["/proc", "/no/such/folder"] {
        let args = ["handover", A, "--to", B, "--cgroup", wrong];
        refused(&proxy.topology, &args, 2, &[wrong, "cgroup v2"]);
    }
    proxy.hand_over(&["--to", B, "--cgroup", path]);
    proxy.goes_to(&proxy.a);
    let inside = |expected: &Backend| {
        let mut shell = Command::new("sh");
        let line = "echo 0 > \"$0\"/cgroup.procs && exec \"$@\"";
        shell.args(["-c", line, path]);
        shell.arg(exe::lab().unwrap()).args(["peer", A]);
        let output = proxy.topology.output(Side::Server, &mut shell, LIMIT);
        assert_eq!(output.unwrap().ok().unwrap().stdout, format!("{A}\n"));
        expected.gets_one();
    };
    inside(&proxy.b);
    // All processes can't be meant at the same time.
    refused(
        &proxy.topology,
        &["handover", A, "--to", B],
        1,
        &["another cgroup", "--back"],
    );
    proxy.hand_over(&["--back"]);
    inside(&proxy.a);
    proxy.hand_over(&["--to", B, "--cgroup", path]);
    // With the control group goes what was attached to it.
    drop(group);
    wait_until("nothing is attached", || {
        let is_attached = || Ok(steering::has_connect(&Pins::here()?));
        !proxy.topology.run(Side::Server, is_attached).unwrap()
    });
    proxy.goes_to(&proxy.a);
    proxy.hand_over(&["--to", B]);
    proxy.goes_to(&proxy.b);
}

#[test]
fn without_a_cgroup_hierarchy_nothing_is_changed() {
    let proxy = Proxy::new();
    let before = snapshot(&proxy.topology);
    let root = Cgroup::at(None).unwrap().path;
    let inner = format!(
        "umount --lazy {} && exec \"$0\" handover {A} --to {B}",
        root.display()
    );
    let line = format!("exec unshare --mount sh -c '{inner}' \"$0\"");
    let output = with_gate(&proxy.topology, &line);
    assert_refusal(&output, 1, &["no cgroup v2 hierarchy", "--hook sk-lookup"]);
    assert_eq!(snapshot(&proxy.topology), before);
    proxy.goes_to(&proxy.a);
}
