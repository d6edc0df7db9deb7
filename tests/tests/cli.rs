//! What `gate` says and does about bad input, foreign state and closed files: the exit code, one
//! line with cause and remedy, and nothing changed. Needs root.

mod common;

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use aya_obj::generated::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, LIMIT, PORT, ROOT, assert_complaint, assert_refusal,
    count, find_gate, gate, gate_status, listen, mode, refused, shell, snapshot, status, up,
    wait_until, wait_until_counted, wait_until_held,
};
use gate_common::abi::{Counter, Direction};
use gate_tests::backend::Options;
use gate_tests::exe;
use gate_tests::foreign;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Output, SCRATCH, Side, Topology, server_v4};
use gate_userspace::filters;
use gate_userspace::interfaces::{self, XdpMode};
use gate_userspace::pins::Pins;
use gate_userspace::sys;
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

/// Every verb, as it would be used.
const VERBS: [&[&str]; 9] = [
    &["up", INTERFACE],
    &["down"],
    &["hold", ENDPOINT],
    &["drop", ENDPOINT],
    &["reject", ENDPOINT],
    &["open", ENDPOINT],
    &["status"],
    &["restart", ENDPOINT, "--", "true"],
    &["log"],
];

/// The verbs that close a gate or open it.
const CHANGES: [&[&str]; 5] = [
    &["hold", ENDPOINT],
    &["drop", ENDPOINT],
    &["reject", ENDPOINT],
    &["open", ENDPOINT],
    &["restart", ENDPOINT, "--", "true"],
];

/// A shell line in the server namespace, `gate` being "$0".
fn with_gate(topology: &Topology, line: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(exe::gate().unwrap());
    topology.output(Side::Server, &mut command, LIMIT).unwrap()
}

/// The programs on an interface.
#[derive(Debug, Default, PartialEq, Eq)]
struct Attached {
    /// By mode and id.
    xdp: Option<(XdpMode, u32)>,
    /// On TC ingress and egress, by id.
    tc: [Vec<u32>; 2],
}

impl Attached {
    fn is_any(&self) -> bool {
        *self != Self::default()
    }
}

/// The programs on an interface of the server, as the kernel tells.
fn attached(topology: &Topology, interface: &str) -> Attached {
    let found = topology.run(Side::Server, || {
        let all = interfaces::list()?;
        let found = interfaces::named(&all, interface)?;
        let tc = |direction| {
            let mut ids = sys::tcx_programs(found.index, direction)?.unwrap_or_default();
            let filters = filters::list(found.index, direction)?;
            ids.extend(filters.into_iter().map(|filter| filter.program));
            anyhow::Ok(ids)
        };
        Ok(Attached {
            xdp: found.xdp,
            tc: [tc(Direction::Ingress)?, tc(Direction::Egress)?],
        })
    });
    found.unwrap()
}

/// The inode of the server's network namespace.
fn namespace(topology: &Topology) -> u64 {
    topology
        .run(Side::Server, || {
            Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
        })
        .unwrap()
}

/// Does something to a path of the server's bpffs.
fn on_path(topology: &Topology, path: impl AsRef<Path>, f: fn(&Path) -> io::Result<()>) {
    let path = path.as_ref();
    topology.run(Side::Server, || Ok(f(path)?)).unwrap();
}

fn json(output: &Output) -> Value {
    let value: Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("{error} in the JSON of {output}"));
    assert_eq!(value["version"], 2, "{output}");
    assert_eq!(output.stdout.lines().count(), 1, "{output}");
    value
}

// ---- What others made ----

/// Attaches a foreign program; it stays for as long as the link is held.
fn attach_foreign(topology: &Topology, interface: &str, flags: u32) -> OwnedFd {
    topology
        .run(Side::Server, || {
            let index = interfaces::named(&interfaces::list()?, interface)?.index;
            Ok(sys::attach_xdp(foreign::xdp()?.as_fd(), index, flags)?)
        })
        .unwrap()
}

