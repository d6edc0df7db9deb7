//! `gate restart` where nothing is attached: it attaches wherever the endpoint's connections go, and
//! detaches when it ends, however it ends. Needs root.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use common::{
    Clients, ENDPOINT, LIMIT, MS, PORT, UNTIL_LET_GO, assert_refusal, count, gate, let_go, listen,
    refused, shell, snapshot, wait_until, wait_until_counted, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::exe;
use gate_tests::load::{Load, Outcome};
use gate_tests::nft;
use gate_tests::require::{Feature, has};
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Process, Side, Topology};
use gate_userspace::pins::Pins;
use gate_userspace::status::{self, Status};
use nix::sys::signal::Signal;

const TARGET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(gate_tests::topology::SERVER_V4), PORT);

/// The status; none where nothing is up.
fn status(topology: &Topology, side: Side) -> Option<Status> {
    topology
        .run(side, || Ok(status::read(&Pins::here()?)?))
        .unwrap()
}

/// How many SYNs the gate of an endpoint holds; none before it is closed.
fn held(topology: &Topology, side: Side, endpoint: &str) -> Option<usize> {
    let status = status(topology, side)?;
    let gate = status
        .gates
        .iter()
        .find(|gate| gate.gate.to_string() == endpoint && gate.mode.name() == "hold")?;
    Some(gate.waiting.held)
}

/// Starts a restart on one side and returns when the gate is closed.
#[track_caller]
fn start(topology: &Topology, side: Side, endpoint: &str, command: &[&str]) -> Process {
    let mut gate = Command::new(exe::gate().unwrap());
    gate.args(["restart", endpoint, "--"]).args(command);
    let process = topology.spawn(side, &mut gate).unwrap();
    wait_until("the gate is closed", || {
        held(topology, side, endpoint).is_some()
    });
    process
}

/// The interfaces and hooks that are attached, as `lo tc-ingress`.
fn hooks(topology: &Topology, side: Side) -> Vec<String> {
    let Some(status) = status(topology, side) else {
        return Vec::new();
    };
    let live = status.attachments.iter();
    live.filter_map(|it| Some(format!("{} {}", it.interface.as_ref()?, it.hook?)))
        .collect()
}

#[test]
fn one_command_is_the_whole_installation() {
    let topology = Topology::new().unwrap();
    let before = snapshot(&topology);
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let load = Load::new(TARGET, 200, Duration::from_secs(3));
    let load = load.start(&topology).unwrap();
    let command = service.restart_command(MS * 300).unwrap();
    let mut gate = Command::new(exe::gate().unwrap());
    gate.args(["restart", ENDPOINT, "--"]).args(command);
    let output = topology.output(Side::Server, &mut gate, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert!(
        output.stderr.contains("attached for this restart: lo")
            && output.stderr.contains(INTERFACE),
        "{output}"
    );
    let requests = load.finish().unwrap();
    let failed = requests
        .iter()
        .filter(|request| request.outcome != Outcome::Ok)
        .count();
    assert_eq!(failed, 0, "of {}: {output}", requests.len());
    assert_eq!(snapshot(&topology), before);
}

#[test]
fn clients_of_this_host_and_of_others_are_held_and_the_own_check_is_not() {
    for address in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, PORT)),
        TARGET,
    ] {
        let topology = Topology::new().unwrap();
        let before = snapshot(&topology);
        let service = Service::start(&topology, Options::new(address)).unwrap();
        let endpoint = address.to_string();
        // Behind it, so that the clients come first.
        let bounce = service.restart_command(MS * 100).unwrap();
        let words: Vec<String> = bounce
            .iter()
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let line = format!("{UNTIL_LET_GO}; exec {}", words.join(" "));
        let restart = start(&topology, Side::Server, &endpoint, &["sh", "-c", &line]);
        let mut expected = vec!["lo tc-ingress".to_owned()];
        let mut clients = vec![Clients::start_at(&topology, Side::Server, address, 3, None)];
        if !address.ip().is_loopback() {
            expected.push(format!("{INTERFACE} tc-ingress"));
            clients.push(Clients::start(&topology, address, 3, None));
        }
        assert_eq!(hooks(&topology, Side::Server), expected);
        let waiting = 3 * clients.len();
        wait_until("all are held", || {
            held(&topology, Side::Server, &endpoint) == Some(waiting)
        });
        let_go(&topology);
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        for clients in clients {
            assert!(clients.finish_connected() < LIMIT);
        }
        assert_eq!(snapshot(&topology), before, "{output}");
    }
}

