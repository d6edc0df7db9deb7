//! Status ports: aliases of a gate, existing ones, and what becomes of them when the gate is closed,
//! guarded, drained, restarted and soft-stopped. Needs root.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, ENDPOINT_V6, LIMIT, MS, PORT, TARGET,
    assert_connects_at_once, connect_once, count, exists, gate, gate_status, held_client, json,
    refused, shell, status, up, wait_until, wait_until_held,
};
use gate_common::abi::Counter;
use gate_common::flow::EndpointKey;
use gate_common::handover::{Alias, MAX_ALIASES};
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4, server_v6};
use gate_userspace::alias::State;
use gate_userspace::drain;
use gate_userspace::endpoint::Endpoint;
use gate_userspace::pins::Pins;
use gate_userspace::steering;
use gate_userspace::tables::handovers::Handovers;
use nix::sys::signal::Signal;
use serde_json::Value;

const STATUS_PORT: u16 = 8081;
const STATUS: &str = "10.0.0.5:8081";
const STATUS_V6: &str = "[fd00::5]:8081";

fn by_status() -> SocketAddr {
    server_v4(STATUS_PORT)
}

/// A backend at these addresses, and the gate `web` of these endpoints.
#[track_caller]
fn web(listen: &[&str], endpoints: &[&str]) -> (Topology, Service) {
    let topology = up();
    let service = start(&topology, listen);
    gate(&topology, &[&["define", "web"], endpoints].concat());
    (topology, service)
}

#[track_caller]
fn start(topology: &Topology, listen: &[&str]) -> Service {
    let listen: Vec<SocketAddr> = listen.iter().map(|it| it.parse().unwrap()).collect();
    let options = Options {
        listen: listen.clone(),
        ..Options::new(listen[0])
    };
    Service::start(topology, options).unwrap()
}

/// The gate `web` of one endpoint, with an alias.
#[track_caller]
fn web_with_alias() -> (Topology, Service) {
    let (topology, service) = web(&[ENDPOINT], &[ENDPOINT]);
    gate(&topology, &["alias", "web", STATUS]);
    (topology, service)
}

#[track_caller]
fn kill(service: &Service) {
    service.process().signal(Signal::SIGKILL).unwrap();
    service.process().wait(LIMIT).unwrap();
}

#[track_caller]
fn assert_refused_at_once(topology: &Topology, target: SocketAddr) {
    let attempt = connect_once(topology, target);
    assert_eq!(attempt.result, Err(ErrorKind::ConnectionRefused));
    assert!(attempt.took < BEFORE_RETRANSMISSION, "{attempt:?}");
}

