//! A release is no faster than the listeners take it. Needs root.

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, LIMIT, MS, PORT, UNTIL_LET_GO, close, count, gate,
    gate_status, let_go, mode, shell, start_restart, wait_until, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::load::{Load, Outcome};
use gate_tests::nft;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4, server_v6};
use gate_userspace::sockets;
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(gate_tests::topology::SERVER_V4), PORT);
/// A gate that stays closed, so that the data path goes on counting.
const OTHER: &str = "10.0.0.5:9";
/// The kernel's counters of listeners that could not take a SYN, or a connection.
const OVERFLOWS: [&str; 5] = [
    "ListenOverflows",
    "ListenDrops",
    "TCPReqQFullDrop",
    "TCPReqQFullDoCookies",
    "SyncookiesSent",
];

/// The counters of /proc/net/netstat of the server.
fn netstat(topology: &Topology) -> BTreeMap<String, u64> {
    let text = shell(topology, Side::Server, "cat /proc/thread-self/net/netstat");
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines.chunks_exact(2).flat_map(|pair| {
        let names = pair[0].split_whitespace().skip(1);
        names.zip(pair[1].split_whitespace().skip(1))
    });
    let counter = |(name, value): (&str, &str)| (name.to_owned(), value.parse().unwrap_or(0));
    pairs.map(counter).collect()
}

#[track_caller]
fn assert_no_overflows(topology: &Topology) {
    let counters = netstat(topology);
    for name in OVERFLOWS {
        assert_eq!(counters[name], 0, "{name}");
    }
}

/// Nobody was connected by a retransmission: each injected SYN passed the hook once, on its way in,
/// and no other did, before the gate was open or after.
#[track_caller]
fn assert_not_retransmitted(topology: &Topology, endpoint: &str) {
    let counted = |counter| count(topology, endpoint, counter);
    let released = counted(Counter::Released);
    // The last may come by when the gate is open already.
    let came_by = counted(Counter::Replayed) + counted(Counter::Passed);
    assert_eq!(came_by, released);
    assert_eq!(counted(Counter::Held), released);
    assert_eq!(counted(Counter::Expired), 0);
}

/// A socket that listens in the server namespace.
fn listen(topology: &Topology, address: SocketAddr, backlog: i32) -> TcpListener {
    let listener = topology.run(Side::Server, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)?;
        Ok(socket.into())
    });
    listener.unwrap()
}

/// Accepts at a listener until it is dropped, and keeps what it accepted.
struct Acceptor {
    done: Arc<AtomicBool>,
    /// Their peers, in order.
    accepted: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Acceptor {
    /// With this pause after each connection.
    fn start(listener: TcpListener, pause: Duration) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let (is_done, counted) = (Arc::clone(&done), Arc::clone(&accepted));
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let mut streams = Vec::new();
            while !is_done.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        streams.push(stream);
                        counted.lock().unwrap().push(peer);
                        sleep(pause);
                    }
                    Err(_) => sleep(MS / 5),
                }
            }
        });
        Self { done, accepted }
    }

    fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    fn peers(&self) -> Vec<SocketAddr> {
        self.accepted.lock().unwrap().clone()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
    }
}

/// A gate at an interface, with the test's endpoint held, and another.
fn held(interface: &str, lease: &str) -> Topology {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", interface]);
    gate(&topology, &["hold", ENDPOINT, OTHER, "--for", lease]);
    topology
}

/// As [`held`], with so many clients that wait.
fn held_clients(interface: &str, lease: &str, clients: usize) -> (Topology, Clients) {
    let topology = held(interface, lease);
    let clients = start_clients(&topology, interface, clients);
    (topology, clients)
}

fn start_clients(topology: &Topology, interface: &str, count: usize) -> Clients {
    let side = match interface {
        "lo" => Side::Server,
        _ => Side::Client,
    };
    let clients = Clients::start_at(topology, side, TARGET, count, None);
    wait_until_held(topology, ENDPOINT, count);
    clients
}

/// The field of a JSON answer.
fn field(output: &gate_tests::topology::Output, name: &str) -> f64 {
    let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    json[name].as_f64().unwrap_or_else(|| panic!("{output}"))
}

// ---- The accept queue ----

