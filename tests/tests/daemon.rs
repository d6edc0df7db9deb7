//! `gate daemon`: what it does when backends go down and come up, when it is killed, and when its
//! configuration changes. Needs root.

mod common;

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{
    CONFIG, Clients, ENDPOINT, LIMIT, MS, TARGET, close, gate, gate_status, get, health,
    held_client, listen, mode, post, restart_daemon, run_gate, shell, spawn_daemon, start_daemon,
    stop_daemon, wait_until, wait_until_held, write,
};
use gate_tests::backend::Options;
use gate_tests::load::{Load, Outcome};
use gate_tests::service::Service;
use gate_tests::topology::{Process, Side, Topology};
use nix::sys::signal::Signal;
use serde_json::json;

/// A gate that is checked ten times a second.
fn watched(rest: &str) -> String {
    format!(
        "[gate.web]\nendpoints = [\"{ENDPOINT}\"]\ninterfaces = [\"eth0\"]\nmax_hold = \"20s\"\n{rest}\n\
         [[gate.web.check]]\ntcp = \"{ENDPOINT}\"\ninterval = \"100ms\"\ntimeout = \"80ms\"\n\
         rise = 1\nfall = 2\n"
    )
}

const HOLD: &str = "[gate.web.on_down]\ndo = \"hold\"\n";

fn service(topology: &Topology) -> Service {
    Service::start(topology, Options::new(TARGET)).unwrap()
}

fn kill(service: &Service) {
    service.process().signal(Signal::SIGKILL).unwrap();
    service.process().wait(LIMIT).unwrap();
}

/// A backend, and a daemon that has seen that it is up.
fn watched_service(rest: &str) -> (Topology, Service, Process) {
    let topology = Topology::new().unwrap();
    let backend = service(&topology);
    let daemon = start_daemon(&topology, &watched(rest));
    wait_until("it is up", || health(&topology, "web") == "up");
    (topology, backend, daemon)
}

// ---- Health ----

#[test]
fn a_backend_that_goes_down_is_held_and_released_when_it_is_back() {
    let (topology, backend, daemon) = watched_service(HOLD);
    assert_eq!(mode(&topology, "web"), "open");
    kill(&backend);
    wait_until("it is held", || mode(&topology, "web") == "hold");
    let client = held_client(&topology, "web", TARGET);
    let _backend = service(&topology);
    wait_until("it is open", || mode(&topology, "web") == "open");
    assert!(client.finish_connected() < LIMIT);
    assert_eq!(health(&topology, "web"), "up");
    stop_daemon(&daemon);
}

#[test]
fn a_backend_that_goes_down_is_rejected_for_as_long_as_it_is_down() {
    let (topology, backend, daemon) = watched_service("[gate.web.on_down]\ndo = \"reject\"\n");
    kill(&backend);
    wait_until("it rejects", || mode(&topology, "web") == "reject");
    // Longer than the lease of the rejection itself.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(13) {
        assert_eq!(mode(&topology, "web"), "reject");
        std::thread::sleep(MS * 50);
    }
    let _backend = service(&topology);
    wait_until("it is open", || mode(&topology, "web") == "open");
    stop_daemon(&daemon);
}

#[test]
fn its_connections_are_reset_where_that_is_asked_for() {
    let topology = Topology::new().unwrap();
    // Two listeners: one is checked, and the other has the connections that outlive it.
    let checked = service(&topology);
    let other = "10.0.0.5:8081";
    let _listener = listen(&topology, other.parse().unwrap());
    let config = watched("[gate.web.on_down]\ndo = \"hold\"\nflush = true\n");
    let config = config.replacen(
        &format!("[\"{ENDPOINT}\"]"),
        &format!("[\"{ENDPOINT}\", \"{other}\"]"),
        1,
    );
    let daemon = start_daemon(&topology, &config);
    wait_until("it is up", || health(&topology, "web") == "up");
    let to: SocketAddr = other.parse().unwrap();
    let stream = topology
        .run(Side::Client, || Ok(TcpStream::connect(to)?))
        .unwrap();
    stream.set_nonblocking(true).unwrap();
    kill(&checked);
    wait_until("it is reset", || match (&stream).read(&mut [0]) {
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
        Ok(_) => false,
    });
    stop_daemon(&daemon);
}