#[track_caller]
fn open_stream(topology: &Topology, target: SocketAddr) -> TcpStream {
    let connect = || Ok(TcpStream::connect_timeout(&target, LIMIT)?);
    let stream = topology.run(Side::Client, connect).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n";

/// One request and its answer, byte for byte.
#[track_caller]
fn ask(mut stream: &TcpStream) {
    stream.write_all(REQUEST).unwrap();
    expect(stream, 1);
}

#[track_caller]
fn expect(mut stream: &TcpStream, answers: usize) {
    for index in 0..answers {
        let mut answer = vec![0; RESPONSE.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, RESPONSE, "answer {index}");
    }
}

/// How many connections come by an address.
#[track_caller]
fn connections(topology: &Topology, endpoint: &str) -> usize {
    let endpoint: Endpoint = endpoint.parse().unwrap();
    let look = || Ok(drain::connections(&[endpoint])?.connections.len());
    topology.run(Side::Server, look).unwrap()
}

/// The states of the gate's status ports.
#[track_caller]
fn states(topology: &Topology) -> Vec<State> {
    let aliases = gate_status(topology, "web").aliases;
    aliases.into_iter().map(|(_, state)| state).collect()
}

#[track_caller]
fn has_lookup(topology: &Topology) -> bool {
    let look = || Ok(steering::has_lookup(&Pins::here()?));
    topology.run(Side::Server, look).unwrap()
}

// ---- Answering ----

#[test]
fn the_gates_listener_answers_at_its_aliases() {
    for (listen, endpoints, alias, targets) in [
        (&[ENDPOINT][..], &[ENDPOINT][..], STATUS, &[by_status()][..]),
        (
            &[ENDPOINT_V6],
            &[ENDPOINT_V6],
            STATUS_V6,
            &[server_v6(STATUS_PORT)],
        ),
        (
            &["[::]:8080"],
            &["*:8080"],
            "*:8081",
            &[by_status(), server_v6(STATUS_PORT)],
        ),
        (&["0.0.0.0:8080"], &["*:8080"], STATUS, &[by_status()]),
        (&["[::]:8080"], &[ENDPOINT], STATUS, &[by_status()]),
        (&["[::]:8080"], &[ENDPOINT], "*:8081", &[by_status()]),
        (
            &[ENDPOINT, ENDPOINT_V6],
            &[ENDPOINT, ENDPOINT_V6],
            STATUS_V6,
            &[server_v6(STATUS_PORT)],
        ),
    ] {
        let (topology, _service) = web(listen, endpoints);
        for target in targets {
            assert_refused_at_once(&topology, *target);
        }
        let said = gate(&topology, &["alias", "web", alias]).stdout;
        assert!(
            said.starts_with(&format!("web: {alias} answers ")),
            "{said}"
        );
        for target in targets {
            let stream = open_stream(&topology, *target);
            ask(&stream);
            assert_eq!(connections(&topology, &target.to_string()), 1, "{target}");
        }
        assert_eq!(states(&topology), [State::Answers]);
        assert_connects_at_once(&topology, SocketAddr::new(targets[0].ip(), PORT));
    }
}

#[test]
fn an_alias_can_have_another_address_than_its_endpoint() {
    let (topology, _service) = web(&[ENDPOINT], &[ENDPOINT]);
    shell(
        &topology,
        Side::Server,
        "ip address add 10.0.0.6/24 dev eth0",
    );
    gate(&topology, &["alias", "web", "10.0.0.6:8081"]);
    let other = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 6), STATUS_PORT));
    ask(&open_stream(&topology, other));
    assert_refused_at_once(&topology, by_status());
}