/// Gives the server namespace another interface, `eth1`.
fn second_interface(topology: &Topology) {
    shell(
        topology,
        Side::Server,
        "ip link add eth1 type veth peer name peer1 && ip link set eth1 up",
    );
}

// ---- Interfaces and hooks ----

#[test]
fn an_unknown_interface_is_named() {
    let topology = Topology::new().unwrap();
    refused(&topology, &["up", "nosuch"], 1, &["nosuch", "`ip link`"]);
}

#[test]
fn up_of_one_good_and_one_unknown_interface_attaches_neither() {
    let topology = Topology::new().unwrap();
    for args in [["up", INTERFACE, "nosuch"], ["up", "nosuch", INTERFACE]] {
        refused(&topology, &args, 1, &["nosuch"]);
        assert!(!attached(&topology, INTERFACE).is_any());
    }
}

#[test]
fn up_of_one_free_and_one_taken_interface_attaches_neither() {
    let topology = Topology::new().unwrap();
    second_interface(&topology);
    let _link = attach_foreign(&topology, "eth1", XDP_FLAGS_SKB_MODE);
    refused(
        &topology,
        &["up", "--hook", "xdp-generic", INTERFACE, "eth1"],
        5,
        &["eth1", "foreign"],
    );
    assert!(!attached(&topology, INTERFACE).is_any());
}

#[test]
fn an_up_that_fails_leaves_what_was_up_as_it_was() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--hook", "xdp-generic", INTERFACE]);
    second_interface(&topology);
    let _link = attach_foreign(&topology, "eth1", XDP_FLAGS_SKB_MODE);
    let before = attached(&topology, INTERFACE);
    assert!(before.is_any());
    // The attached program is the same one still, not one that logs now.
    for args in [
        &["up", "--hook", "xdp-generic", INTERFACE, "eth1"][..],
        &["up", "--hook", "xdp-generic", "--debug", INTERFACE, "eth1"],
    ] {
        refused(&topology, args, 5, &["eth1", "foreign"]);
        assert_eq!(attached(&topology, INTERFACE), before);
    }
}

#[test]
fn up_attaches_every_interface_and_down_detaches_them() {
    let topology = Topology::new().unwrap();
    second_interface(&topology);
    let output = gate(&topology, &["up", "eth1", INTERFACE]);
    assert_eq!(output.stdout.lines().count(), 2, "{output}");
    assert!(attached(&topology, INTERFACE).is_any() && attached(&topology, "eth1").is_any());
    gate(&topology, &["down"]);
    assert_eq!(
        (attached(&topology, INTERFACE), attached(&topology, "eth1")),
        (Attached::default(), Attached::default())
    );
}

#[test]
fn a_hook_that_the_interface_can_not_take_is_refused() {
    let topology = Topology::new().unwrap();
    for (hook, words) in [
        ("xdp", ["copy every packet", "--hook tc-ingress"]),
        ("xdp-generic", ["copy every packet", "--hook tc-ingress"]),
        ("tc-egress", ["comes in there too", "--hook tc-ingress"]),
    ] {
        refused(&topology, &["up", "--hook", hook, "lo"], 1, &words);
        refused(
            &topology,
            &["up", "--hook", hook, INTERFACE, "lo"],
            1,
            &words,
        );
    }
    assert!(!attached(&topology, INTERFACE).is_any());
}

#[test]
fn a_foreign_xdp_program_is_named_and_stays_whatever_its_mode() {
    for (flags, theirs) in [
        (XDP_FLAGS_SKB_MODE, XdpMode::Generic),
        (XDP_FLAGS_DRV_MODE, XdpMode::Native),
    ] {
        let topology = Topology::new().unwrap();
        let _link = attach_foreign(&topology, INTERFACE, flags);
        let before = attached(&topology, INTERFACE);
        let (mode, id) = before.xdp.unwrap();
        assert_eq!(mode, theirs);
        let id = id.to_string();
        for hook in ["xdp", "xdp-generic"] {
            let args = ["up", "--hook", hook, INTERFACE];
            refused(&topology, &args, 5, &[INTERFACE, "foreign", &id, "xdp off"]);
        }
        assert_eq!(attached(&topology, INTERFACE), before);
        // TC is another place.
        gate(&topology, &["up", INTERFACE]);
        assert_eq!(attached(&topology, INTERFACE).xdp, before.xdp);
        gate(&topology, &["down"]);
        assert_eq!(attached(&topology, INTERFACE), before);
    }
}