#[test]
fn a_backend_on_another_host_is_gated_where_its_connections_leave() {
    let topology = Topology::new().unwrap();
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let command = ["sh", "-c", UNTIL_LET_GO];
    let restart = start(&topology, Side::Client, ENDPOINT, &command);
    let hooks = hooks(&topology, Side::Client);
    assert_eq!(hooks, [format!("{INTERFACE} tc-egress")]);
    let clients = Clients::start(&topology, TARGET, 5, None);
    wait_until("all are held", || {
        held(&topology, Side::Client, ENDPOINT) == Some(5)
    });
    let_go(&topology);
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    let released = "5 connections held, now released";
    assert!(output.stdout.contains(released), "{output}");
    clients.finish_connected();
    assert!(status(&topology, Side::Client).is_none());
    drop(service);
}

#[test]
fn however_it_ends_it_detaches() {
    let topology = Topology::new().unwrap();
    let before = snapshot(&topology);
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["/etc/passwd"], 126),
        (&["no-such-command"], 127),
    ] {
        let args = [&["restart", ENDPOINT, "--"], command].concat();
        let output = topology.gate(args).unwrap();
        assert_eq!(output.code(), code, "{output}");
        assert_eq!(snapshot(&topology), before, "{output}");
    }
    let late = [
        "restart",
        "--max-hold",
        "300ms",
        ENDPOINT,
        "--",
        "sleep",
        "9",
    ];
    assert_eq!(topology.gate(late).unwrap().code(), 124);
    assert_eq!(snapshot(&topology), before);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let restart = start(&topology, Side::Server, ENDPOINT, &["sleep", "9"]);
        restart.signal(signal).unwrap();
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 128 + signal as i32, "{output}");
        assert_eq!(snapshot(&topology), before, "{output}");
    }
}

#[test]
fn what_a_killed_restart_leaves_is_told_and_the_next_one_takes_it_away() {
    let topology = Topology::new().unwrap();
    let before = snapshot(&topology);
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let restart = start(&topology, Side::Server, ENDPOINT, &["sleep", "9"]);
    restart.signal_group(Signal::SIGKILL).unwrap();
    restart.wait(LIMIT).unwrap();
    assert!(status(&topology, Side::Server).unwrap().is_temporary);
    let text = gate(&topology, &["status"]).stdout;
    assert!(text.contains("attached by `gate restart`"), "{text}");
    let output = topology
        .gate(["restart", "127.0.0.1:8081", "--", "false"])
        .unwrap();
    assert_eq!(output.code(), 1, "{output}");
    // The killed one's gate is still closed by its lease, so it stays until that is opened.
    assert!(status(&topology, Side::Server).is_some());
    gate(&topology, &["open", "--all"]);
    let output = topology.gate(["restart", ENDPOINT, "--", "true"]).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(snapshot(&topology), before);
}

#[test]
fn what_a_failed_restart_leaves_is_taken_away_by_whoever_opens() {
    let topology = Topology::new().unwrap();
    let before = snapshot(&topology);
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let keep = ["restart", ENDPOINT, "--on-failure", "keep", "--", "false"];
    assert_eq!(topology.gate(keep).unwrap().code(), 1);
    gate(&topology, &["guard", ENDPOINT]);
    gate(&topology, &["open", ENDPOINT]);
    assert!(status(&topology, Side::Server).unwrap().is_temporary);
    gate(&topology, &["guard", ENDPOINT, "--off"]);
    assert_eq!(snapshot(&topology), before);
    assert_eq!(topology.gate(keep).unwrap().code(), 1);
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(snapshot(&topology), before);
}