#[test]
fn nothing_is_done_where_that_is_asked_for() {
    let (topology, backend, daemon) = watched_service("[gate.web.on_down]\ndo = \"nothing\"\n");
    kill(&backend);
    wait_until("it is down", || health(&topology, "web") == "down");
    std::thread::sleep(MS * 300);
    assert_eq!(mode(&topology, "web"), "open");
    stop_daemon(&daemon);
}

#[test]
fn what_an_operator_closed_is_left_to_him() {
    let (topology, backend, daemon) = watched_service(HOLD);
    gate(&topology, &["reject", "web", "--for", "1m"]);
    kill(&backend);
    wait_until("it is down", || health(&topology, "web") == "down");
    let _backend = service(&topology);
    wait_until("it is up", || health(&topology, "web") == "up");
    assert_eq!(mode(&topology, "web"), "reject");
    gate(&topology, &["open", "web"]);
    stop_daemon(&daemon);
}

#[test]
fn its_checks_pass_a_gate_that_an_operator_closed() {
    let (topology, _backend, daemon) = watched_service(HOLD);
    gate(&topology, &["hold", "web", "--for", "1m"]);
    let client = held_client(&topology, "web", TARGET);
    // Some thirty checks.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        assert_eq!(health(&topology, "web"), "up");
        std::thread::sleep(MS * 50);
    }
    assert_eq!(client.connected(), 0);
    gate(&topology, &["open", "web"]);
    client.finish_connected();
    stop_daemon(&daemon);
}

#[test]
fn a_hold_ends_with_its_lease_though_the_backend_stays_down() {
    let (topology, backend, daemon) = watched_service(HOLD);
    stop_daemon(&daemon);
    let config = watched(HOLD).replace("20s", "3s");
    let daemon = start_daemon(&topology, &config);
    wait_until("it is up", || health(&topology, "web") == "up");
    kill(&backend);
    wait_until("it is held", || mode(&topology, "web") == "hold");
    wait_until("the lease is over", || mode(&topology, "web") == "open");
    std::thread::sleep(MS * 500);
    assert_eq!(mode(&topology, "web"), "open", "it is not held again");
    let _backend = service(&topology);
    wait_until("it is up", || health(&topology, "web") == "up");
    stop_daemon(&daemon);
}

#[test]
fn under_load_only_the_time_until_it_is_noticed_is_refused() {
    let (topology, backend, daemon) = watched_service(HOLD);
    let load = Load::new(TARGET, 200, Duration::from_secs(4));
    let running = load.start(&topology).unwrap();
    std::thread::sleep(MS * 800);
    kill(&backend);
    let dead = running.begin().elapsed();
    wait_until("it is held", || mode(&topology, "web") == "hold");
    let noticed = running.begin().elapsed();
    std::thread::sleep(MS * 800);
    let _backend = service(&topology);
    let requests = running.finish().unwrap();
    let refused: Vec<_> = requests
        .iter()
        .filter(|it| it.outcome == Outcome::Refused)
        .map(|it| it.at)
        .collect();
    let first = refused.iter().min().copied().unwrap_or_default();
    let last = refused.iter().max().copied().unwrap_or_default();
    println!(
        "{} requests, {} refused within {:?}",
        requests.len(),
        refused.len(),
        last.saturating_sub(first)
    );
    assert!(last <= noticed, "{last:?}, noticed at {noticed:?}");
    // What the killed backend had is reset, or closed where it had nothing unread.
    let lost: Vec<_> = requests
        .iter()
        .filter(|it| !matches!(it.outcome, Outcome::Ok | Outcome::Refused))
        .collect();
    let was_cut_off = |it: &&gate_tests::load::Request| {
        matches!(it.outcome, Outcome::Reset | Outcome::Other) && it.at <= dead
    };
    assert!(lost.iter().all(was_cut_off), "killed by {dead:?}: {lost:?}");
    stop_daemon(&daemon);
}