#[test]
fn a_foreign_program_attached_by_netlink_is_named_and_stays() {
    let topology = Topology::new().unwrap();
    let path = Path::new("/sys/fs/bpf/theirs");
    let pinned = topology.run(Side::Server, || {
        Ok(sys::pin(foreign::xdp()?.as_fd(), path)?)
    });
    pinned.unwrap();
    let line = format!(
        "ip link set dev {INTERFACE} xdpgeneric pinned {}",
        path.display()
    );
    shell(&topology, Side::Server, &line);
    let before = attached(&topology, INTERFACE);
    assert!(before.is_any());
    let args = ["up", "--hook", "xdp-generic", INTERFACE];
    refused(&topology, &args, 5, &[INTERFACE, "foreign"]);
    assert_eq!(attached(&topology, INTERFACE), before);
}

#[test]
fn the_hook_that_is_asked_for_is_the_hook_that_is_used() {
    let native = Some(XdpMode::Native);
    let generic = Some(XdpMode::Generic);
    for (interface, hook, xdp, tc, told) in [
        ("lo", "auto", None, [1, 0], vec!["tc-ingress"]),
        ("lo", "tc", None, [1, 0], vec!["tc-ingress"]),
        (
            INTERFACE,
            "auto",
            None,
            [1, 1],
            vec!["tc-ingress", "tc-egress"],
        ),
        (
            INTERFACE,
            "tc",
            None,
            [1, 1],
            vec!["tc-ingress", "tc-egress"],
        ),
        (INTERFACE, "tc-ingress", None, [1, 0], vec!["tc-ingress"]),
        (INTERFACE, "tc-egress", None, [0, 1], vec!["tc-egress"]),
        (
            INTERFACE,
            "xdp-generic",
            generic,
            [0, 0],
            vec!["xdp-generic"],
        ),
        (INTERFACE, "xdp", native, [0, 0], vec!["xdp"]),
    ] {
        let topology = Topology::new().unwrap();
        let output = gate(&topology, &["up", "--json", "--hook", hook, interface]);
        let found = attached(&topology, interface);
        assert_eq!(found.xdp.map(|(mode, _)| mode), xdp, "{hook}: {output}");
        assert_eq!(found.tc.map(|ids| ids.len()), tc, "{hook}: {output}");
        for value in [json(&output), json(&gate(&topology, &["status", "--json"]))] {
            let hooks = value["interfaces"][0]["hooks"].as_array().unwrap().clone();
            let names: Vec<&str> = hooks.iter().filter_map(|it| it["hook"].as_str()).collect();
            assert_eq!(names, told, "{hook}: {value}");
        }
    }
}

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

/// Makes the binary reachable for every user: the build's folder need not be.
fn public_gate(topology: &Topology) -> PathBuf {
    let path = Path::new(SCRATCH).join("gate");
    let line = format!("touch {0} && mount --bind \"$0\" {0}", path.display());
    with_gate(topology, &line).ok().unwrap();
    path
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
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"])
            .arg(exe::gate().unwrap())
            .args(args);
        let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
        assert_refusal(&output, 4, &["CAP_NET_RAW", "loopback"]);
        assert!(status(&topology).gates.is_empty(), "{output}");
    }
}