#[test]
fn five_thousand_go_through_a_backlog_of_128_and_none_by_a_retransmission() {
    const COUNT: usize = 5_000;
    for interface in [INTERFACE, "lo"] {
        let topology = held(interface, "60s");
        let listener = listen(&topology, TARGET, 128);
        let acceptor = Acceptor::start(listener, Duration::ZERO);
        let clients = start_clients(&topology, interface, COUNT);
        let start = Instant::now();
        let output = gate(&topology, &["open", "--json", ENDPOINT]);
        println!(
            "{interface}: open in {:?}: {}",
            start.elapsed(),
            output.stdout.trim()
        );
        assert_eq!(field(&output, "released"), 5_000.0, "{output}");
        assert_eq!(field(&output, "left"), 0.0, "{output}");
        clients.finish_connected();
        println!("{interface}: all connected after {:?}", start.elapsed());
        wait_until("all are accepted", || acceptor.accepted() == COUNT);
        assert_no_overflows(&topology);
        assert_not_retransmitted(&topology, ENDPOINT);
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), COUNT as u64);
    }
}

#[test]
fn a_slow_listener_is_waited_for_and_never_more_than_half_full() {
    const COUNT: usize = 100;
    for interface in [INTERFACE, "lo"] {
        let (topology, clients) = held_clients(interface, "60s", COUNT);
        let listener = listen(&topology, TARGET, 16);
        let acceptor = Acceptor::start(listener, MS * 5);
        let open = topology.spawn_gate(["open", ENDPOINT]).unwrap();
        let endpoint = [ENDPOINT.parse().unwrap()];
        let mut most = 0;
        while acceptor.accepted() < COUNT - 10 {
            let pending = topology.run(Side::Server, || Ok(sockets::pending(&endpoint)?));
            most = most.max(pending.unwrap().queued);
            sleep(MS);
        }
        open.wait(LIMIT).unwrap().ok().unwrap();
        clients.finish_connected();
        assert!((2..=8).contains(&most), "{most} queued");
        assert_no_overflows(&topology);
        assert_not_retransmitted(&topology, ENDPOINT);
    }
}

#[test]
fn new_connections_queue_behind_the_held_ones() {
    let (topology, first) = held_clients(INTERFACE, "60s", 40);
    let listener = listen(&topology, TARGET, 8);
    let open = topology.spawn_gate(["open", ENDPOINT]).unwrap();
    wait_until("half the backlog is taken", || first.connected() == 4);
    let second = Clients::start(&topology, TARGET, 10, Some(20_000));
    wait_until("the new ones are held", || {
        gate_status(&topology, ENDPOINT).waiting.held == 46
    });
    assert_eq!((mode(&topology, ENDPOINT), second.connected()), ("hold", 0));
    let acceptor = Acceptor::start(listener, MS * 2);
    second.finish_connected();
    open.wait(LIMIT).unwrap().ok().unwrap();
    assert_eq!(mode(&topology, ENDPOINT), "open");
    wait_until("all are accepted", || acceptor.accepted() == 50);
    let is_new = |peer: &&SocketAddr| (20_000..20_010).contains(&peer.port());
    let ahead = acceptor.peers()[..40].iter().filter(is_new).count();
    assert!(
        ahead <= 8,
        "{ahead} of the new ones were accepted before the old ones"
    );
    assert_no_overflows(&topology);
    first.finish_connected();
}

#[test]
fn each_listener_of_a_reuseport_group_is_paced_by_its_own_queue() {
    const COUNT: usize = 400;
    const BACKLOG: i32 = 16;
    let topology = held(INTERFACE, "60s");
    let mut listeners: Vec<TcpListener> =
        (0..4).map(|_| listen(&topology, TARGET, BACKLOG)).collect();
    let stuck = listeners.pop().unwrap();
    let acceptors: Vec<Acceptor> = listeners
        .into_iter()
        .map(|it| Acceptor::start(it, Duration::ZERO))
        .collect();
    let accepted = || acceptors.iter().map(Acceptor::accepted).sum::<usize>();
    let clients = start_clients(&topology, INTERFACE, COUNT);
    let open = topology.spawn_gate(["open", ENDPOINT]).unwrap();
    // The fourth has half its backlog and no more; nobody else waits for it.
    wait_until("the others' are through", || {
        let waiting = gate_status(&topology, ENDPOINT).waiting.held;
        waiting + accepted() + BACKLOG as usize / 2 == COUNT && accepted() > COUNT / 2
    });
    let stuck = Acceptor::start(stuck, Duration::ZERO);
    open.wait(LIMIT).unwrap().ok().unwrap();
    clients.finish_connected();
    wait_until("all are accepted", || {
        accepted() + stuck.accepted() == COUNT
    });
    assert!(stuck.accepted() > BACKLOG as usize, "{}", stuck.accepted());
    assert_no_overflows(&topology);
    assert_not_retransmitted(&topology, ENDPOINT);
}

