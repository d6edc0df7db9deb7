//! SIGKILL of the daemon at every system call in turn, while it starts, while it closes and opens, and
//! while it applies a changed configuration; of what it does in between, as much as these take. A short
//! run tries some of the calls that change something. And a daemon that is stopped past the lease of
//! what it holds. Needs root.

mod common;

use std::io::ErrorKind;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    CONFIG, Calls, Clients, LIMIT, MS, PORT, ROOT, TARGET, assert_connects_at_once,
    assert_documented, assert_none_lost, connect_once, exists, find_gate, gate, get, health,
    held_client, json, mode, restart_daemon, side_by_side, stop_daemon, wait_until, write,
};
use gate_tests::backend::Options;
use gate_tests::load::Load;
use gate_tests::service::Service;
use gate_tests::syscalls::{Fate, Seen, Traced};
use gate_tests::topology::{Output, Side, Topology};
use nix::sys::signal::Signal;

/// Its calls are counted from when this file is there.
const FROM: &str = "/run/from";

const WATCHED: &str = "[gate.web]\nendpoints = ['10.0.0.5:8080']\ninterfaces = ['eth0']\n\
                       max_hold = '20s'\n[gate.web.on_down]\ndo = 'hold'\n\
                       [[gate.web.check]]\ntcp = '10.0.0.5:8080'\ninterval = '50ms'\n\
                       timeout = '45ms'\nrise = 1\nfall = 2\n";

/// Starts a daemon that dies at this call, and returns when it answers.
fn start(topology: &Topology, at: Option<usize>) -> Traced {
    let fate = Fate {
        at,
        ..Fate::default()
    };
    start_for(topology, &fate)
}

/// As [`start`], for another fate.
fn start_for(topology: &Topology, fate: &Fate<'_>) -> Traced {
    topology.remove(Side::Server, Path::new(FROM)).unwrap();
    let fate = Fate {
        from: Some(Path::new(FROM)),
        ..fate.clone()
    };
    let args = ["daemon", "--config", CONFIG, "--log", "debug"];
    let daemon = Traced::start(topology, &fate, &args).unwrap();
    wait_until("the daemon answers", || {
        let ended = daemon.process.has_ended().unwrap();
        assert!(!ended, "{}", daemon.process.stderr().unwrap());
        get(topology, "/v1").is_some()
    });
    daemon
}

/// Ends it where it was not killed, which it must do well; what was seen.
#[track_caller]
fn end(topology: &Topology, daemon: Traced) -> (Output, Seen) {
    // It may be dead already.
    let _dead = daemon.process.signal_group(Signal::SIGTERM);
    let (output, seen) = daemon.wait(topology, LIMIT).unwrap();
    assert!(!output.stderr.contains("panicked"), "{output}");
    (output, seen)
}

fn has_ended(daemon: &Traced) -> bool {
    daemon.process.has_ended().unwrap()
}

fn backend(topology: &Topology) -> Service {
    Service::start(topology, Options::new(TARGET)).unwrap()
}

fn kill(service: &Service) {
    service.process().signal(Signal::SIGKILL).unwrap();
    service.process().wait(LIMIT).unwrap();
}

/// An outage that the daemon holds and ends, unless it dies at this call; and what the next one, or
/// a command, makes of it.
fn outage(topology: &Topology, at: Option<usize>, by_command: bool) -> (Output, Seen) {
    let service = backend(topology);
    let daemon = start(topology, at);
    wait_until("it is up", || health(topology, "web") == "up");
    write(topology, FROM, "");
    kill(&service);
    let is_held = || mode(topology, "web") == "hold";
    wait_until("it is held", || is_held() || has_ended(&daemon));
    let client = is_held().then(|| held_client(topology, "web", TARGET));
    let service = backend(topology);
    let is_open = || mode(topology, "web") == "open";
    wait_until("it is open", || is_open() || has_ended(&daemon));
    let (output, seen) = end(topology, daemon);
    let left = find_gate(topology, "web").unwrap();
    assert!(
        left.lease.is_none_or(|left| left <= MS * 20_000),
        "{left:?}"
    );
    match by_command {
        true => assert_documented(&topology.gate(["open", "web"]).unwrap()),
        false => {
            let next = restart_daemon(topology);
            wait_until("it is up", || health(topology, "web") == "up");
            wait_until("it is open", is_open);
            stop_daemon(&next);
        }
    }
    assert_eq!(mode(topology, "web"), "open", "{output}");
    client.map(Clients::finish_connected);
    service.process().signal(Signal::SIGTERM).unwrap();
    service.process().wait(LIMIT).unwrap();
    (output, seen)
}