#[test]
fn a_root_without_capabilities_lacks_rights_too() {
    let topology = up();
    let before = snapshot(&topology);
    for args in VERBS {
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(exe::gate().unwrap())
            .args(args);
        let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
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
    assert!(
        !topology
            .run(Side::Server, || Ok(Path::new(ROOT).exists()))
            .unwrap()
    );
}

// ---- Twice is once ----

#[test]
fn up_twice_and_down_twice_are_done_already() {
    let topology = up();
    let before = attached(&topology, INTERFACE);
    let again = gate(&topology, &["up", INTERFACE]);
    assert!(again.stdout.contains("already"), "{again}");
    assert!(before.is_any() && attached(&topology, INTERFACE).is_any());
    let again = gate(&topology, &["up", "--json", INTERFACE, INTERFACE]);
    assert_eq!(json(&again)["interfaces"].as_array().unwrap().len(), 1);
    assert_eq!(json(&again)["interfaces"][0]["already"], true);

    let down = gate(&topology, &["down"]);
    assert!(down.stdout.contains(INTERFACE), "{down}");
    assert!(!attached(&topology, INTERFACE).is_any());
    assert!(
        !topology
            .run(Side::Server, || Ok(Path::new(ROOT).exists()))
            .unwrap()
    );
    let again = gate(&topology, &["down"]);
    assert!(again.stdout.contains("not up"), "{again}");
}

#[test]
fn down_has_detached_when_it_returns() {
    let topology = Topology::new().unwrap();
    for round in 0..10 {
        gate(&topology, &["up", INTERFACE]);
        assert!(attached(&topology, INTERFACE).is_any(), "round {round}");
        gate(&topology, &["down"]);
        assert!(!attached(&topology, INTERFACE).is_any(), "round {round}");
    }
}

#[test]
fn up_while_a_gate_holds_goes_on_holding() {
    let topology = up();
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, ENDPOINT, 1);
    gate(&topology, &["up", INTERFACE]);
    assert_eq!((mode(&topology, ENDPOINT), client.connected()), ("hold", 0));
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1);
    client.finish_connected();
}

#[test]
fn opening_what_is_open_is_done_already() {
    let topology = up();
    for endpoint in [ENDPOINT, "[fd00::5]:1"] {
        let output = gate(&topology, &["open", endpoint]);
        assert!(output.stdout.contains("open already"), "{output}");
    }
    assert!(status(&topology).gates.is_empty());
    gate(&topology, &["hold", ENDPOINT]);
    let first = json(&gate(&topology, &["open", "--json", ENDPOINT]));
    let second = json(&gate(&topology, &["open", "--json", ENDPOINT]));
    assert_eq!(
        (&first["already"], &second["already"]),
        (&false.into(), &true.into())
    );
    gate(&topology, &["open", "--all"]);
}

#[test]
fn open_all_opens_every_gate() {
    let topology = up();
    gate(&topology, &["hold", ENDPOINT, "[fd00::5]:8080"]);
    gate(&topology, &["drop", "*:9090"]);
    gate(&topology, &["reject", "10.0.0.5:9191"]);
    gate(&topology, &["open", "--all"]);
    let gates = status(&topology).gates;
    assert_eq!(gates.len(), 4);
    assert!(
        gates.iter().all(|gate| gate.mode.name() == "open"),
        "{gates:?}"
    );
}

// ---- Two at once ----

fn take_lock(topology: &Topology) -> Flock<File> {
    let lock = topology.run(Side::Server, || {
        let file = File::open(ROOT)?;
        Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?)
    });
    lock.unwrap()
}

#[test]
fn a_second_command_waits_for_the_first() {
    let topology = up();
    let lock = take_lock(&topology);
    let waiting = topology.spawn_gate(["hold", ENDPOINT]).unwrap();
    sleep(Duration::from_secs(1));
    assert!(!waiting.has_ended().unwrap());
    assert!(find_gate(&topology, ENDPOINT).is_none());
    drop(lock);
    let output = waiting.wait(LIMIT).unwrap();
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "hold");
}