#[test]
fn a_listener_with_the_address_goes_before_one_with_any() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", "*:8080", OTHER, "--for", "60s"]);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
    let dual = Acceptor::start(listen(&topology, any, 8), Duration::ZERO);
    let exact = listen(&topology, TARGET, 8);
    let v4 = Clients::start(&topology, TARGET, 20, None);
    let v6 = Clients::start(&topology, server_v6(PORT), 20, None);
    wait_until_held(&topology, "*:8080", 40);
    let open = topology.spawn_gate(["open", "*:8080"]).unwrap();
    v6.finish_connected();
    wait_until("the others are accepted", || dual.accepted() == 20);
    // Half of the exact one's backlog, although the other has room.
    wait_until("four are connected", || v4.connected() == 4);
    wait_until("the others are held still", || {
        gate_status(&topology, "*:8080").waiting.held == 16
    });
    let exact = Acceptor::start(exact, Duration::ZERO);
    open.wait(LIMIT).unwrap().ok().unwrap();
    v4.finish_connected();
    wait_until("all are accepted", || exact.accepted() == 20);
    assert_eq!(dual.accepted(), 20);
    assert_no_overflows(&topology);
    assert_not_retransmitted(&topology, "*:8080");
}

#[test]
fn a_dual_stack_listener_is_paced_for_both_families() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", "*:8080", OTHER, "--for", "60s"]);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
    let listener = listen(&topology, any, 16);
    let v4 = Clients::start(&topology, TARGET, 100, None);
    let v6 = Clients::start(&topology, server_v6(PORT), 100, None);
    wait_until_held(&topology, "*:8080", 200);
    let open = topology.spawn_gate(["open", "*:8080"]).unwrap();
    wait_until("half is taken", || v4.connected() + v6.connected() == 8);
    let acceptor = Acceptor::start(listener, Duration::ZERO);
    open.wait(LIMIT).unwrap().ok().unwrap();
    v4.finish_connected();
    v6.finish_connected();
    wait_until("all are accepted", || acceptor.accepted() == 200);
    assert_no_overflows(&topology);
    assert_not_retransmitted(&topology, "*:8080");
}

#[test]
fn a_gate_whose_listener_keeps_up_does_not_wait_for_another_gates() {
    let topology = held(INTERFACE, "60s");
    let busy = server_v4(81);
    gate(&topology, &["hold", "10.0.0.5:81", "--for", "60s"]);
    let _stuck = listen(&topology, busy, 4);
    let _fast = Acceptor::start(listen(&topology, TARGET, 4), Duration::ZERO);
    let stuck = Clients::start(&topology, busy, 10, None);
    let fast = start_clients(&topology, INTERFACE, 10);
    wait_until_held(&topology, "10.0.0.5:81", 10);
    let open = topology
        .spawn_gate(["open", ENDPOINT, "10.0.0.5:81"])
        .unwrap();
    fast.finish_connected();
    wait_until("the first is open", || mode(&topology, ENDPOINT) == "open");
    assert_eq!(mode(&topology, "10.0.0.5:81"), "hold");
    wait_until("the other's half is taken", || stuck.connected() == 2);
    // What was injected is taken off the map a moment later.
    wait_until_held(&topology, "10.0.0.5:81", 8);
    open.signal(Signal::SIGKILL).unwrap();
    open.wait(LIMIT).unwrap();
}

// ---- Far clients ----

