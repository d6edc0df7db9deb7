//! Pins that go, and pins that others plant: each command tells it in a line or goes on, and `gate down`
//! and `gate up` mend it. Pins of other versions: tests/tests/pins.rs and purge.rs. Needs root.

mod common;

use common::{
    ENDPOINT, ROOT, TARGET, assert_connects_at_once, assert_documented, exists, gate, mode, shell,
    up,
};
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