#[test]
fn a_command_does_not_wait_forever_for_another() {
    let topology = up();
    let before = snapshot(&topology);
    let lock = take_lock(&topology);
    let all: Vec<_> = CHANGES
        .into_iter()
        .chain([&["down"][..], &["up", INTERFACE]])
        .map(|args| topology.spawn_gate(args).unwrap())
        .collect();
    for waiting in all {
        let output = waiting.wait(LIMIT).unwrap();
        assert_refusal(&output, 1, &["another gate command", ROOT, "try again"]);
    }
    drop(lock);
    assert_eq!(snapshot(&topology), before);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn twenty_commands_at_once_all_end_well() {
    let topology = up();
    let all: Vec<_> = (0..20)
        .map(|i| {
            let verb = ["hold", "drop", "reject", "open"][i % 4];
            topology.spawn_gate([verb, ENDPOINT]).unwrap()
        })
        .collect();
    for one in all {
        let output = one.wait(LIMIT).unwrap();
        assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    }
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(mode(&topology, ENDPOINT), "open");
}

#[test]
fn a_second_restart_of_the_same_endpoint_is_refused_and_the_first_ends_well() {
    let topology = up();
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    let first = topology
        .spawn_gate(["restart", ENDPOINT, "--", "sleep", "2"])
        .unwrap();
    wait_until("the first has closed the gate", || {
        find_gate(&topology, ENDPOINT).is_some_and(|gate| gate.mode.name() == "hold")
    });
    let args = ["restart", ENDPOINT, "--", "touch", "/run/second"];
    refused(&topology, &args, 1, &[ENDPOINT, "being restarted"]);
    // Nor is any other endpoint of the second's closed.
    let other = "10.0.0.5:9090";
    let args = ["restart", other, ENDPOINT, "--", "touch", "/run/second"];
    let output = topology.gate(args).unwrap();
    assert_refusal(&output, 1, &[ENDPOINT, "being restarted"]);
    assert!(find_gate(&topology, other).is_none_or(|gate| gate.mode.name() == "open"));
    assert!(
        !topology
            .run(Side::Server, || Ok(Path::new("/run/second").exists()))
            .unwrap()
    );

    assert!(!first.has_ended().unwrap());
    let output = first.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "open");
}

#[test]
fn restarts_of_two_endpoints_at_once_both_end_well() {
    let topology = up();
    let other = server_v4(9090);
    let _services =
        [server_v4(PORT), other].map(|at| Service::start(&topology, Options::new(at)).unwrap());
    let both = [ENDPOINT.to_owned(), other.to_string()].map(|endpoint| {
        topology
            .spawn_gate(["restart", &endpoint, "--", "sleep", "0.5"])
            .unwrap()
    });
    for one in both {
        let output = one.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
    }
}

// ---- Pins that gate did not make, or not this gate ----