#[test]
fn handshakes_under_way_count_but_not_for_long() {
    if !has(Feature::Nftables) {
        return;
    }
    const COUNT: usize = 16;
    let (topology, clients) = held_clients(INTERFACE, "60s", COUNT);
    let _listener = listen(&topology, TARGET, 16);
    // The last packet of each handshake is lost on the way, as if the clients were far away.
    let rules = "table ip t { chain c { type filter hook prerouting priority raw; \
                 tcp dport 8080 tcp flags & (syn | ack) == ack drop; }; }";
    nft::load(&topology, Side::Server, rules).unwrap();
    let start = Instant::now();
    let open = topology.spawn_gate(["open", ENDPOINT]).unwrap();
    let endpoint = [ENDPOINT.parse().unwrap()];
    let half_open = || {
        let pending = topology.run(Side::Server, || Ok(sockets::pending(&endpoint)?));
        pending.unwrap().half_open
    };
    let mut steps = Vec::new();
    while !open.has_ended().unwrap() {
        let half_open = half_open();
        // The first went after the start, and this many were there before now.
        steps.push((start.elapsed(), half_open));
        sleep(MS * 5);
    }
    open.wait(LIMIT).unwrap().ok().unwrap();
    // Eight, and eight more each 200 ms.
    assert!(
        steps.iter().any(|(_, half_open)| *half_open == 8),
        "{steps:?}"
    );
    for (at, half_open) in steps {
        let most = 8 * (1 + at.as_millis() as usize / 200);
        assert!(half_open <= most, "{half_open} after {at:?}");
    }
    let took = start.elapsed();
    assert!(took >= MS * 200, "{took:?}");
    assert!(took < LIMIT / 4, "{took:?}");
    // To its clients each is connected.
    clients.finish_connected();
    assert_no_overflows(&topology);
}

// ---- The rate ----

#[test]
fn no_more_go_than_the_rate_allows() {
    for interface in [INTERFACE, "lo"] {
        let (topology, clients) = held_clients(interface, "60s", 60);
        let _listener = listen(&topology, TARGET, 4096);
        let start = Instant::now();
        let output = gate(&topology, &["open", ENDPOINT, "--rate", "100/s"]);
        assert!(start.elapsed() >= MS * 590, "{:?}", start.elapsed());
        assert!(output.stdout.contains("60 connections held"), "{output}");
        clients.finish_connected();
        assert_not_retransmitted(&topology, ENDPOINT);
    }
}

#[test]
fn the_rate_also_holds_for_a_backend_on_another_host() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--hook", "tc-egress", INTERFACE]);
    let target: SocketAddr = "10.0.0.1:8080".parse().unwrap();
    let _listener = common::listen_at(&topology, Side::Client, target);
    gate(&topology, &["hold", "10.0.0.1:8080", "--for", "60s"]);
    let clients = Clients::start_at(&topology, Side::Server, target, 30, None);
    wait_until_held(&topology, "10.0.0.1:8080", 30);
    let start = Instant::now();
    gate(&topology, &["open", "10.0.0.1:8080", "--rate", "100"]);
    assert!(start.elapsed() >= MS * 290, "{:?}", start.elapsed());
    clients.finish_connected();
}

#[test]
fn a_rate_of_nothing_is_refused() {
    let topology = held(INTERFACE, "60s");
    for (rate, words) in [
        ("0", ["rate of 0", "--rate"]),
        ("0/s", ["rate of 0", "--rate"]),
        ("fast", ["no rate", "500/s"]),
        ("-5", ["-5", "--"]),
    ] {
        let output = topology.gate(["open", ENDPOINT, "--rate", rate]).unwrap();
        assert_eq!((output.code(), output.stdout.as_str()), (2, ""), "{output}");
        for word in words {
            assert!(output.stderr.contains(word), "no {word:?} in: {output}");
        }
    }
    assert_eq!(mode(&topology, ENDPOINT), "hold");
}

// ---- What may come between ----

