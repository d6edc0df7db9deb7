//! What `gate` says and does about bad input and missing rights: the exit code, one line with cause
//! and remedy, and nothing changed. Needs root.

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{
    CHANGES, ENDPOINT, LIMIT, ROOT, VERBS, assert_refusal, attached, exists, gate, json,
    public_gate, refused, snapshot, status, up,
};
use gate_tests::exe;
use gate_tests::topology::{INTERFACE, Output, Side, Topology};

// ---- The command line ----

#[test]
fn an_endpoint_that_does_not_parse_is_a_usage_error_of_one_line() {
    let topology = up();
    for (endpoint, word) in [
        ("8080", "port is missing"),
        ("10.0.0.5", "port is missing"),
        ("10.0.0.5:0", "0 is no port"),
        ("10.0.0.5:65536", "65536 is no port"),
        ("10.0.0.5:http", "http is no port"),
        ("fd00::5:8080", "brackets"),
        ("localhost:8080", "localhost is no address"),
        ("10.0.0.256:80", "10.0.0.256 is no address"),
        ("", "port is missing"),
    ] {
        for verb in ["hold", "drop", "reject", "open"] {
            refused(&topology, &[verb, endpoint], 2, &[word]);
        }
        refused(&topology, &["restart", endpoint, "--", "true"], 2, &[word]);
    }
    // One bad endpoint among good ones spoils them all.
    refused(
        &topology,
        &["hold", ENDPOINT, "10.0.0.5:0"],
        2,
        &["0 is no port"],
    );
    assert!(status(&topology).gates.is_empty());
}

#[test]
fn a_wrong_command_line_is_a_usage_error_of_one_line() {
    let topology = up();
    let restart = |option: &'static str, value: &'static str| {
        vec!["restart", ENDPOINT, option, value, "--", "true"]
    };
    let cases: [(Vec<&str>, &str); 27] = [
        (vec![], "gate --help"),
        (vec!["release"], "release"),
        (vec!["up"], "<INTERFACE>"),
        (vec!["up", "--held", "0", INTERFACE], "--held"),
        (vec!["up", "--held", "many", INTERFACE], "--held"),
        (vec!["up", "--hook", "nfqueue", INTERFACE], "--hook"),
        (vec!["hold"], "<GATE>"),
        (vec!["drop"], "<GATE>"),
        (vec!["reject"], "<GATE>"),
        (vec!["open"], "<GATE>"),
        (vec!["open", "--all", ENDPOINT], "--all"),
        (vec!["hold", ENDPOINT, "--for", "0"], "1ms to 24h"),
        (vec!["hold", ENDPOINT, "--for", "0s"], "1ms to 24h"),
        (vec!["hold", ENDPOINT, "--for", "25h"], "1ms to 24h"),
        (vec!["hold", ENDPOINT, "--for", "-1s"], "-1"),
        (vec!["hold", ENDPOINT, "--for", "soon"], "like 500ms"),
        (vec!["hold", ENDPOINT, "--for"], "--for"),
        (vec!["hold", ENDPOINT, "--forever"], "--forever"),
        (restart("--max-hold", "0"), "1ms to 24h"),
        (restart("--max-hold", "soon"), "like 500ms"),
        (restart("--check", "127.0.0.1"), "tcp://HOST:PORT"),
        (restart("--check", "ftp://a/b"), "ftp"),
        (restart("--check-status", "99"), "like 200"),
        (restart("--check-timeout", "0"), "1ms to 24h"),
        (vec!["restart", ENDPOINT], "<COMMAND>"),
        (vec!["restart", ENDPOINT, "--"], "<COMMAND>"),
        (vec!["restart", "--", "true"], "<GATE>"),
    ];
    for (args, word) in cases {
        refused(&topology, &args, 2, &[word]);
    }
    assert!(status(&topology).gates.is_empty());
}

#[test]
fn a_time_of_zero_in_units_that_are_not_written_is_said_to_be_out_of_range() {
    let topology = Topology::new().unwrap();
    for args in [
        ["hold", ENDPOINT, "--for", "0ms"],
        ["hold", ENDPOINT, "--for", "1us"],
    ] {
        refused(&topology, &args, 2, &["1ms to 24h"]);
    }
}