#[test]
fn pins_of_another_version_are_named_and_down_then_up_repairs_that() {
    let topology = Topology::new().unwrap();
    let folder = format!("{ROOT}/v0/{}", namespace(&topology));
    shell(
        &topology,
        Side::Server,
        &format!("umask 077; mkdir -p {folder}"),
    );
    for args in CHANGES
        .into_iter()
        .chain([&["status"][..], &["up", INTERFACE]])
    {
        refused(
            &topology,
            args,
            1,
            &[&folder, "v0", "v2", "`gate down`", "`gate up`"],
        );
    }
    gate(&topology, &["down"]);
    assert!(
        !topology
            .run(Side::Server, || Ok(Path::new(ROOT).exists()))
            .unwrap()
    );
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn pins_of_another_namespace_are_nobodys_business() {
    let topology = Topology::new().unwrap();
    shell(
        &topology,
        Side::Server,
        &format!("umask 077; mkdir -p {ROOT}/v0/7 {ROOT}/v2/7"),
    );
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
    gate(&topology, &["down"]);
    let left = shell(
        &topology,
        Side::Server,
        &format!("ls -d {ROOT}/v0/7 {ROOT}/v2/7"),
    );
    assert_eq!(left.lines().count(), 2, "{left}");
}

#[test]
fn a_pin_of_another_size_is_named_and_down_then_up_repairs_that() {
    let topology = up();
    let replaced = topology.run(Side::Server, || {
        let path = Pins::here()?.map("GATES");
        fs::remove_file(&path)?;
        sys::pin(foreign::array(16, 1024)?.as_fd(), &path)?;
        Ok(path)
    });
    let path = replaced.unwrap();
    for args in CHANGES
        .into_iter()
        .chain([&["status"][..], &["up", INTERFACE]])
    {
        let words = [path.to_str().unwrap(), "16 bytes", "8 bytes", "`gate down`"];
        refused(&topology, args, 1, &words);
    }
    gate(&topology, &["down"]);
    assert!(!attached(&topology, INTERFACE).is_any());
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn a_missing_pin_is_a_failure_of_one_line_and_down_then_up_repairs_that() {
    let topology = up();
    let path = topology
        .run(Side::Server, || Ok(Pins::here()?.map("HELD")))
        .unwrap();
    on_path(&topology, &path, |path| fs::remove_file(path));
    for args in CHANGES
        .into_iter()
        .chain([&["status"][..], &["up", INTERFACE]])
    {
        refused(&topology, args, 1, &[path.to_str().unwrap()]);
    }
    gate(&topology, &["down"]);
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
}

#[test]
fn a_root_folder_that_others_can_enter_or_own_is_refused() {
    let open_it = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777));
    let give_it = |path: &Path| chown(path, Some(65534), None);
    let spoils: [fn(&Path) -> io::Result<()>; 2] = [open_it, give_it];
    for spoil in spoils {
        // One that somebody made before the first `gate up`.
        let topology = Topology::new().unwrap();
        on_path(&topology, ROOT, |path| fs::create_dir(path));
        on_path(&topology, ROOT, |path| {
            fs::set_permissions(path, Permissions::from_mode(0o700))
        });
        on_path(&topology, ROOT, spoil);
        refused(&topology, &["up", INTERFACE], 1, &[ROOT, "0700"]);
        assert!(!attached(&topology, INTERFACE).is_any());

        // One that was gate's own.
        let topology = up();
        on_path(&topology, ROOT, spoil);
        for args in CHANGES
            .into_iter()
            .chain([&["down"][..], &["up", INTERFACE]])
        {
            refused(&topology, args, 1, &[ROOT, "0700"]);
        }
        assert!(attached(&topology, INTERFACE).is_any());
    }
}

#[test]
fn pins_are_for_root_alone() {
    let topology = up();
    gate(&topology, &["hold", ENDPOINT]);
    let line = format!("find {ROOT} -printf '%y %m %U\\n' | sort -u");
    assert_eq!(shell(&topology, Side::Server, &line), "d 700 0\nf 600 0\n");
}

// ---- A full table ----

#[test]
fn what_a_full_table_cannot_hold_is_counted_and_connects_by_retransmission() {
    const ROOM: usize = 16;
    const CLIENTS: usize = 40;
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--held", "16", INTERFACE]);
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let clients = Clients::start(&topology, server_v4(PORT), CLIENTS, None);
    let least = (CLIENTS - ROOM) as u64;
    wait_until_counted(&topology, ENDPOINT, Counter::Overflowed, least);
    let shown = json(&gate(&topology, &["status", "--json"]));
    assert_eq!(shown["held_max"], 16);
    assert_eq!(shown["gates"][0]["held"], 16);
    assert_eq!(shown["gates"][0]["counters"]["held"], 16);
    assert!(shown["gates"][0]["counters"]["overflowed"].as_u64() >= Some(least));
    assert_eq!(clients.connected(), 0);

    let opened = json(&gate(&topology, &["open", "--json", ENDPOINT]));
    assert_eq!(opened["released"], 16);
    let attempts = clients.finish();
    assert!(attempts.iter().all(|a| a.result.is_ok()), "{attempts:?}");
    let late = attempts.iter().filter(|a| a.took > BEFORE_RETRANSMISSION);
    assert_eq!(late.count(), CLIENTS - ROOM, "{attempts:?}");
}