#[test]
fn a_listener_that_goes_and_comes_back_during_a_release_is_waited_for() {
    const COUNT: usize = 60;
    let (topology, clients) = held_clients(INTERFACE, "60s", COUNT);
    let listener = listen(&topology, TARGET, 64);
    // Far more than it takes, so that nothing is in the queue when it goes.
    let open = topology
        .spawn_gate(["open", ENDPOINT, "--rate", "50/s"])
        .unwrap();
    let mut streams: Vec<TcpStream> = Vec::new();
    for _ in 0..20 {
        streams.push(listener.accept().unwrap().0);
    }
    // Stopped, it injects nothing between the last look at the queue and the close.
    open.signal(Signal::SIGSTOP).unwrap();
    sleep(MS * 50);
    listener.set_nonblocking(true).unwrap();
    while let Ok((stream, _)) = listener.accept() {
        streams.push(stream);
    }
    close(&topology, listener);
    open.signal(Signal::SIGCONT).unwrap();
    let rest = COUNT - streams.len();
    sleep(MS * 500);
    assert!(!open.has_ended().unwrap());
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, rest);
    let again = Acceptor::start(listen(&topology, TARGET, 64), Duration::ZERO);
    open.wait(LIMIT).unwrap().ok().unwrap();
    clients.finish_connected();
    wait_until("all are accepted", || again.accepted() == rest);
    assert_no_overflows(&topology);
}

#[test]
fn without_a_listener_clients_are_refused_at_once() {
    let (topology, clients) = held_clients(INTERFACE, "60s", 10);
    gate(&topology, &["open", ENDPOINT]);
    for attempt in clients.finish() {
        let refused = Err(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(attempt.result, refused);
        assert!(attempt.took < BEFORE_RETRANSMISSION);
    }
}

#[test]
fn other_commands_work_while_a_release_waits_for_room() {
    let (topology, clients) = held_clients(INTERFACE, "60s", 20);
    let listener = listen(&topology, TARGET, 8);
    let open = topology.spawn_gate(["open", ENDPOINT]).unwrap();
    wait_until("half the backlog is taken", || clients.connected() == 4);
    // Each would wait 5 s for the lock, and fail.
    for _ in 0..5 {
        gate(&topology, &["status"]);
        gate(&topology, &["hold", "10.0.0.5:99"]);
        gate(&topology, &["open", "10.0.0.5:99"]);
    }
    assert!(!open.has_ended().unwrap());
    assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 16);
    let _acceptor = Acceptor::start(listener, Duration::ZERO);
    open.wait(LIMIT).unwrap().ok().unwrap();
    clients.finish_connected();
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 20);
}

#[test]
fn a_release_that_was_killed_is_taken_up_by_the_next() {
    for interface in [INTERFACE, "lo"] {
        let (topology, clients) = held_clients(interface, "60s", 40);
        let listener = listen(&topology, TARGET, 16);
        let first = topology.spawn_gate(["open", ENDPOINT]).unwrap();
        wait_until("half the backlog is taken", || clients.connected() == 8);
        first.signal(Signal::SIGKILL).unwrap();
        first.wait(LIMIT).unwrap();
        assert_eq!(mode(&topology, ENDPOINT), "hold");
        let acceptor = Acceptor::start(listener, Duration::ZERO);
        let output = gate(&topology, &["open", "--json", ENDPOINT]);
        assert_eq!(field(&output, "released"), 32.0, "{output}");
        clients.finish_connected();
        wait_until("all are accepted", || acceptor.accepted() == 40);
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 40);
        assert_no_overflows(&topology);
        assert_not_retransmitted(&topology, ENDPOINT);
    }
}

#[test]
fn two_releases_of_one_gate_inject_nothing_twice() {
    let (topology, clients) = held_clients(INTERFACE, "60s", 200);
    let acceptor = Acceptor::start(listen(&topology, TARGET, 16), MS);
    let opens = [0, 1].map(|_| topology.spawn_gate(["open", ENDPOINT]).unwrap());
    for open in opens {
        open.wait(LIMIT).unwrap().ok().unwrap();
    }
    clients.finish_connected();
    wait_until("all are accepted", || acceptor.accepted() == 200);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 200);
    assert_no_overflows(&topology);
}

#[test]
fn what_another_command_makes_of_the_gate_ends_its_release() {
    let (topology, clients) = held_clients(INTERFACE, "60s", 20);
    let _listener = listen(&topology, TARGET, 8);
    let open = topology.spawn_gate(["open", ENDPOINT]).unwrap();
    wait_until("half the backlog is taken", || clients.connected() == 4);
    gate(&topology, &["reject", ENDPOINT, "--for", "30s"]);
    let output = open.wait(LIMIT).unwrap().ok().unwrap();
    assert!(
        output.stdout.contains("16 left to their clients"),
        "{output}"
    );
    assert_eq!(mode(&topology, ENDPOINT), "reject");
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 4);
}