#[test]
fn the_last_of_two_restarts_detaches() {
    let topology = Topology::new().unwrap();
    let before = snapshot(&topology);
    let second = "127.0.0.1:8081";
    let one = start(&topology, Side::Server, ENDPOINT, &["sleep", "9"]);
    let two = start(&topology, Side::Server, second, &["sleep", "9"]);
    one.signal(Signal::SIGTERM).unwrap();
    one.wait(LIMIT).unwrap();
    assert_eq!(held(&topology, Side::Server, second), Some(0));
    assert!(hooks(&topology, Side::Server).contains(&"lo tc-ingress".to_owned()));
    two.signal(Signal::SIGTERM).unwrap();
    two.wait(LIMIT).unwrap();
    assert_eq!(snapshot(&topology), before);
}

#[test]
fn what_was_up_stays_up_and_so_does_what_is_put_up_meanwhile() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--hook", "xdp-generic", INTERFACE]);
    let before = hooks(&topology, Side::Server);
    let output = topology.gate(["restart", ENDPOINT, "--", "false"]).unwrap();
    assert!(!output.stderr.contains("attached for"), "{output}");
    assert_eq!(hooks(&topology, Side::Server), before);
    gate(&topology, &["down"]);

    let restart = start(&topology, Side::Server, ENDPOINT, &["sleep", "9"]);
    gate(&topology, &["up", INTERFACE]);
    restart.signal(Signal::SIGTERM).unwrap();
    restart.wait(LIMIT).unwrap();
    assert!(!hooks(&topology, Side::Server).is_empty());
}

#[test]
fn an_endpoint_that_nothing_attached_sees_is_refused() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", INTERFACE]);
    for verb in ["hold", "drop", "reject"] {
        let args = [verb, "127.0.0.1:8080"];
        refused(&topology, &args, 3, &["127.0.0.1:8080", "`gate up lo`"]);
    }
    let args = ["restart", "[::1]:8080", "--", "true"];
    refused(&topology, &args, 3, &["[::1]:8080", "`gate up lo`"]);
    gate(&topology, &["down"]);
    gate(&topology, &["up", "lo"]);
    let args = ["hold", "10.0.0.1:8080"];
    refused(
        &topology,
        &args,
        3,
        &["10.0.0.1:8080", "--hook tc-egress eth0"],
    );
    gate(&topology, &["hold", ENDPOINT]);
    gate(&topology, &["down"]);
    // What is to be forwarded may come in with another address.
    gate(&topology, &["up", "--hook", "xdp-generic", INTERFACE]);
    let text = gate(&topology, &args).stdout;
    assert!(
        text.contains("`gate up --hook tc-egress eth0` sees it"),
        "{text}"
    );
    gate(&topology, &["down"]);
    let output = topology
        .gate(["restart", "192.0.2.1:80", "--", "true"])
        .unwrap();
    assert_refusal(
        &output,
        1,
        &["no route leads to 192.0.2.1:80", "ip route get"],
    );
    assert!(status(&topology, Side::Server).is_none());
}

/// `*:8080` is any address of this host: what it forwards goes on.
#[test]
fn a_wildcard_holds_what_is_for_this_host_and_not_what_it_forwards() {
    for hook in ["xdp-generic", "tc"] {
        let topology = Topology::new().unwrap();
        for side in [
            "ip route add 192.0.2.0/24 via 10.0.0.5",
            "ip -6 route add 2001:db8::/64 via fd00::5",
        ] {
            shell(&topology, Side::Client, side);
        }
        topology
            .sysctl(Side::Server, "net.ipv4.ip_forward", "1")
            .unwrap();
        topology
            .sysctl(Side::Server, "net.ipv6.conf.all.forwarding", "1")
            .unwrap();
        shell(
            &topology,
            Side::Server,
            "ip link add out0 type veth peer name out1; ip link set out0 up; ip link set out1 up; \
             ip addr add 192.0.2.1/24 dev out0; ip addr add 2001:db8::1/64 dev out0 nodad",
        );
        let _listener = listen(&topology, TARGET);
        gate(&topology, &["up", "--hook", hook, INTERFACE]);
        gate(&topology, &["hold", "*:8080"]);
        let elsewhere = ["192.0.2.9:8080", "[2001:db8::9]:8080"];
        let forwarded = elsewhere.map(|to| Clients::one(&topology, to.parse().unwrap()));
        let own = Clients::one(&topology, TARGET);
        wait_until_held(&topology, "*:8080", 1);
        wait_until_counted(&topology, "*:8080", Counter::Refreshed, 1);
        assert_eq!(count(&topology, "*:8080", Counter::Held), 1, "{hook}");
        gate(&topology, &["open", "*:8080"]);
        own.finish_connected();
        drop(forwarded);
    }
}

