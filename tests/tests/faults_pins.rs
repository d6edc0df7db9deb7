//! Pins that go, and pins that others plant: each command tells it in a line or goes on, and `gate down`
//! and `gate up` mend it. And live pins of an older version, which only `gate down` and `gate purge`
//! touch. Needs root.

mod common;

use common::{
    CONFIG, ENDPOINT, ROOT, TARGET, assert_connects_at_once, assert_documented, attached, exists,
    gate, held_client, mode, shell, snapshot, start_daemon, stop_daemon, tc_state, up, wait_until,
    write,
};
use gate_common::abi::ABI_VERSION;
use gate_tests::backend::Options;
use gate_tests::extent::Extent;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Output, Side, Topology};

/// What is done where something is amiss, before `gate down` and `gate up`.
const COMMANDS: [&[&str]; 13] = [
    &["status"],
    &["status", "--json"],
    &["metrics"],
    &["hold", ENDPOINT, "--for", "1s"],
    &["restart", ENDPOINT, "--max-hold", "1s", "--", "true"],
    &["open", "--all"],
    &["guard", "web", "--for", "1s"],
    &["guard", "web", "--off"],
    &["define", "other", "10.0.0.5:9091"],
    &["forget", "other"],
    &["handover", "web", "--to", "10.0.0.5:9090"],
    &["up", INTERFACE],
    &["drain", ENDPOINT, "--timeout", "10ms"],
];

/// It did what it should, or said in one line why not.
#[track_caller]
fn assert_told(output: &Output) {
    assert_documented(output);
    if output.code() == 0 {
        return;
    }
    let complaints = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("gate: "));
    // A restart tells of its progress as well.
    assert!(complaints.count() >= 1, "{output}");
    assert!(
        output.stderr.lines().count() == 1 || output.name.starts_with("gate restart"),
        "{output}"
    );
}

/// Everything that gate pins: maps, links, a filter, names, marks, steering.
fn rich() -> (Topology, [Service; 2]) {
    let topology = up();
    let backend = |port: u16| {
        let options = Options::new(gate_tests::topology::server_v4(port));
        Service::start(&topology, options).unwrap()
    };
    let services = [backend(8080), backend(9090)];
    common::gate_by_filters(&topology, &["up", "lo"]);
    gate(&topology, &["define", "web", "10.0.0.5:8081"]);
    gate(&topology, &["handover", "web", "--to", "10.0.0.5:9090"]);
    gate(&topology, &["hold", ENDPOINT, "--for", "1s"]);
    (topology, services)
}

/// Commands that meet it, and then what mends it.
#[track_caller]
fn assert_mended(topology: &Topology, what: &str) {
    for args in COMMANDS {
        let output = topology.gate(args).unwrap();
        println!("{what}: {output}");
        assert_told(&output);
        let is_known = ["`gate ", "gate define", "no command"]
            .iter()
            .any(|it| output.stderr.contains(it));
        assert!(output.code() == 0 || is_known, "no remedy: {output}");
    }
    gate(topology, &["down"]);
    assert!(!exists(topology, ROOT), "{what}");
    gate(topology, &["up", INTERFACE]);
    gate(topology, &["hold", ENDPOINT, "--for", "10s"]);
    assert_eq!(mode(topology, ENDPOINT), "hold", "{what}");
    gate(topology, &["open", ENDPOINT]);
    assert_connects_at_once(topology, TARGET);
}

#[test]
fn every_pin_may_be_deleted_and_down_then_up_mends_it() {
    let (topology, services) = rich();
    let list = format!("cd {ROOT}/v*/* && find . -mindepth 1 ! -name '*.debug' | sort");
    let pins: Vec<String> = shell(&topology, Side::Server, &list)
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(pins.len() > 20, "{pins:?}");
    drop(services);
    drop(topology);
    let step = Extent::wanted().pick(5, 1);
    for pin in pins.iter().step_by(step) {
        let (topology, _services) = rich();
        shell(
            &topology,
            Side::Server,
            &format!("cd {ROOT}/v*/* && rm -r {pin}"),
        );
        assert_mended(&topology, &format!("without {pin}"));
    }
}