#[test]
fn help_and_version_exit_with_0_and_name_what_there_is() {
    let topology = Topology::new().unwrap();
    let help = gate(&topology, &["--help"]).stdout;
    for verb in VERBS.map(|args| args[0]) {
        assert!(help.contains(&format!("  {verb} ")), "no {verb} in {help}");
        let text = gate(&topology, &[verb, "--help"]).stdout;
        assert!(text.contains(&format!("Usage: gate {verb}")), "{text}");
        // A sentence of what it does comes first.
        let first = text.lines().next().unwrap_or_default();
        assert!(first.len() > 15 && !first.starts_with("Usage"), "{text}");
    }
    for code in ["0", "1", "2", "3", "4", "5", "124", "126", "127"] {
        assert!(
            help.contains(&format!("\n  {code} ")),
            "no {code} in {help}"
        );
    }
    let version = gate(&topology, &["--version"]).stdout;
    assert_eq!(version, format!("gate {}\n", env!("CARGO_PKG_VERSION")));
}

// ---- Rights, bpffs, and what is not up ----

/// Runs `gate` as root without this capability, or `all`.
fn without(topology: &Topology, capability: &str, args: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--bounding-set=-{capability}"))
        .arg(format!("--inh-caps=-{capability}"))
        .arg(exe::gate().unwrap())
        .args(args);
    topology.output(Side::Server, &mut command, LIMIT).unwrap()
}

#[test]
fn without_rights_every_verb_says_so_and_changes_nothing() {
    let topology = up();
    let path = public_gate(&topology);
    let before = snapshot(&topology);
    for args in VERBS {
        let mut command = Command::new(&path);
        command.args(args).uid(65534).gid(65534);
        let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
        assert_refusal(&output, 4, &["CAP_BPF", "CAP_NET_ADMIN", "root"]);
    }
    assert_eq!(snapshot(&topology), before);
}

#[test]
fn without_the_right_to_send_again_nothing_is_held_on_loopback() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "lo"]);
    for args in [
        &["hold", "127.0.0.1:8080"][..],
        &["restart", "127.0.0.1:8080", "--", "true"],
    ] {
        let output = without(&topology, "net_raw", args);
        assert_refusal(&output, 4, &["CAP_NET_RAW", "loopback"]);
        assert!(status(&topology).gates.is_empty(), "{output}");
    }
}

#[test]
fn a_root_without_capabilities_lacks_rights_too() {
    let topology = up();
    let before = snapshot(&topology);
    for args in VERBS {
        let output = without(&topology, "all", args);
        assert_refusal(&output, 4, &["CAP_BPF", "CAP_NET_ADMIN"]);
    }
    assert_eq!(snapshot(&topology), before);
}

#[test]
fn help_and_version_need_no_rights() {
    let topology = Topology::new().unwrap();
    let path = public_gate(&topology);
    for args in [&["--help"][..], &["--version"], &["up", "--help"]] {
        let mut command = Command::new(&path);
        command.args(args).uid(65534).gid(65534);
        let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
        assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    }
}

#[test]
fn without_bpffs_every_verb_says_how_to_mount_it() {
    let topology = Topology::new().unwrap();
    for args in VERBS {
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c"])
            .arg("umount /sys/fs/bpf && exec \"$0\" \"$@\"")
            .arg(exe::gate().unwrap())
            .args(args);
        let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
        assert_refusal(&output, 1, &["/sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf"]);
    }
    assert!(!attached(&topology, INTERFACE).is_any());
}

#[test]
fn what_needs_the_gate_up_says_so_and_leaves_no_trace() {
    let topology = Topology::new().unwrap();
    for args in CHANGES.into_iter().filter(|args| args[0] != "restart") {
        refused(&topology, args, 3, &["not up", "`gate up INTERFACE`"]);
    }
    refused(&topology, &["log"], 3, &["not up"]);
    let text = gate(&topology, &["status"]).stdout;
    assert!(text.contains("not up"), "{text}");
    assert_eq!(json(&gate(&topology, &["status", "--json"]))["up"], false);
    assert!(!exists(&topology, ROOT));
}