#[test]
fn a_restart_tells_of_an_overflow() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--held", "1", INTERFACE]);
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    let restart = topology
        .spawn_gate(["restart", ENDPOINT, "--", "sleep", "0.7"])
        .unwrap();
    wait_until("the gate is closed", || {
        find_gate(&topology, ENDPOINT).is_some_and(|gate| gate.mode.name() == "hold")
    });
    let clients = Clients::start(&topology, server_v4(PORT), 3, None);
    let output = restart.wait(LIMIT).unwrap().ok().unwrap();
    assert!(output.stdout.contains("2 SYNs not held"), "{output}");
    assert!(output.stdout.contains("1 connection held"), "{output}");
    clients.finish_connected();
}

#[test]
fn another_size_of_the_table_is_refused_while_it_is_there() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--held", "16", INTERFACE]);
    let args = ["up", "--held", "32", INTERFACE];
    refused(&topology, &args, 1, &["16", "32", "`gate down`"]);
    for args in [&["up", INTERFACE][..], &["up", "--held", "16", INTERFACE]] {
        gate(&topology, args);
        assert_eq!(status(&topology).held_max, 16);
    }
    gate(&topology, &["down"]);
    gate(&topology, &["up", INTERFACE]);
    assert_eq!(status(&topology).held_max, 16_384);
}

// ---- Output ----

#[test]
fn every_verb_answers_in_json_with_a_version() {
    let topology = Topology::new().unwrap();
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    let run = |args: &[&str]| json(&topology.gate(args).unwrap().ok().unwrap());
    let up = run(&["--json", "up", INTERFACE]);
    assert_eq!(up["interfaces"][0]["name"], INTERFACE);
    for verb in ["hold", "drop", "reject"] {
        let closed = run(&[verb, ENDPOINT, "--for", "1500ms", "--json"]);
        assert_eq!(closed["mode"], verb);
        assert_eq!(closed["endpoints"][0], ENDPOINT);
        assert_eq!(closed["lease_ms"], 1500.0);
        let status = run(&["status", "--json"]);
        assert_eq!(status["up"], true);
        assert_eq!(status["interfaces"][0]["name"], INTERFACE);
        assert_eq!(status["gates"][0]["endpoints"][0], ENDPOINT);
        assert_eq!(status["gates"][0]["mode"], verb);
        let left = status["gates"][0]["lease_ms"].as_f64().unwrap();
        assert!(left > 0.0 && left < 1500.0, "{status}");
    }
    let opened = run(&["open", "--json", ENDPOINT]);
    assert_eq!(
        (&opened["released"], &opened["already"]),
        (&0.into(), &false.into())
    );
    // The command's own output does not get in between.
    let restarted = run(&["restart", "--json", ENDPOINT, "--", "echo", "noise"]);
    assert_eq!(restarted["outcome"], "healthy");
    assert_eq!(restarted["exit_code"], 0);
    assert_eq!(run(&["down", "--json"])["was_up"], true);
    assert_eq!(run(&["down", "--json"])["was_up"], false);
}

#[test]
fn a_failure_is_told_in_json_too() {
    let topology = Topology::new().unwrap();
    for (args, code) in [
        (["--json", "up", "nosuch"], 1),
        (["--json", "hold", ENDPOINT], 3),
    ] {
        let output = topology.gate(args).unwrap();
        assert_eq!(output.code(), code, "{output}");
        let fields = json(&output);
        assert_eq!(fields["exit_code"], code, "{output}");
        let text = fields["error"].as_str().unwrap();
        assert_eq!(output.stderr, format!("gate: {text}\n"));
    }
}

#[test]
fn a_restart_whose_command_fails_answers_in_json_and_passes_the_code_on() {
    let topology = up();
    let args = ["restart", "--json", ENDPOINT, "--", "sh", "-c", "exit 7"];
    let output = topology.gate(args).unwrap();
    assert_eq!(output.code(), 7, "{output}");
    let fields = json(&output);
    assert_eq!(fields["outcome"], "command_failed");
    assert_eq!(fields["exit_code"], 7);
    assert_complaint(&output, &["exited with 7"]);
}

