//! Many connections, many restarts, and load meanwhile: nobody is lost, and what is held comes in
//! order. Needs root.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    Clients, ENDPOINT, LIMIT, MS, PORT, TARGET, assert_connects_at_once,
    assert_sent_again_only_while_held, count, gate, listen, restart, running, status, tcp_counters,
    up, up_with_service, wait_until, wait_until_counted, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::bench;
use gate_tests::bench::path::Path;
use gate_tests::listener::Watch;
use gate_tests::load::{Load, Outcome, Request, get_once};
use gate_tests::summary::Summary;
use gate_tests::topology::{INTERFACE, Side, Topology};
use nix::sys::signal::Signal;

#[test]
fn ten_thousand_held_connections_are_all_released() {
    const COUNT: usize = 10_000;
    let topology = up();
    for (name, value) in [
        ("net.core.somaxconn", "32768"),
        ("net.ipv4.tcp_max_syn_backlog", "32768"),
        ("net.ipv4.tcp_syncookies", "0"),
    ] {
        topology.sysctl(Side::Server, name, value).unwrap();
    }
    let listener = listen(&topology, TARGET);
    // SAFETY: the call takes two integers, of which one is an open socket's descriptor.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 32_768) }, 0);
    gate(&topology, &["hold", ENDPOINT, "--for", "60s"]);
    let clients = Clients::start(&topology, TARGET, COUNT, None);
    wait_until_held(&topology, ENDPOINT, COUNT);
    assert_eq!(clients.connected(), 0);
    let start = Instant::now();
    let output = gate(&topology, &["open", "--json", ENDPOINT]);
    let opened = start.elapsed();
    wait_until("all have ended", || clients.ended().len() == COUNT);
    println!(
        "gate open: {} in {opened:?}, all connected after {:?}",
        output.stdout.trim(),
        start.elapsed()
    );
    clients.finish_connected();
    for (counter, expected) in [
        (Counter::Held, COUNT),
        (Counter::Released, COUNT),
        (Counter::Overflowed, 0),
        (Counter::Uncaptured, 0),
    ] {
        assert_eq!(
            count(&topology, ENDPOINT, counter),
            expected as u64,
            "{counter:?}"
        );
    }
    let counters = tcp_counters(&topology, Side::Server);
    for name in ["ListenOverflows", "ListenDrops", "TCPReqQFullDrop"] {
        assert_eq!(counters[name], 0, "{name}");
    }
}

/// Starts to capture every frame of the server's interface.
fn capture(topology: &Topology) -> File {
    topology
        .run(Side::Server, || {
            let all = i32::from(u16::to_be(libc::ETH_P_ALL as u16));
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: the call takes three integers and touches no memory of ours.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, all) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
            let file = unsafe { File::from_raw_fd(fd) };
            let room: libc::c_int = 1 << 24;
            // SAFETY: the value is an integer of the size that is passed, and lives through the
            // call.
            let set = unsafe {
                libc::setsockopt(
                    fd,
                    libc::SOL_SOCKET,
                    libc::SO_RCVBUFFORCE,
                    std::ptr::from_ref(&room).cast(),
                    size_of_val(&room) as libc::socklen_t,
                )
            };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
            Ok(file)
        })
        .unwrap()
}

/// The source ports of the SYNs to the port among the captured frames, in order: IPv4 without
/// options over untagged Ethernet, as all is in a topology.
fn captured_syns(mut capture: &File) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut frame = [0; 2048];
    while let Ok(len) = capture.read(&mut frame) {
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let is_syn = len >= 54 && word(12) == 0x0800 && frame[23] == 6 && frame[47] & 0x3f == 2;
        if is_syn && word(36) == PORT {
            ports.push(word(34));
        }
    }
    ports
}

#[test]
fn what_is_held_reaches_the_stack_once_and_in_order() {
    const COUNT: u16 = 100;
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--hook", "xdp-generic", INTERFACE]);
    let _listener = listen(&topology, TARGET);
    // XDP comes before the capture, so what is withheld does not show.
    let capture = capture(&topology);
    assert_connects_at_once(&topology, TARGET);
    assert_eq!(captured_syns(&capture).len(), 1);

    gate(&topology, &["hold", ENDPOINT]);
    let clients = Clients::start(&topology, TARGET, COUNT.into(), Some(20_000));
    wait_until_held(&topology, ENDPOINT, COUNT.into());
    // Each is retransmitted meanwhile, and still one connection.
    wait_until_counted(&topology, ENDPOINT, Counter::Refreshed, COUNT.into());
    assert_eq!(count(&topology, ENDPOINT, Counter::Held), u64::from(COUNT));
    assert_eq!(captured_syns(&capture).len(), 0);
    gate(&topology, &["open", ENDPOINT]);
    clients.finish_connected();
    let ports: Vec<u16> = (20_000..20_000 + COUNT).collect();
    assert_eq!(captured_syns(&capture), ports);
    assert_eq!(
        count(&topology, ENDPOINT, Counter::Released),
        u64::from(COUNT)
    );
}