// ---- The lease ----

#[test]
fn a_listener_that_takes_no_more_keeps_a_release_until_its_lease_is_over() {
    let (topology, clients) = held_clients(INTERFACE, "2s", 20);
    let listener = listen(&topology, TARGET, 16);
    let output = gate(&topology, &["open", "--json", ENDPOINT]);
    assert_eq!(field(&output, "released"), 8.0, "{output}");
    assert_eq!(field(&output, "left"), 12.0, "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "open");
    // The others connect by retransmissions, as they would without a gate.
    let _acceptor = Acceptor::start(listener, Duration::ZERO);
    clients.finish_connected();
}

#[test]
fn a_flood_that_the_listener_can_not_take_keeps_a_release_until_its_lease_is_over() {
    let topology = held(INTERFACE, "3s");
    let _acceptor = Acceptor::start(listen(&topology, TARGET, 16), MS * 10);
    let load = Load {
        timeout: MS * 100,
        ..Load::new(TARGET, 400, MS * 3_500)
    };
    let load = load.start(&topology).unwrap();
    wait_until("some are held", || {
        gate_status(&topology, ENDPOINT).waiting.held > 50
    });
    let start = Instant::now();
    let output = gate(&topology, &["open", "--json", ENDPOINT]);
    let took = start.elapsed();
    assert!(took >= MS * 1_500, "{took:?}: {output}");
    assert!(took < Duration::from_secs(3 + 30 + 2), "{took:?}: {output}");
    assert_eq!(mode(&topology, ENDPOINT), "open");
    let refused = load.finish().unwrap();
    assert!(
        refused
            .iter()
            .all(|request| request.outcome != Outcome::Refused)
    );
}

#[test]
fn a_load_that_the_listener_takes_does_not_keep_a_release() {
    let topology = held(INTERFACE, "60s");
    let _acceptor = Acceptor::start(listen(&topology, TARGET, 128), Duration::ZERO);
    let load = Load {
        timeout: MS * 1_500,
        ..Load::new(TARGET, 1_000, Duration::ZERO)
    };
    let load = load.start_endless(&topology, Side::Client).unwrap();
    wait_until("some are held", || {
        gate_status(&topology, ENDPOINT).waiting.held > 200
    });
    // The load goes on until it is done.
    gate(&topology, &["open", ENDPOINT]);
    assert_no_overflows(&topology);
    load.finish().unwrap();
}

// ---- Restart ----

#[test]
fn a_signal_during_the_release_of_a_restart_opens_at_once() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let topology = Topology::new().unwrap();
        gate(&topology, &["up", INTERFACE]);
        let _listener = listen(&topology, TARGET, 32);
        let command = ["sh", "-c", UNTIL_LET_GO];
        let restart = start_restart(&topology, &["--max-hold", "60s"], &command);
        let clients = Clients::start(&topology, TARGET, 25, None);
        wait_until_held(&topology, ENDPOINT, 25);
        let_go(&topology);
        wait_until("half the backlog is taken", || clients.connected() == 16);
        sleep(MS * 100);
        assert_eq!(
            (mode(&topology, ENDPOINT), clients.connected()),
            ("hold", 16)
        );
        restart.signal(signal).unwrap();
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        assert_eq!(mode(&topology, ENDPOINT), "open");
        clients.finish_connected();
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 25);
    }
}

#[test]
fn a_restart_keeps_to_a_rate() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", INTERFACE]);
    let _listener = listen(&topology, TARGET, 4096);
    let options = ["--rate", "50/s", "--max-hold", "60s"];
    let restart = start_restart(&topology, &options, &["sh", "-c", UNTIL_LET_GO]);
    let clients = Clients::start(&topology, TARGET, 50, None);
    wait_until_held(&topology, ENDPOINT, 50);
    let_go(&topology);
    wait_until("the first is through", || clients.connected() > 0);
    let first = Instant::now();
    let through = clients.connected();
    restart.wait(LIMIT).unwrap().ok().unwrap();
    // Each of the others takes 20 ms.
    let least = MS * 20 * (49 - through as u32);
    assert!(
        first.elapsed() >= least,
        "{:?} after {through}",
        first.elapsed()
    );
    clients.finish_connected();
}