// ---- Guards ----

#[test]
fn what_a_guard_holds_is_released_as_soon_as_a_socket_listens() {
    let topology = Topology::new().unwrap();
    let config = format!(
        "[gate.web]\nendpoints = [\"{ENDPOINT}\"]\ninterfaces = [\"eth0\"]\nmode = \"guard\"\n"
    );
    let daemon = start_daemon(&topology, &config);
    for _ in 0..5 {
        let client = Clients::one(&topology, TARGET);
        wait_until_held(&topology, "web", 1);
        let listener = listen(&topology, TARGET);
        client.finish_released(&topology, "web");
        close(&topology, listener);
    }
    // A gate that the configuration does not know is watched over as well.
    gate(&topology, &["guard", "10.0.0.5:8082"]);
    let client = Clients::one(&topology, "10.0.0.5:8082".parse().unwrap());
    wait_until_held(&topology, "10.0.0.5:8082", 1);
    let _listener = listen(&topology, "10.0.0.5:8082".parse().unwrap());
    client.finish_released(&topology, "10.0.0.5:8082");
    stop_daemon(&daemon);
}

// ---- Dying and coming back ----

#[test]
fn a_killed_daemon_changes_nothing_and_the_next_goes_on() {
    let (topology, backend, daemon) = watched_service(HOLD);
    kill(&backend);
    wait_until("it is held", || mode(&topology, "web") == "hold");
    let client = held_client(&topology, "web", TARGET);
    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait(LIMIT).unwrap();
    assert_eq!(mode(&topology, "web"), "hold");
    let daemon = restart_daemon(&topology);
    wait_until("it is down", || health(&topology, "web") == "down");
    assert_eq!(mode(&topology, "web"), "hold");
    assert_eq!(client.connected(), 0);
    let _backend = service(&topology);
    wait_until("it is open", || mode(&topology, "web") == "open");
    client.finish_connected();
    stop_daemon(&daemon);
}

#[test]
fn a_daemon_that_ends_leaves_the_gates_as_they_are() {
    let (topology, _backend, daemon) = watched_service(HOLD);
    gate(&topology, &["hold", "web", "--for", "1m"]);
    let client = held_client(&topology, "web", TARGET);
    stop_daemon(&daemon);
    assert_eq!(mode(&topology, "web"), "hold");
    assert!(get(&topology, "/v1").is_none());
    gate(&topology, &["open", "web"]);
    client.finish_connected();
}

#[test]
fn it_lets_gate_down_and_up_happen() {
    let (topology, backend, daemon) = watched_service(HOLD);
    gate(&topology, &["down"]);
    wait_until("the backend is checked still", || {
        health(&topology, "web") == "up"
    });
    let (status, _) = post(&topology, "/v1/reload", &json!({}));
    assert_eq!(status, 200);
    kill(&backend);
    wait_until("it is held", || mode(&topology, "web") == "hold");
    let _backend = service(&topology);
    wait_until("it is open", || mode(&topology, "web") == "open");
    stop_daemon(&daemon);
}

// ---- Configuration ----

#[test]
fn a_wrong_configuration_is_refused_and_the_one_before_goes_on() {
    let (topology, _backend, daemon) = watched_service(HOLD);
    write(&topology, CONFIG, "[gate.web]\nendpoint = 1\n");
    let output = run_gate(&topology, Side::Server, &["reload"]);
    assert_ne!(output.code(), 0, "{output}");
    assert!(output.stderr.contains("/run/gate.toml:2:1"), "{output}");
    assert_eq!(health(&topology, "web"), "up");
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_until("it is told", || {
        daemon.stderr().unwrap().matches("gate.toml:2:1").count() >= 2
    });
    assert_eq!(mode(&topology, "web"), "open");
    stop_daemon(&daemon);
    let output = spawn_daemon(&topology).wait(LIMIT).unwrap();
    assert_eq!(output.code(), 2, "{output}");
}