#[test]
fn status_shows_the_attachments_the_gates_and_what_they_hold() {
    let topology = up();
    let text = gate(&topology, &["status"]).stdout;
    assert!(
        text.contains("eth0: attached, hooks tc-ingress, tc-egress"),
        "{text}"
    );
    gate(&topology, &["hold", ENDPOINT]);
    gate(&topology, &["reject", "*:9090"]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, ENDPOINT, 1);
    let text = gate(&topology, &["status"]).stdout;
    let row = |start: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
        line.split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let header = [
        "gate", "mode", "lease", "held", "longest", "passed", "released", "dropped",
    ];
    assert_eq!(row("gate")[..8], header);
    let held = row(ENDPOINT);
    assert_eq!((&*held[1], &*held[3]), ("hold", "1"), "{text}");
    assert!(
        held[2].ends_with(" s") && held[4].ends_with(" ms"),
        "{text}"
    );
    assert_eq!(row("*:9090")[1], "reject");
    // Off a terminal there is no colour and no cursor play.
    assert!(!text.contains('\x1b'), "{text:?}");
    gate(&topology, &["down"]);
    drop(client);
}

#[test]
fn a_full_device_for_output_is_a_failure_of_one_line() {
    let topology = up();
    let output = with_gate(&topology, "exec \"$0\" status > /dev/full");
    assert_refusal(&output, 1, &["stdout"]);
}

#[test]
fn a_closed_stdout_does_not_stop_a_change() {
    let topology = up();
    let output = with_gate(&topology, &format!("exec \"$0\" hold {ENDPOINT} >&-"));
    assert_eq!(output.stdout, "", "{output}");
    assert!(output.stderr.lines().count() <= 1, "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "hold");
    // Nor does a stderr that is closed, or both.
    let output = with_gate(
        &topology,
        &format!("exec \"$0\" drop {ENDPOINT} >&- 2>&- <&-"),
    );
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "drop");
}

#[test]
fn a_reader_that_goes_away_does_no_harm() {
    let topology = up();
    let line = "{ sleep 0.3; \"$0\" status; echo $? > /run/code; } | true; \
                while ! [ -s /run/code ]; do sleep 0.05; done; cat /run/code";
    let output = with_gate(&topology, line);
    assert_eq!((&*output.stdout, &*output.stderr), ("0\n", ""), "{output}");
}

#[test]
fn a_restart_restarts_whatever_becomes_of_its_output() {
    let topology = up();
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    for redirections in [
        ">&-",
        ">/dev/full",
        "2>/dev/full",
        ">&- 2>&- <&-",
        ">/dev/full 2>&1",
    ] {
        let line = format!(
            "rm -f /run/ran; exec \"$0\" restart {ENDPOINT} -- touch /run/ran {redirections}"
        );
        let output = with_gate(&topology, &line);
        // A summary that can't be written is a failure, but the restart is done.
        let expected = if redirections.starts_with(">/dev/full") {
            1
        } else {
            0
        };
        assert_eq!(output.code(), expected, "{redirections}: {output}");
        let ran = topology.run(Side::Server, || Ok(Path::new("/run/ran").exists()));
        assert!(ran.unwrap(), "{redirections}: {output}");
        assert_eq!(mode(&topology, ENDPOINT), "open", "{redirections}");
    }
}

#[test]
fn a_failed_command_passes_its_code_on_whatever_becomes_of_the_output() {
    let topology = up();
    let line = format!("exec \"$0\" restart {ENDPOINT} -- sh -c 'exit 7' >/dev/full");
    let output = with_gate(&topology, &line);
    assert_eq!(output.code(), 7, "{output}");
    assert_eq!(gate_status(&topology, ENDPOINT).mode.name(), "open");
}