/// What else is done where an older version's pins are live.
const MORE: [&[&str]; 19] = [
    &["open", ENDPOINT],
    &["open", "web"],
    &["hold", "web"],
    &["drop", ENDPOINT],
    &["reject", ENDPOINT],
    &["guard", ENDPOINT],
    &["flush", ENDPOINT],
    &["restart", "web", "--", "true"],
    &["handover", "web", "--back"],
    &["soft-stop", "web"],
    &["soft-start", "web"],
    &["define", "web", "10.0.0.5:8081"],
    &["up", "lo"],
    &["plan", "--config", CONFIG],
    &["apply", "--config", CONFIG],
    &["doctor"],
    &["doctor", "--json"],
    &["log"],
    &["events"],
];

/// The configuration of what [`rich`] has by name.
const WEB: &str = "[gate.web]\nendpoints = ['10.0.0.5:8081']\ninterfaces = ['eth0']\n";

/// It names the folder and both versions, and what mends it.
#[track_caller]
fn assert_told_of(text: &str, older: &str) {
    let own = format!("v{ABI_VERSION}");
    // The doctor breaks its lines.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [older, "another version", &own, "`gate down`", "`gate up`"] {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// Nobody takes these pins for his own, nor those of nobody.
#[track_caller]
fn assert_left_alone(topology: &Topology, older: &str) {
    let before = snapshot(topology);
    for args in COMMANDS.into_iter().chain(MORE) {
        let output = topology.gate(args).unwrap();
        println!("{output}");
        assert_documented(&output);
        assert_eq!(output.code(), 1, "{output}");
        assert_told_of(&format!("{}{}", output.stdout, output.stderr), older);
        assert_eq!(snapshot(topology), before, "{output}");
    }
    let daemon = start_daemon(topology, WEB);
    wait_until("it tells", || {
        daemon.stderr().unwrap().contains("another version")
    });
    assert_told_of(&daemon.stderr().unwrap(), older);
    stop_daemon(&daemon);
    assert!(!daemon.stderr().unwrap().contains("panicked"));
    assert_eq!(snapshot(topology), before);
}

#[test]
fn live_pins_of_an_older_version_are_left_alone_by_all_but_down_and_purge() {
    let [own, older] = [ABI_VERSION, ABI_VERSION - 1].map(|it| format!("{ROOT}/v{it}"));
    for remedy in ["down", "purge"] {
        let (topology, services) = rich();
        gate(&topology, &["hold", ENDPOINT, "--for", "10m"]);
        write(&topology, CONFIG, WEB);
        let client = held_client(&topology, ENDPOINT, TARGET);
        shell(&topology, Side::Server, &format!("mv {own} {older}"));
        assert_left_alone(&topology, &older);
        // It holds, as it did, the client and all its retransmissions.
        assert_eq!(client.connected(), 0);
        assert_eq!(client.ended().len(), 0);

        let output = gate(&topology, &[remedy]);
        for word in ["lo", INTERFACE, "left to retransmit", "another version"] {
            assert!(output.stdout.contains(word), "{output}");
        }
        let took = client.finish_connected();
        println!("{remedy}: the client was let in after {took:.1?}");
        assert!(!exists(&topology, ROOT), "{remedy}");
        assert_eq!(exists(&topology, "/run/gate"), remedy == "down");
        for interface in ["lo", INTERFACE] {
            assert!(!attached(&topology, interface).is_any(), "{interface}");
        }
        assert_eq!(tc_state(&topology, "lo"), "", "{remedy}");
        gate(&topology, &["up", INTERFACE]);
        gate(&topology, &["hold", ENDPOINT, "--for", "10s"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        gate(&topology, &["open", ENDPOINT]);
        client.finish_connected();
        gate(&topology, &["down"]);
        drop(services);
    }
}