#[test]
fn a_daemon_killed_while_it_closes_or_opens_is_gone_on_from() {
    let watched = || {
        let topology = Topology::new().unwrap();
        write(&topology, CONFIG, WATCHED);
        topology
    };
    let (output, seen) = outage(&watched(), None, false);
    assert_eq!(output.code(), 0, "{output}");
    let calls = Calls::of_fewer("daemon, outage", &seen, 8);
    side_by_side(|| {
        let topology = watched();
        for (round, call) in calls.rounds() {
            let (output, seen) = outage(&topology, Some(call.number), round % 4 == 3);
            call.tried(&output, &seen);
        }
    });
    calls.finish();
}

/// The lease of an outage in which the daemon is stopped.
const LEASE: Duration = Duration::from_secs(1);

/// Long enough for the lease to end, and for clients to try, while it is stopped.
const STOPPED: Duration = Duration::from_millis(2_200);

/// A server whose daemon is to hold for as long as [`LEASE`].
fn leased() -> Topology {
    let topology = Topology::new().unwrap();
    write(&topology, CONFIG, &WATCHED.replace("20s", "1s"));
    topology
}

/// The gate is open past its lease: who comes is refused as long as nobody listens, and gets through as
/// soon as somebody does.
#[track_caller]
fn assert_open_past_its_lease(topology: &Topology, service: Option<Service>) -> Service {
    assert_eq!(mode(topology, "web"), "open");
    let service = service.unwrap_or_else(|| {
        let refused = connect_once(topology, TARGET);
        assert_eq!(refused.result, Err(ErrorKind::ConnectionRefused));
        backend(topology)
    });
    assert_connects_at_once(topology, TARGET);
    service
}

/// It answers, sees that the backend is up, and holds and opens at the next outage.
#[track_caller]
fn assert_well(topology: &Topology, service: &Service) -> Service {
    wait_until("it is up", || health(topology, "web") == "up");
    // A hold that it was about to make when it was stopped is made late, and ended at once.
    sleep(MS * 300);
    wait_until("it is open", || mode(topology, "web") == "open");
    assert_connects_at_once(topology, TARGET);
    kill(service);
    wait_until("it is down", || health(topology, "web") == "down");
    wait_until("it is held", || mode(topology, "web") == "hold");
    let client = held_client(topology, "web", TARGET);
    let service = backend(topology);
    client.finish_connected();
    wait_until("it is open", || mode(topology, "web") == "open");
    gate(topology, &["status"]);
    service
}

#[test]
fn a_daemon_stopped_past_its_lease_while_it_holds_keeps_nothing_closed_and_goes_on_well() {
    // The backend is back before it goes on, or only later.
    for is_back in [true, false] {
        let topology = leased();
        let service = backend(&topology);
        let daemon = restart_daemon(&topology);
        wait_until("it is up", || health(&topology, "web") == "up");
        kill(&service);
        wait_until("it is held", || mode(&topology, "web") == "hold");
        daemon.signal(Signal::SIGSTOP).unwrap();
        sleep(LEASE);
        if !is_back {
            daemon.signal(Signal::SIGCONT).unwrap();
            wait_until("it is down", || health(&topology, "web") == "down");
            // It holds once for an outage, however long that is.
            sleep(MS * 500);
        }
        let service = assert_open_past_its_lease(&topology, None);
        daemon.signal(Signal::SIGCONT).unwrap();
        let service = assert_well(&topology, &service);
        stop_daemon(&daemon);
        drop(service);
        gate(&topology, &["down"]);
        assert!(!exists(&topology, ROOT));
    }
}

/// An outage in which the daemon is stopped at this call for longer than the gate's lease; then another.
fn outage_while_stopped(topology: &Topology, at: usize) -> (Output, Seen) {
    let service = backend(topology);
    let fate = Fate {
        pause: Some(STOPPED),
        ..Fate::killed_at(at)
    };
    let daemon = start_for(topology, &fate);
    wait_until("it is up", || health(topology, "web") == "up");
    write(topology, FROM, "");
    kill(&service);
    let is_stopped = || daemon.has_come(topology).unwrap();
    wait_until("it is held", || {
        is_stopped() || mode(topology, "web") == "hold"
    });
    let mut service = None;
    let mut client = None;
    if !is_stopped() {
        client = Some(Clients::one(topology, TARGET));
        service = Some(backend(topology));
        wait_until("it is open", || {
            is_stopped() || mode(topology, "web") == "open"
        });
    }
    if is_stopped() {
        let since = Instant::now();
        sleep(LEASE);
        service = Some(assert_open_past_its_lease(topology, service));
        let took = since.elapsed();
        assert!(
            took < STOPPED,
            "only after {took:.1?}, when the daemon went on"
        );
    }
    client.map(Clients::finish_connected);
    let service = assert_well(topology, &service.expect("a backend"));
    let (output, seen) = end(topology, daemon);
    assert_eq!(output.code(), 0, "{output}");
    kill(&service);
    (output, seen)
}