#[test]
fn two_aliases_come_and_go_each_by_itself() {
    let (topology, _service) = web_with_alias();
    gate(&topology, &["alias", "web", "10.0.0.5:8082"]);
    let targets = [by_status(), server_v4(8082)];
    for target in targets {
        assert_connects_at_once(&topology, target);
    }
    gate(&topology, &["soft-stop", "web"]);
    for target in targets {
        assert_refused_at_once(&topology, target);
    }
    gate(&topology, &["soft-start", "web"]);
    for target in targets {
        assert_connects_at_once(&topology, target);
    }

    let stream = open_stream(&topology, by_status());
    ask(&stream);
    let said = gate(&topology, &["alias", "web", STATUS, "--remove"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 is no status port any more\n");
    assert_refused_at_once(&topology, by_status());
    ask(&stream);
    assert_connects_at_once(&topology, server_v4(8082));
    assert!(has_lookup(&topology));
    gate(&topology, &["alias", "web", "10.0.0.5:8082", "--remove"]);
    assert!(!has_lookup(&topology));
    assert_refused_at_once(&topology, server_v4(8082));
    let said = gate(&topology, &["alias", "web", STATUS, "--remove"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 was no status port\n");
}

#[test]
fn of_two_ports_at_one_address_one_is_named() {
    let listen = [ENDPOINT, "10.0.0.5:8443"];
    let (topology, _service) = web(&listen, &listen);
    let args = ["alias", "web", STATUS];
    refused(&topology, &args, 2, &[ENDPOINT, "10.0.0.5:8443", "--of"]);
    let of = |of| [&args[..], &["--of", of]].concat();
    refused(&topology, &of("10.0.0.5:9"), 2, &["no endpoint of web"]);
    gate(&topology, &of("10.0.0.5:8443"));
    assert_connects_at_once(&topology, by_status());
    let shown = gate(&topology, &["status"]).stdout;
    let line = "web: status port 10.0.0.5:8081: answers for 10.0.0.5:8443\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn an_alias_again_is_the_same_alias() {
    let (topology, _service) = web_with_alias();
    let again = gate(&topology, &["alias", "web", STATUS]).stdout;
    assert!(again.ends_with("; so already\n"), "{again}");
    gate(&topology, &["soft-stop", "web"]);
    let withdrawn = gate(&topology, &["alias", "web", STATUS]).stdout;
    assert!(withdrawn.contains("`gate soft-start web`"), "{withdrawn}");
    assert_refused_at_once(&topology, by_status());
}

// ---- Soft stop ----

#[test]
fn a_soft_stop_refuses_the_status_port_and_nothing_else() {
    let (topology, _service) = web_with_alias();
    let both = [by_status(), TARGET].map(|it| open_stream(&topology, it));
    both.iter().for_each(ask);
    let said = gate(&topology, &["soft-stop", "web"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 is refused\n");
    for _ in 0..20 {
        assert_refused_at_once(&topology, by_status());
        assert_connects_at_once(&topology, TARGET);
    }
    both.iter().for_each(ask);
    assert_eq!(states(&topology), [State::Withdrawn]);
    let again = gate(&topology, &["soft-stop", "web"]).stdout;
    assert_eq!(again, "web: 10.0.0.5:8081 is refused already\n");

    let said = gate(&topology, &["soft-start", "web"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 answers\n");
    assert_connects_at_once(&topology, by_status());
    let again = gate(&topology, &["soft-start", "web"]).stdout;
    assert_eq!(again, "web: 10.0.0.5:8081 answers already\n");
    both.iter().for_each(ask);
}

#[test]
fn what_is_under_way_by_an_alias_loses_no_byte() {
    const ASKED: usize = 20_000;
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    let mut writer = stream.try_clone().unwrap();
    let writes = thread::spawn(move || {
        for _ in 0..ASKED {
            writer.write_all(REQUEST).unwrap();
        }
    });
    expect(&stream, 100);
    for verb in ["soft-stop", "soft-start", "soft-stop"] {
        gate(&topology, &[verb, "web"]);
        expect(&stream, 1000);
    }
    gate(&topology, &["alias", "web", STATUS, "--remove"]);
    expect(&stream, ASKED - 3100);
    writes.join().unwrap();
}

#[test]
fn a_soft_start_without_a_listener_changes_nothing() {
    let (topology, service) = web_with_alias();
    gate(&topology, &["soft-stop", "web"]);
    kill(&service);
    let words = ["nothing listens on 10.0.0.5:8080"];
    refused(&topology, &["soft-start", "web"], 3, &words);
    assert_eq!(states(&topology), [State::Withdrawn]);
    let _service = start(&topology, &[ENDPOINT]);
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["soft-start", "web"]);
    assert_connects_at_once(&topology, by_status());
}

#[test]
fn an_existing_status_port_needs_no_endpoint_of_its_own() {
    let listen = [ENDPOINT, "10.0.0.5:8443", STATUS];
    let (topology, _service) = web(&listen, &listen[..2]);
    gate(&topology, &["alias", "web", STATUS, "--existing"]);
    gate(&topology, &["define", "web", "10.0.0.5:8443"]);
    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    let shown = json(&gate(&topology, &["status", "--json"]));
    assert_eq!(shown["gates"][0]["aliases"][0]["of"], Value::Null);
}

#[test]
fn an_existing_status_port_is_only_refused() {
    let (topology, _service) = web(&[ENDPOINT], &[ENDPOINT]);
    let args = ["alias", "web", STATUS, "--existing"];
    refused(&topology, &args, 3, &["nothing listens on 10.0.0.5:8081"]);
    let status_service = start(&topology, &[STATUS]);
    let said = gate(&topology, &args).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 is its status port\n");
    assert_connects_at_once(&topology, by_status());
    // It is none of the gate's: neither held nor drained.
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    gate(&topology, &["hold", "web", "--for", "30s"]);
    assert_connects_at_once(&topology, by_status());
    gate(&topology, &["drain", "web", "--timeout", "1ms"]);
    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["open", "web"]);
    assert_refused_at_once(&topology, by_status());
    ask(&stream);
    gate(&topology, &["soft-start", "web"]);
    assert_connects_at_once(&topology, by_status());
    assert_eq!(states(&topology), [State::Answers]);
    kill(&status_service);
    assert_eq!(states(&topology), [State::Silent]);
    // Nothing listens there any more, so the gate's listener can.
    gate(&topology, &["alias", "web", STATUS]);
    assert_connects_at_once(&topology, by_status());
}

// ---- Closed, guarded, drained ----

#[test]
fn an_alias_is_held_with_its_gate() {
    let (topology, _service) = web_with_alias();
    gate(&topology, &["hold", "web", "--for", "30s"]);
    let by_alias = held_client(&topology, "web", by_status());
    gate(&topology, &["open", "web"]);
    by_alias.finish_connected();
    assert_eq!(count(&topology, "web", Counter::Released), 1);
}

#[test]
fn a_withdrawn_alias_of_a_held_gate_is_refused_at_once() {
    let (topology, _service) = web_with_alias();
    gate(&topology, &["hold", "web", "--for", "30s"]);
    let by_gate = held_client(&topology, "web", TARGET);
    let by_alias = held_client(&topology, "web", by_status());
    gate(&topology, &["soft-stop", "web"]);
    // What was held for the status port is refused as it comes again; the rest is held on.
    wait_until_held(&topology, "web", 1);
    assert_eq!(
        by_alias.finish()[0].result,
        Err(ErrorKind::ConnectionRefused)
    );
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["soft-start", "web"]);
    let by_alias = held_client(&topology, "web", by_status());
    gate(&topology, &["open", "web"]);
    by_alias.finish_connected();
    by_gate.finish_connected();
}

#[test]
fn an_alias_is_guarded_with_its_gate() {
    let (topology, service) = web_with_alias();
    gate(&topology, &["guard", "web", "--for", "30s"]);
    let watcher = topology
        .spawn_gate(["guard", "web", "--for", "30s", "--watch"])
        .unwrap();
    wait_until("the watcher has begun", || {
        watcher.stdout().unwrap().contains("guarded")
    });
    assert_connects_at_once(&topology, by_status());
    kill(&service);
    let by_alias = held_client(&topology, "web", by_status());
    let service = start(&topology, &[ENDPOINT]);
    // Long before the lease is over: only the watcher can have told of the new listener.
    by_alias.finish_connected();
    assert_connects_at_once(&topology, by_status());
    assert_eq!(states(&topology), [State::Answers]);

    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    kill(&service);
    let by_gate = held_client(&topology, "web", TARGET);
    assert_refused_at_once(&topology, by_status());
    let _service = start(&topology, &[ENDPOINT]);
    by_gate.finish_connected();
}

#[test]
fn what_came_by_an_alias_is_drained_and_flushed_with_its_gate() {
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    for verb in ["soft-stop", "soft-start", "soft-stop"] {
        gate(&topology, &[verb, "web"]);
        let args = ["--json", "drain", "web", "--timeout", "1ms"];
        let drained = topology.gate(args).unwrap();
        assert_eq!(drained.code(), 3, "{verb}: {drained}");
        let left = &json(&drained)["connections"][0];
        assert_eq!(left["endpoint"], STATUS, "{drained}");
        assert!(
            !drained.stderr.contains("10.0.0.5:8081 is open"),
            "{drained}"
        );
    }
    let flushed = gate(&topology, &["flush", "web"]).stdout;
    assert!(flushed.contains("1 connection reset"), "{flushed}");
    gate(&topology, &["drain", "web", "--timeout", "10s"]);
}

// ---- Handed over ----

#[test]
fn an_alias_follows_a_handover() {
    const TO: &str = "127.0.0.1:8082";
    let (topology, own) = web_with_alias();
    let other = Options {
        name: "other".to_owned(),
        ..Options::new(TO.parse().unwrap())
    };
    let other = Service::start(&topology, other).unwrap();
    let kept = open_stream(&topology, by_status());
    ask(&kept);
    gate(&topology, &["handover", "web", "--to", TO]);
    assert_eq!(who_answers(&topology), "other");
    ask(&kept);
    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["soft-start", "web"]);
    assert_eq!(who_answers(&topology), "other");
    gate(&topology, &["handover", "web", "--back"]);
    assert_eq!(who_answers(&topology), "ok");

    // One of the two is enough.
    gate(&topology, &["handover", "web", "--to", TO]);
    kill(&own);
    gate(&topology, &["soft-stop", "web"]);
    gate(&topology, &["soft-start", "web"]);
    assert_eq!(who_answers(&topology), "other");
    assert_eq!(states(&topology), [State::Answers]);
    let _own = start(&topology, &[ENDPOINT]);
    gate(&topology, &["soft-start", "web"]);
    kill(&other);
    assert_eq!(who_answers(&topology), "ok");
    gate(&topology, &["alias", "web", STATUS, "--remove"]);
    assert!(has_lookup(&topology));
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["handover", "web", "--back"]);
    assert!(!has_lookup(&topology));
}

/// The name of the backend that answers at the status port.
#[track_caller]
fn who_answers(topology: &Topology) -> String {
    let mut stream = open_stream(topology, by_status());
    let request = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next_back().unwrap_or_default().to_owned()
}

// ---- Restarts ----

#[test]
fn a_restart_makes_the_new_listener_known_before_the_gate_opens() {
    let (topology, service) = web_with_alias();
    for round in 0..3 {
        let command = service.restart_command(100 * MS).unwrap();
        let words: Vec<&str> = command.iter().map(|it| it.to_str().unwrap()).collect();
        let args = [&["restart", "web", "--"], &words[..]].concat();
        let restart = topology.spawn_gate(args).unwrap();
        wait_until("the gate is closed", || {
            gate_status(&topology, "web").mode.name() == "hold"
        });
        let client = Clients::one(&topology, by_status());
        let restarted = restart.wait(LIMIT).unwrap();
        assert_eq!(restarted.code(), 0, "{round}: {restarted}");
        client.finish_connected();
        ask(&open_stream(&topology, by_status()));
        assert_eq!(states(&topology), [State::Answers]);
    }
}

#[test]
fn after_a_restart_without_gate_an_alias_refuses_until_it_is_told() {
    let (topology, service) = web_with_alias();
    kill(&service);
    assert_eq!(states(&topology), [State::Silent]);
    assert_refused_at_once(&topology, by_status());
    let service = start(&topology, &[ENDPOINT]);
    assert_eq!(states(&topology), [State::Stale]);
    assert_refused_at_once(&topology, by_status());
    let shown = gate(&topology, &["status"]).stdout;
    assert!(
        shown.contains("`gate soft-start web` makes known"),
        "{shown}"
    );
    gate(&topology, &["soft-start", "web"]);
    assert_connects_at_once(&topology, by_status());

    gate(&topology, &["hold", "web", "--for", "30s"]);
    kill(&service);
    let _service = start(&topology, &[ENDPOINT]);
    gate(&topology, &["open", "web"]);
    assert_connects_at_once(&topology, by_status());
}

#[test]
fn a_restart_without_gate_up_keeps_the_alias_of_an_endpoint() {
    let topology = Topology::new().unwrap();
    let service = start(&topology, &[ENDPOINT]);
    gate(&topology, &["alias", ENDPOINT, STATUS]);
    assert_connects_at_once(&topology, by_status());
    let command = service.restart_command(50 * MS).unwrap();
    let words: Vec<&str> = command.iter().map(|it| it.to_str().unwrap()).collect();
    let args = [&["restart", ENDPOINT, "--"], &words[..]].concat();
    topology.gate(args).unwrap().ok().unwrap();
    assert_connects_at_once(&topology, by_status());
    let shown = status(&topology);
    assert!(shown.attachments.is_empty(), "{shown:?}");
    gate(&topology, &["alias", ENDPOINT, STATUS, "--remove"]);
    assert_refused_at_once(&topology, by_status());
}

#[test]
fn a_drain_before_a_restart_waits_for_what_came_by_an_alias() {
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    let args = [
        "restart",
        "web",
        "--drain",
        "30s",
        "--max-hold",
        "60s",
        "--",
        "true",
    ];
    let restart = topology.spawn_gate(args).unwrap();
    wait_until("it waits for the connection", || {
        restart
            .stderr()
            .unwrap()
            .contains("waiting for 1 connection")
    });
    drop(stream);
    let restarted = restart.wait(LIMIT).unwrap();
    assert_eq!(restarted.code(), 0, "{restarted}");
}

// ---- What is refused, and what is shown ----

#[test]
fn what_cannot_be_a_status_port_is_refused() {
    let (topology, service) = web(&[ENDPOINT], &[ENDPOINT]);
    let alias = |at| ["alias", "web", at];
    refused(&topology, &["soft-stop", "web"], 3, &["gate alias web"]);
    refused(&topology, &["soft-start", "web"], 3, &["gate alias web"]);
    refused(&topology, &["soft-stop", STATUS], 3, &["no status port"]);
    refused(&topology, &["soft-stop", "other"], 3, &["no gate other"]);
    refused(
        &topology,
        &["alias", "other", STATUS],
        3,
        &["no gate other"],
    );
    refused(&topology, &alias(ENDPOINT), 3, &["an endpoint of web"]);
    refused(&topology, &alias("*:8080"), 3, &["an endpoint of web"]);
    let here = ["10.0.0.9:8081 is no address of this host"];
    refused(&topology, &alias("10.0.0.9:8081"), 3, &here);
    let which = ["which endpoint of web", ENDPOINT, "--of"];
    refused(&topology, &alias(STATUS_V6), 2, &which);
    refused(&topology, &alias("10.0.0.5"), 2, &["port"]);
    let both = ["alias", "web", STATUS, "--remove", "--existing"];
    refused(&topology, &both, 2, &[]);

    let other = start(&topology, &[STATUS]);
    let id = format!("gate-lab ({})", server_pid(&topology, STATUS_PORT));
    refused(&topology, &alias(STATUS), 3, &[&id, "--existing"]);
    refused(&topology, &alias("*:8081"), 3, &[&id, "--existing"]);
    kill(&other);

    gate(&topology, &["define", "far", "10.0.0.1:8080"]);
    let here = ["10.0.0.1:8080 is no address of this host"];
    refused(&topology, &["alias", "far", STATUS], 3, &here);
    gate(&topology, &["define", "two", "10.0.0.5:9090"]);
    let silent = ["nothing listens on 10.0.0.5:9090"];
    refused(&topology, &["alias", "two", STATUS], 3, &silent);
    refused(&topology, &["alias", ENDPOINT, STATUS], 3, &["gate web"]);
    refused(&topology, &alias("10.0.0.5:9090"), 3, &["endpoint of two"]);

    gate(&topology, &alias(STATUS));
    let known = ["a status port of web", "gate alias web", "--remove"];
    refused(&topology, &["alias", "two", STATUS], 3, &known);
    refused(&topology, &["alias", "two", STATUS, "--remove"], 3, &known);
    refused(&topology, &alias("*:8081"), 3, &known);
    for verb in ["hold", "guard", "open"] {
        refused(&topology, &[verb, STATUS], 3, &known);
    }
    refused(&topology, &["define", "three", STATUS], 3, &known);
    refused(&topology, &["define", "web", ENDPOINT, STATUS], 3, &known);
    let answering = ["10.0.0.5:8080 answers on 10.0.0.5:8081", "--remove"];
    refused(
        &topology,
        &["define", "web", "10.0.0.5:7070"],
        3,
        &answering,
    );
    kill(&service);
    gate(&topology, &["down"]);
    refused(&topology, &["alias", "web", STATUS], 3, &["no gate web"]);
    let silent = ["nothing listens on 10.0.0.5:8080"];
    refused(&topology, &["alias", ENDPOINT, STATUS], 3, &silent);
    refused(&topology, &["soft-stop", "web"], 3, &["gate is not up"]);
}

/// The process that listens on a port of the server, by its id in the topology.
#[track_caller]
fn server_pid(topology: &Topology, port: u16) -> String {
    let file = format!("/run/backend-{port}.pid");
    wait_until("it has written its id", || exists(topology, &file));
    shell(topology, Side::Server, &format!("cat {file}"))
}

#[test]
fn a_full_table_is_told_as_one() {
    let (topology, _service) = web_with_alias();
    let fill = || {
        let pins = Pins::here()?;
        let lock = pins.lock()?;
        let mut handovers = Handovers::open(&pins)?.unwrap();
        let (_, alias) = handovers.aliases()?[0];
        let first: Endpoint = "10.0.0.5:10000".parse().unwrap();
        for more in 1..MAX_ALIASES as u16 {
            let at = Endpoint {
                port: first.port + more,
                ..first
            };
            let existing = Alias {
                flags: Alias::EXISTING,
                ..alias
            };
            handovers.set_alias(&lock, EndpointKey::from(at), existing)?;
        }
        Ok(())
    };
    topology.run(Side::Server, fill).unwrap();
    let words = ["the table of aliases is full (1024 entries)"];
    refused(&topology, &["alias", "web", "10.0.0.5:8082"], 1, &words);
    assert_connects_at_once(&topology, by_status());
    gate(&topology, &["alias", "web", STATUS, "--remove"]);
    gate(&topology, &["alias", "web", "10.0.0.5:8082"]);
}

#[test]
fn an_alias_is_none_of_the_endpoints() {
    let (topology, _service) = web_with_alias();
    let said = gate(&topology, &["define", "web", ENDPOINT, ENDPOINT_V6]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8080, [fd00::5]:8080\n");
    assert_connects_at_once(&topology, by_status());
    let again = gate(&topology, &["define", "web", ENDPOINT]).stdout;
    assert!(again.contains("without [fd00::5]:8080"), "{again}");
    assert_connects_at_once(&topology, by_status());
    let already = gate(&topology, &["define", "web", ENDPOINT]).stdout;
    assert!(already.contains("already"), "{already}");
    let said = gate(&topology, &["forget", "web"]).stdout;
    let line = "web: forgotten, with 10.0.0.5:8080, and with its status port 10.0.0.5:8081\n";
    assert_eq!(said, line);
    assert_refused_at_once(&topology, by_status());
    assert!(!has_lookup(&topology));
    assert!(status(&topology).gates.is_empty());
}

#[test]
fn status_ports_are_shown() {
    let (topology, service) = web_with_alias();
    let told = |args: &[&str]| json(&gate(&topology, &[&["--json"], args].concat()));
    let aliases = || told(&["status"])["gates"][0]["aliases"].clone();
    let shown = |state: &str| {
        serde_json::json!([{
            "alias": STATUS,
            "of": ENDPOINT,
            "existing": false,
            "state": state,
        }])
    };
    assert_eq!(aliases(), shown("answers"));
    assert_eq!(
        told(&["status"])["gates"][0]["endpoints"],
        json_of(&[ENDPOINT])
    );
    let stopped = told(&["soft-stop", "web"]);
    assert_eq!(stopped["aliases"], json_of(&[STATUS]));
    assert_eq!(
        (&stopped["withdrawn"], &stopped["already"]),
        (&true.into(), &false.into())
    );
    assert_eq!(aliases(), shown("withdrawn"));
    let text = gate(&topology, &["status"]).stdout;
    assert!(
        text.contains("withdrawn, so refused: `gate soft-start web`"),
        "{text}"
    );
    let started = told(&["soft-start", "web"]);
    assert_eq!(started["withdrawn"], false);
    kill(&service);
    assert_eq!(aliases(), shown("silent"));
    let text = gate(&topology, &["status"]).stdout;
    assert!(
        text.contains("refused: nothing listens at 10.0.0.5:8080"),
        "{text}"
    );
    let _service = start(&topology, &[ENDPOINT]);
    assert_eq!(aliases(), shown("stale"));
    let added = told(&["alias", "web", STATUS]);
    assert_eq!(added["alias"], STATUS);
    assert_eq!(added["of"], ENDPOINT);
    assert_eq!(added["already"], true);
    assert_eq!(aliases(), shown("answers"));
    let removed = told(&["alias", "web", STATUS, "--remove"]);
    assert_eq!(
        (&removed["removed"], &removed["already"]),
        (&true.into(), &false.into())
    );
    assert_eq!(aliases(), serde_json::json!([]));
}

fn json_of(texts: &[&str]) -> Value {
    serde_json::json!(texts)
}

#[test]
fn down_leaves_nothing_of_an_alias() {
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    gate(&topology, &["down"]);
    assert!(!exists(&topology, common::ROOT));
    assert_refused_at_once(&topology, by_status());
    assert_connects_at_once(&topology, TARGET);
    ask(&stream);
    // It was detached, and not only forgotten.
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["define", "web", ENDPOINT]);
    assert_refused_at_once(&topology, by_status());
}

#[test]
fn a_restart_under_load_refuses_nobody_by_an_alias() {
    let (topology, service) = web_with_alias();
    let load = gate_tests::load::Load::new(by_status(), 200, Duration::from_secs(2));
    let running = load.start(&topology).unwrap();
    let command = service.restart_command(300 * MS).unwrap();
    let words: Vec<&str> = command.iter().map(|it| it.to_str().unwrap()).collect();
    let args = [&["restart", "web", "--"], &words[..]].concat();
    topology.gate(args).unwrap().ok().unwrap();
    let requests = running.finish().unwrap();
    let failed: Vec<_> = requests
        .iter()
        .filter(|it| it.outcome != gate_tests::load::Outcome::Ok)
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}