#[test]
fn a_reload_applies_the_difference() {
    let (topology, _backend, daemon) = watched_service(HOLD);
    let more = format!(
        "{}\n[gate.db]\nendpoints = [\"10.0.0.5:5432\"]\ninterfaces = [\"eth0\"]\n",
        watched(HOLD)
    );
    write(&topology, CONFIG, &more);
    gate(&topology, &["reload"]);
    assert_eq!(mode(&topology, "db"), "open");
    assert_eq!(health(&topology, "web"), "up", "its state is kept");
    write(&topology, CONFIG, &watched(HOLD));
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_until("it is gone", || {
        common::find_gate(&topology, "db").is_none()
    });
    assert_eq!(gate_status(&topology, "web").gate.endpoints.len(), 1);
    stop_daemon(&daemon);
}

#[test]
fn an_interface_that_is_not_there_is_waited_for() {
    let topology = Topology::new().unwrap();
    let config =
        format!("[gate.web]\nendpoints = [\"{ENDPOINT}\"]\ninterfaces = [\"eth0\", \"late0\"]\n");
    let daemon = start_daemon(&topology, &config);
    wait_until("it says so", || daemon.stderr().unwrap().contains("late0"));
    shell(
        &topology,
        Side::Server,
        "ip link add late0 type veth peer name late1",
    );
    wait_until("it is attached", || {
        let status = run_gate(&topology, Side::Server, &["status"]);
        status.stdout.contains("late0")
    });
    stop_daemon(&daemon);
}

#[test]
fn a_backend_that_does_not_listen_yet_is_handed_over_to_once_it_does() {
    let topology = Topology::new().unwrap();
    let _own = service(&topology);
    let config = format!(
        "[gate.web]\nendpoints = [\"{ENDPOINT}\"]\ninterfaces = [\"eth0\"]\n\
         backends = [{{ address = \"127.0.0.1:8081\" }}]\n"
    );
    let daemon = start_daemon(&topology, &config);
    wait_until("it says so", || {
        daemon
            .stderr()
            .unwrap()
            .contains("a listener at 127.0.0.1:8081")
    });
    let other = Options::new("127.0.0.1:8081".parse().unwrap());
    let _backend = Service::start(&topology, other).unwrap();
    wait_until("it is handed over", || {
        gate_status(&topology, "web").handover.is_some()
    });
    stop_daemon(&daemon);
}

#[test]
fn a_reload_that_drops_a_gate_that_the_daemon_closed_opens_it_first() {
    let (topology, backend, daemon) = watched_service("[gate.web.on_down]\ndo = \"reject\"\n");
    kill(&backend);
    wait_until("it rejects", || mode(&topology, "web") == "reject");
    write(&topology, CONFIG, "");
    // Refused at first, because the gate is closed; then the daemon opens it, and tries again.
    let _refused = run_gate(&topology, Side::Server, &["reload"]);
    wait_until("it is gone", || {
        common::find_gate(&topology, "web").is_none()
    });
    stop_daemon(&daemon);
}

#[test]
fn what_others_took_down_stays_down() {
    let topology = Topology::new().unwrap();
    let config = format!(
        "[gate.web]\nendpoints = [\"{ENDPOINT}\"]\ninterfaces = [\"eth0\", \"late0\"]\n\
         backends = [{{ address = \"127.0.0.1:8081\" }}]\n"
    );
    let daemon = start_daemon(&topology, &config);
    gate(&topology, &["down"]);
    let other = Options::new("127.0.0.1:8081".parse().unwrap());
    let _backend = Service::start(&topology, other).unwrap();
    let line = "ip link add late0 type veth peer name late1";
    shell(&topology, Side::Server, line);
    // Longer than it takes to try again.
    std::thread::sleep(Duration::from_secs(7));
    let status = run_gate(&topology, Side::Server, &["status", "--json"]);
    assert!(status.stdout.contains("\"up\":false"), "{status}");
    stop_daemon(&daemon);
}