#[test]
fn a_daemon_stopped_past_its_lease_at_any_change_keeps_nothing_closed_and_goes_on_well() {
    let (output, seen) = outage(&leased(), None, false);
    assert_eq!(output.code(), 0, "{output}");
    let calls = Calls::changing("daemon, stopped", &seen, 4);
    side_by_side(|| {
        let topology = leased();
        for (_, call) in calls.rounds() {
            let (output, seen) = outage_while_stopped(&topology, call.number);
            println!("stopped at {}: {:?}", call.number, output.status);
            call.count(&seen);
        }
    });
    calls.finish();
}

/// How much of the configuration is still to be applied.
fn planned(topology: &Topology) -> usize {
    let plan = gate(topology, &["plan", "--json", "--config", CONFIG]);
    json(&plan)["changes"].as_array().unwrap().len()
}

/// A server whose backend listens, and where the daemon is told to watch it.
fn served() -> (Topology, Service) {
    let topology = Topology::new().unwrap();
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    write(&topology, CONFIG, WATCHED);
    (topology, service)
}

/// A start where nothing is up, during which the daemon dies at this call; and what the next one makes
/// of it.
fn first_start(topology: &Topology, at: Option<usize>) -> (Output, Seen) {
    let fate = Fate {
        at,
        ..Fate::default()
    };
    let args = ["daemon", "--config", CONFIG];
    let daemon = Traced::start(topology, &fate, &args).unwrap();
    wait_until("the daemon answers", || {
        get(topology, "/v1").is_some() || has_ended(&daemon)
    });
    let (output, seen) = end(topology, daemon);
    let next = restart_daemon(topology);
    wait_until("it is applied", || planned(topology) == 0);
    assert_eq!(mode(topology, "web"), "open", "{output}");
    gate(topology, &["hold", "web", "--for", "20s"]);
    let client = held_client(topology, "web", TARGET);
    gate(topology, &["open", "web"]);
    client.finish_connected();
    stop_daemon(&next);
    gate(topology, &["down"]);
    assert!(!exists(topology, ROOT), "{output}");
    (output, seen)
}

#[test]
fn a_daemon_killed_while_it_starts_is_gone_on_from() {
    let (output, seen) = first_start(&served().0, None);
    assert_eq!(output.code(), 0, "{output}");
    let calls = Calls::of_fewer("daemon, start", &seen, 8);
    side_by_side(|| {
        let (topology, _service) = served();
        for (_, call) in calls.rounds() {
            let (output, seen) = first_start(&topology, Some(call.number));
            call.tried(&output, &seen);
        }
    });
    calls.finish();
}

/// A reload, during which the daemon dies at this call; and an apply that goes on from there.
fn reload(topology: &Topology, at: Option<usize>, (old, new): (&str, &str)) -> (Output, Seen) {
    let planned = || planned(topology);
    write(topology, CONFIG, old);
    let daemon = start(topology, at);
    wait_until("it is applied", || planned() == 0);
    write(topology, CONFIG, new);
    write(topology, FROM, "");
    // The tracer ignores it.
    daemon.process.signal_group(Signal::SIGHUP).unwrap();
    wait_until("it is applied", || planned() == 0 || has_ended(&daemon));
    let (output, seen) = end(topology, daemon);
    gate(topology, &["apply", "--config", CONFIG]);
    assert_eq!(planned(), 0, "{output}");
    let gates = gate(topology, &["status", "--json"]);
    let names = json(&gates)["gates"].as_array().unwrap().len();
    assert_eq!(names, new.matches("endpoints").count(), "{output}");
    (output, seen)
}

#[test]
fn a_daemon_killed_while_it_reloads_is_gone_on_from() {
    let gates = |names: &[&str], mode: &str| -> String {
        let of = |(index, name): (usize, &&str)| {
            let port = usize::from(PORT) + index;
            format!(
                "[gate.{name}]\nendpoints = ['10.0.0.5:{port}', '10.0.0.5:{}']\n\
                 interfaces = ['eth0']\nmode = '{mode}'\n",
                port + 100
            )
        };
        names.iter().enumerate().map(of).collect()
    };
    let one = gates(&["web", "db"], "open");
    let other = gates(&["web", "mail", "log"], "guard");
    let (output, seen) = reload(&served().0, None, (&one, &other));
    assert_eq!(output.code(), 0, "{output}");
    let calls = Calls::of_fewer("daemon, reload", &seen, 8);
    side_by_side(|| {
        let (topology, _service) = served();
        let load = Load::new(TARGET, 50, Duration::ZERO);
        let load = load.start_endless(&topology, Side::Client).unwrap();
        for (_, call) in calls.rounds() {
            let (output, seen) = reload(&topology, Some(call.number), (&one, &other));
            call.tried(&output, &seen);
        }
        assert_none_lost(load, LIMIT);
    });
    calls.finish();
}