#[test]
fn a_restart_killed_while_it_attaches_leaves_nothing_that_looks_as_if_it_were_to_stay() {
    let topology = Topology::new().unwrap();
    let add = "for i in $(seq 12); do ip link add d$i type veth peer name e$i; ip link set d$i up; \
               ip link set e$i up; done";
    shell(&topology, Side::Server, add);
    let mut partly = 0;
    for tries in 0..25 {
        let mut gate = Command::new(exe::gate().unwrap());
        gate.args(["restart", "*:8080", "--", "sleep", "9"]);
        let restart = topology.spawn(Side::Server, &mut gate).unwrap();
        std::thread::sleep(MS * (20 + tries * 10));
        restart.signal_group(Signal::SIGKILL).unwrap();
        restart.wait(LIMIT).unwrap();
        if let Some(status) = status(&topology, Side::Server) {
            let hooks = status.attachments.len();
            assert!(status.is_temporary || hooks == 0, "{hooks} hooks");
            partly += usize::from((1..25).contains(&hooks));
        }
        topology.gate(["down"]).unwrap();
    }
    println!("killed {partly} times with a part attached");
}

#[test]
fn an_interface_that_vanishes_meanwhile_is_no_reason_to_fail() {
    let topology = Topology::new().unwrap();
    let _listener = listen(&topology, TARGET);
    let mut churn = Command::new("sh");
    churn.args([
        "-c",
        "while :; do ip link add t0 type veth peer name t1; ip link set t0 up; ip link set t1 up; \
         ip link del t0; done",
    ]);
    let churn = topology.spawn(Side::Server, &mut churn).unwrap();
    for _ in 0..10 {
        let output = topology
            .gate([
                "restart",
                "*:8080",
                "--check",
                "tcp://10.0.0.5:8080",
                "--",
                "true",
            ])
            .unwrap();
        assert_eq!(output.code(), 0, "{output}");
    }
    churn.signal_group(Signal::SIGKILL).unwrap();
    churn.wait(LIMIT).unwrap();
}

#[test]
fn a_check_of_the_unspecified_address_passes() {
    let topology = Topology::new().unwrap();
    let _listener = listen(&topology, SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)));
    for check in ["tcp://0.0.0.0:8080", "tcp://[::]:8080"] {
        let args = [
            "restart",
            "*:8080",
            "--check",
            check,
            "--max-hold",
            "5s",
            "--",
            "true",
        ];
        let output = topology.gate(args).unwrap();
        assert_eq!(output.code(), 0, "{output}");
    }
}

/// A port that is published for a backend elsewhere has no listener of its own.
#[test]
fn a_published_port_is_healthy_once_it_takes_connections() {
    if !has(Feature::Nftables) {
        return;
    }
    let topology = Topology::new().unwrap();
    nft::load(
        &topology,
        Side::Server,
        "table ip t { chain o { type nat hook output priority -100; tcp dport 8088 dnat to 10.0.0.5:8080; }; }",
    )
    .unwrap();
    let check = ["--check", "exec:true", "--max-hold", "2s"];
    let restart = |command: &[&str]| {
        let args = [&["restart", "10.0.0.5:8088"], &check[..], &["--"], command].concat();
        topology.gate(args).unwrap()
    };
    let output = restart(&["true"]);
    assert_eq!(output.code(), 124, "{output}");
    let _listener = listen(&topology, TARGET);
    let output = restart(&["true"]);
    assert_eq!(output.code(), 0, "{output}");
}
