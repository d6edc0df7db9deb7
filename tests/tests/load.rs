//! What the load generator sees of the backend, and how the backend stops. Needs root.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use gate_tests::backend::Options;
use gate_tests::listener::{self, Watch};
use gate_tests::load::{Load, Outcome, Request, get_once};
use gate_tests::service::Service;
use gate_tests::summary::Summary;
use gate_tests::topology::{CLIENT_V4, Side, Topology, command, server_v4};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);

#[test]
fn an_uninterrupted_backend_loses_nothing_at_2000_connections_a_second() {
    let topology = Topology::new().unwrap();
    let _service = Service::start(&topology, Options::new(server_v4(80))).unwrap();
    let load = Load::new(server_v4(80), 2_000, Duration::from_secs(2));
    let requests = load.start(&topology).unwrap().finish().unwrap();
    let summary = Summary::new(&requests, Duration::ZERO);
    assert_eq!(
        (summary.requests, summary.lost()),
        (4_000, 0),
        "{}",
        summary.errors_in_words()
    );
    assert!(requests.is_sorted_by_key(|request| request.at));
}

#[test]
fn an_unannounced_restart_refuses_connections_for_as_long_as_it_lasts() {
    let topology = Topology::new().unwrap();
    let service = Service::start(&topology, Options::new(server_v4(80))).unwrap();
    let watch = Watch::start(&topology, server_v4(80)).unwrap();
    let load = Load::new(server_v4(80), 200, Duration::from_secs(2))
        .start(&topology)
        .unwrap();
    sleep(MS * 500);
    let words = service.restart_command(MS * 300).unwrap();
    let restarted = Instant::now();
    topology
        .output(Side::Server, &mut command(&words), LIMIT)
        .unwrap()
        .ok()
        .unwrap();
    let begin = load.begin();
    let requests = load.finish().unwrap();
    let gaps = watch.finish().unwrap();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    // Give or take what it took to notice its begin.
    assert!((MS * 250..LIMIT).contains(&gaps[0].length()), "{gaps:?}");
    let lost: Vec<_> = requests
        .iter()
        .filter(|r| r.outcome != Outcome::Ok)
        .collect();
    assert!(lost.len() > 20, "{} lost", lost.len());
    // The listener closes after the restart has begun, so this long none is there.
    let away = gaps[0].from..restarted + MS * 300;
    let is_within = |r: &&Request| {
        let due = begin + r.at;
        due >= away.start && due + r.latency < away.end
    };
    let within: Vec<_> = requests.iter().filter(is_within).collect();
    assert!(
        within.iter().all(|r| r.outcome != Outcome::Ok),
        "{within:?}"
    );
    assert!(
        lost.iter()
            .all(|r| matches!(r.outcome, Outcome::Refused | Outcome::Reset))
    );
    // Each of them while it was restarted: it ended after that had begun, and was due before a socket
    // listened again.
    for request in lost {
        let due = begin + request.at;
        assert!(
            due + request.latency >= restarted && due <= gaps[0].to,
            "{request:?} {gaps:?}"
        );
    }
}

#[test]
fn latency_counts_from_when_a_request_was_due() {
    let topology = Topology::new().unwrap();
    let service = Service::start(&topology, Options::new(server_v4(80))).unwrap();
    let load = Load::new(server_v4(80), 100, Duration::from_secs(1))
        .start(&topology)
        .unwrap();
    sleep(MS * 350);
    // Stopped for 400 ms: every request due meanwhile waits until the end of that.
    service.process().signal(Signal::SIGSTOP).unwrap();
    let stopped = load.begin().elapsed();
    sleep(MS * 400);
    let goes_on = load.begin().elapsed();
    service.process().signal(Signal::SIGCONT).unwrap();
    let requests = load.finish().unwrap();
    // The signal takes its time to come to each thread.
    let due_meanwhile = stopped + MS * 50..goes_on;
    let waited: Vec<_> = requests
        .iter()
        .filter(|r| due_meanwhile.contains(&r.at))
        .collect();
    assert!(waited.len() >= 30, "{}", waited.len());
    assert!(
        waited.iter().all(|r| r.at + r.latency >= goes_on),
        "{waited:?}"
    );
}

#[test]
fn a_request_that_never_ends_is_timed_out() {
    let topology = Topology::new().unwrap();
    let service = Service::start(&topology, Options::new(server_v4(80))).unwrap();
    service.process().signal(Signal::SIGSTOP).unwrap();
    let load = Load {
        timeout: MS * 200,
        ..Load::new(server_v4(80), 50, MS * 200)
    };
    let requests = load.start(&topology).unwrap().finish().unwrap();
    assert_eq!(requests.len(), 10);
    for request in requests {
        assert_eq!(request.outcome, Outcome::TimedOut);
        assert!((MS * 200..LIMIT).contains(&request.latency), "{request:?}");
    }
}

#[test]
fn a_backend_finishes_what_it_and_its_queue_have_accepted() {
    let topology = Topology::new().unwrap();
    let options = Options {
        service_time: MS * 50,
        ..Options::new(server_v4(80))
    };
    let service = Service::start(&topology, options).unwrap();
    let connect = || Ok(TcpStream::connect_timeout(&server_v4(80), LIMIT)?);
    let connect_many = || -> Vec<TcpStream> {
        (0..50)
            .map(|_| topology.run(Side::Client, connect).unwrap())
            .collect()
    };
    let accepted = connect_many();
    sleep(MS * 100);
    // Stopped, it accepts nothing: these wait in the kernel's queue.
    service.process().signal(Signal::SIGSTOP).unwrap();
    let queued = connect_many();
    service.process().signal(Signal::SIGTERM).unwrap();
    service.process().signal(Signal::SIGCONT).unwrap();
    topology
        .run(Side::Server, || {
            listener::wait_until(server_v4(80), false, LIMIT)
        })
        .unwrap();
    let late = topology
        .run(Side::Client, || get_once(server_v4(80), "/", LIMIT))
        .unwrap();
    assert_eq!(late, Outcome::Refused);
    let mut streams: Vec<_> = accepted.into_iter().chain(queued).collect();
    for stream in &mut streams {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    }
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
        assert!(answer.contains("Connection: close"), "{answer:?}");
    }
    assert_eq!(service.process().wait(LIMIT).unwrap().code(), 0);
}

#[test]
fn a_connection_can_be_kept_until_the_backend_stops() {
    let topology = Topology::new().unwrap();
    let service = Service::start(&topology, Options::new(server_v4(80))).unwrap();
    let mut stream = topology
        .run(Side::Client, || Ok(TcpStream::connect(server_v4(80))?))
        .unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), CLIENT_V4);
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 512];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(
            answer.contains("Connection: keep-alive") && answer.ends_with("ok\n"),
            "{answer:?}"
        );
    }
    service.process().signal(Signal::SIGTERM).unwrap();
    assert_eq!(
        stream.read(&mut [0; 16]).unwrap(),
        0,
        "an idle connection is closed, not reset"
    );
    assert_eq!(service.process().wait(LIMIT).unwrap().code(), 0);
}
