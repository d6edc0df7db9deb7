//! SIGKILL of the daemon at every system call in turn, while it starts, while it closes and opens, and
//! while it applies a changed configuration; of what it does in between, as much as these take. A short
//! run tries some of the calls that change something. Needs root.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{
    CONFIG, Calls, Clients, LIMIT, MS, PORT, ROOT, TARGET, assert_documented, assert_none_lost,
    exists, find_gate, gate, get, health, held_client, json, mode, restart_daemon, side_by_side,
    stop_daemon, wait_until, write,
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
    let _none = topology.run(Side::Server, || Ok(fs::remove_file(FROM).ok()));
    let fate = Fate {
        at,
        from: Some(Path::new(FROM)),
        ..Fate::default()
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

/// An outage that the daemon holds and ends, unless it dies at this call; and what the next one, or
/// a command, makes of it.
fn outage(topology: &Topology, at: Option<usize>, by_command: bool) -> (Output, Seen) {
    let service = Service::start(topology, Options::new(TARGET)).unwrap();
    let daemon = start(topology, at);
    wait_until("it is up", || health(topology, "web") == "up");
    write(topology, FROM, "");
    service.process().signal(Signal::SIGKILL).unwrap();
    service.process().wait(LIMIT).unwrap();
    let is_held = || mode(topology, "web") == "hold";
    wait_until("it is held", || is_held() || has_ended(&daemon));
    let client = is_held().then(|| held_client(topology, "web", TARGET));
    let service = Service::start(topology, Options::new(TARGET)).unwrap();
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