#[test]
fn opening_under_load_loses_and_delays_nobody() {
    let (topology, _service) = up_with_service();
    let load = Load::new(TARGET, 1_000, Duration::ZERO);
    let load = load.start_endless(&topology, Side::Client).unwrap();
    sleep(MS * 200);
    // Each opening races with SYNs that are just coming in.
    for _ in 0..8 {
        gate(&topology, &["hold", ENDPOINT]);
        sleep(MS * 100);
        gate(&topology, &["open", ENDPOINT]);
    }
    assert_nothing_lost(&topology, &load.finish().unwrap().1);
    assert!(count(&topology, ENDPOINT, Counter::Released) > 100);
}

/// Every request was answered, and none by way of a SYN that was sent again but while it was held.
#[track_caller]
fn assert_nothing_lost(topology: &Topology, requests: &[Request]) {
    assert!(requests.len() > 100);
    let is_bad = |r: &&Request| r.outcome != Outcome::Ok;
    let bad: Vec<_> = requests.iter().filter(is_bad).collect();
    assert!(
        bad.is_empty(),
        "{} of {}: {bad:?}",
        bad.len(),
        requests.len()
    );
    assert_sent_again_only_while_held(topology, ENDPOINT);
}

/// No client lost a request, and none waited for half of a retransmission's second beyond the outage, which is
/// what tells the mechanisms apart.
#[track_caller]
fn assert_unseen(summary: &Summary) {
    assert!(summary.requests > 400, "{summary:?}");
    assert_eq!(summary.lost(), 0, "{}", summary.errors_in_words());
    assert!(summary.outage >= MS * 250, "{summary:?}");
    assert!(summary.added().unwrap() < MS * 500, "{summary:?}");
}

#[test]
fn nginx_is_restarted_under_load_and_no_client_sees_it() {
    assert_unseen(&bench::nginx::once(MS * 300, 200).unwrap());
}

#[test]
fn nginx_behind_a_proxy_is_restarted_over_loopback_and_no_client_sees_it() {
    let run = bench::nginx::once_over(Path::Loopback, MS * 300, 200);
    assert_unseen(&run.unwrap().summary);
}

#[test]
fn fifty_restarts_in_a_row_under_load_lose_nobody() {
    const RESTARTS: usize = 50;
    let (topology, service) = up_with_service();
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let load = topology
        .start(Side::Client, move || {
            let mut requests = Vec::new();
            while !is_done.load(Ordering::SeqCst) {
                requests.extend(Load::new(TARGET, 200, MS * 500).run(Instant::now())?);
            }
            Ok(requests)
        })
        .unwrap();
    let watch = Watch::start(&topology, TARGET).unwrap();
    let words = service.restart_command(MS * 50).unwrap();
    let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
    let mut backends = BTreeSet::from([service.pid(&topology).unwrap()]);
    for _ in 0..RESTARTS {
        let output = restart(&topology, &[], &words);
        assert_eq!(output.code(), 0, "{output}");
        backends.insert(service.pid(&topology).unwrap());
    }
    assert_eq!(backends.len(), RESTARTS + 1);
    done.store(true, Ordering::SeqCst);
    assert_nothing_lost(&topology, &load.join().unwrap().unwrap());
    // On a busy machine the watch misses some.
    let gaps = watch.finish().unwrap();
    assert!((1..=RESTARTS).contains(&gaps.len()), "{gaps:?}");
    assert!(count(&topology, ENDPOINT, Counter::Released) > 100);
    // The backend that answers now is the last that was started.
    let outcome = topology.run(Side::Client, || get_once(TARGET, "/healthz", LIMIT));
    assert_eq!(outcome.unwrap(), Outcome::Ok);
}

#[test]
fn gates_are_counted_and_named_once_however_often_they_are_closed() {
    let topology = up();
    for _ in 0..5 {
        gate(&topology, &["hold", ENDPOINT, ENDPOINT, "*:8080"]);
        gate(&topology, &["open", "--all"]);
    }
    let gates = status(&topology).gates;
    let names: BTreeSet<String> = gates.iter().map(|g| g.gate.to_string()).collect();
    assert_eq!((gates.len(), names.len()), (2, 2), "{names:?}");
}

#[test]
fn under_nohup_a_hangup_changes_nothing() {
    let (topology, _service) = up_with_service();
    let mut command = Command::new("nohup");
    command
        .arg(gate_tests::exe::gate().unwrap())
        .args(["restart", ENDPOINT, "--", "sleep", "1.5"]);
    let restart = topology.spawn(Side::Server, &mut command).unwrap();
    wait_until("the command runs", || running(&topology, "sleep 1.5") == 1);
    restart.signal(Signal::SIGHUP).unwrap();
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
}
