//! Interfaces, namespaces and file systems that go while a gate is closed or being restarted, and pins
//! that others plant. Without a closed gate: interfaces.rs, container.rs, purge.rs, pins.rs. Needs root.

mod common;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use common::{
    CHANGES, ENDPOINT, LIMIT, MS, ROOT, TARGET, assert_connects_at_once, assert_documented, exists,
    gate, held_client, listen, mode, refused, shell, start_daemon, start_restart, stop_daemon, up,
    wait_until,
};
use gate_common::abi::ABI_VERSION;
use gate_tests::backend::Options;
use gate_tests::extent::Extent;
use gate_tests::foreign;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Namespace, Output, Process, Side, Topology};
use gate_userspace::pins::Pins;
use gate_userspace::sys;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

// ---- While a restart is under way ----

/// What becomes of the way to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Clients reach it as before.
    Stays,
    /// Nobody reaches it.
    Goes,
}

/// What happens to the host while the gate is closed.
const EVENTS: [(&str, &str, Way); 8] = [
    (
        "the interface is renamed",
        "ip link set eth0 down; ip link set eth0 name eth5; ip link set eth5 up",
        Way::Stays,
    ),
    ("the interface is down", "ip link set eth0 down", Way::Goes),
    ("the interface is deleted", "ip link del eth0", Way::Goes),
    (
        "the interface moves",
        "ip link set eth0 netns $OTHER",
        Way::Goes,
    ),
    ("its address goes", "ip address flush dev eth0", Way::Goes),
    ("bpffs is unmounted", "umount -l /sys/fs/bpf", Way::Stays),
    (
        "bpffs is covered",
        "mount -t bpf bpf /sys/fs/bpf",
        Way::Stays,
    ),
    (
        "the pins are removed",
        "rm -rf /sys/fs/bpf/gate",
        Way::Stays,
    ),
];

/// A client is held for the lease at the most, and may then have to send its SYN once more: after 2 s
/// at that point.
const SERVED: Duration = Duration::from_secs(5);

/// The seconds of a restart: it ends between a client's second SYN and its third, which come 1 s after the
/// first, and 2 s (Linux 6.5 and later) or 3 s.
const AWAY: &str = "1.5";

/// A restart under way with this lease, of a gate that was up, or that it attaches by
/// itself; and another namespace.
fn restarting(was_up: bool, lease: &str) -> (Topology, Service, Namespace, Process) {
    let topology = match was_up {
        true => up(),
        false => Topology::new().unwrap(),
    };
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let other = topology.namespace().unwrap();
    let options = ["--max-hold", lease, "--check", "exec:true"];
    let restart = match was_up {
        true => start_restart(&topology, &options, &["sleep", AWAY]),
        false => start_alone(&topology, &options),
    };
    (topology, service, other, restart)
}

/// Makes it happen.
#[track_caller]
fn happen(topology: &Topology, line: &str, other: &Namespace) {
    shell(
        topology,
        Side::Server,
        &line.replace("$OTHER", other.name()),
    );
    if line.starts_with("umount") {
        // Threads of a topology have mounts of their own, of the same file systems.
        let unmount = || Ok(umount2("/sys/fs/bpf", MntFlags::MNT_DETACH)?);
        topology.run(Side::Server, unmount).unwrap();
    }
}

/// How much later than the restart's end a busy machine may notice that a client is connected which came
/// after its start; less than until that sends its SYN again.
const NOTICED: Duration = Duration::from_millis(300);

/// It ended with a code that is documented, told in lines, and did not take longer than its lease and
/// some patience.
#[track_caller]
fn assert_ends(restart: &Process, what: &str) -> Output {
    let output = restart.wait(Duration::from_secs(20)).unwrap();
    println!("{what}: {output}");
    assert_documented(&output);
    output
}

/// What is put back, so that `down` and `up` find a host as it was.
#[track_caller]
fn assert_mended(topology: &Topology) {
    let line = "test $(grep -c /sys/fs/bpf /proc/mounts) = 2 && umount /sys/fs/bpf; \
                mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf";
    shell(topology, Side::Server, line);
    gate(topology, &["down"]);
    shell(topology, Side::Server, &format!("test ! -e {ROOT}"));
    gate(topology, &["up", "lo"]);
    gate(topology, &["hold", "127.0.0.1:8080", "--for", "5s"]);
    gate(topology, &["open", "127.0.0.1:8080"]);
    gate(topology, &["down"]);
}

#[test]
fn whatever_goes_while_a_restart_is_under_way_it_ends_and_down_then_up_mends_it() {
    for was_up in [true, false] {
        let step = Extent::wanted().pick(2, 1);
        for (what, line, way) in EVENTS
            .into_iter()
            .skip(usize::from(was_up) % step)
            .step_by(step)
        {
            let (topology, _service, other, restart) = restarting(was_up, "2s");
            let client = held_client(&topology, ENDPOINT, TARGET);
            happen(&topology, line, &other);
            let output = assert_ends(&restart, what);
            assert!(output.took < Duration::from_secs(15), "{what}: {output}");
            match way {
                Way::Stays => {
                    let took = client.finish_connected();
                    println!("{what}: was up {was_up}: the client waited {took:?}");
                    assert!(took < SERVED, "{what}: {took:?}, {output}");
                }
                Way::Goes => assert_eq!(client.connected(), 0, "{what}"),
            }
            assert_mended(&topology);
        }
    }
}

/// What hides gate's pins from a restart under way, or takes them away.
const HIDDEN: [(&str, &str); 3] = [
    ("bpffs is unmounted", "umount -l /sys/fs/bpf"),
    ("bpffs is covered", "mount -t bpf bpf /sys/fs/bpf"),
    (
        "bpffs is covered, and gate is up there",
        "mount -t bpf bpf /sys/fs/bpf && $GATE up lo",
    ),
];

#[test]
fn a_restart_that_finds_its_pins_out_of_reach_opens_all_the_same_and_says_so() {
    for (was_up, (what, line)) in [true, false]
        .into_iter()
        .flat_map(|was_up| HIDDEN.map(|hidden| (was_up, hidden)))
    {
        // The lease is longer than the test has patience: only an opening ends it.
        let (topology, _service, other, restart) = restarting(was_up, "60s");
        let client = held_client(&topology, ENDPOINT, TARGET);
        let gate = gate_tests::exe::gate().unwrap();
        happen(
            &topology,
            &line.replace("$GATE", &gate.display().to_string()),
            &other,
        );
        let output = assert_ends(&restart, what);
        assert_eq!(output.code(), 0, "{what}: {output}");
        let told = "1 connection held, now released";
        assert!(output.stdout.contains(told), "{what}: {output}");
        let remedy = "mount -t bpf bpf /sys/fs/bpf";
        assert!(output.stderr.contains(remedy), "{what}: {output}");
        // What was held is injected, so its client has nothing to send again.
        let took = client.finish_connected();
        assert!(took < output.took + NOTICED, "{what}: {took:?}, {output}");
        assert_connects_at_once(&topology, TARGET);
        if line.contains("up lo") {
            shell(&topology, Side::Server, "umount /sys/fs/bpf");
        }
        assert_mended(&topology);
    }
}

#[test]
fn a_restart_that_fails_with_its_pins_out_of_reach_rejects_where_it_is_told_to() {
    let topology = up();
    let service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let other = topology.namespace().unwrap();
    let options = ["--max-hold", "60s", "--on-failure", "reject"];
    let restart = start_restart(&topology, &options, &["sh", "-c", "sleep 1; exit 1"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    happen(&topology, "mount -t bpf bpf /sys/fs/bpf", &other);
    let output = assert_ends(&restart, "bpffs is covered");
    assert_eq!(output.code(), 1, "{output}");
    let attempts = client.finish();
    assert_eq!(attempts[0].result, Err(io::ErrorKind::ConnectionRefused));
    drop(service);
    assert_mended(&topology);
}

/// Starts a restart that attaches by itself, and returns when the gate is closed.
fn start_alone(topology: &Topology, options: &[&str]) -> Process {
    let args = [&["restart", ENDPOINT], options, &["--", "sleep", AWAY]].concat();
    let restart = topology.spawn_gate(args).unwrap();
    wait_until("the gate is closed", || {
        restart
            .stderr()
            .unwrap()
            .contains("holding new connections")
    });
    restart
}

#[test]
fn a_namespace_that_goes_while_its_gate_is_closed_is_cleared_up_by_a_purge() {
    let topology = Topology::new().unwrap();
    for _ in 0..Extent::wanted().pick(2, 20) {
        let gone = topology.namespace().unwrap();
        let run = |args: &[&str]| {
            let mut command = Command::new(gate_tests::exe::gate().unwrap());
            topology
                .output(&gone, command.args(args), LIMIT)
                .unwrap()
                .ok()
                .unwrap()
        };
        run(&["up", "lo"]);
        run(&["hold", "127.0.0.1:8080", "--for", "1h"]);
        let mut command = Command::new(gate_tests::exe::gate().unwrap());
        command.args([
            "restart",
            "127.0.0.1:8081",
            "--max-hold",
            "1h",
            "--",
            "sleep",
            "98767",
        ]);
        let restart = topology.spawn(&gone, &mut command).unwrap();
        wait_until("it holds", || restart.stderr().unwrap().contains("holding"));
        restart.signal_group(Signal::SIGKILL).unwrap();
        restart.wait(LIMIT).unwrap();
        drop(gone);
    }
    gate(&topology, &["purge"]);
    assert!(!exists(&topology, ROOT));
}

#[test]
fn a_daemon_outlives_interfaces_and_file_systems_that_go() {
    for (what, line, _) in EVENTS.into_iter().step_by(Extent::wanted().pick(2, 1)) {
        let topology = Topology::new().unwrap();
        let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
        let other = topology.namespace().unwrap();
        let config = "[gate.web]\nendpoints = ['10.0.0.5:8080']\ninterfaces = ['eth0']\nmode = 'guard'\n\
                      [[gate.web.check]]\ntcp = '10.0.0.5:8080'\ninterval = '50ms'\n";
        let daemon = start_daemon(&topology, config);
        happen(&topology, line, &other);
        std::thread::sleep(MS * 300);
        assert!(
            common::get(&topology, "/v1").is_some(),
            "{what}: {}",
            daemon.stderr().unwrap()
        );
        assert!(!daemon.has_ended().unwrap(), "{what}");
        stop_daemon(&daemon);
        let said = daemon.stderr().unwrap();
        assert!(!said.contains("panicked"), "{what}: {said}");
        assert_mended(&topology);
    }
}

// ---- Pins that others plant ----

/// Plants in place of the pin of a map.
type Plant = fn(&Path) -> io::Result<()>;

#[test]
fn what_is_planted_under_the_name_of_a_pin_is_never_written_to() {
    let plants: [(&str, Plant); 5] = [
        ("an array of other sizes", |path| {
            let map = foreign::array(20, 7).map_err(io::Error::other)?;
            sys::pin(map.as_fd(), path)
        }),
        ("a program", |path| {
            let program = foreign::classifier(0).map_err(io::Error::other)?;
            sys::pin(program.as_fd(), path)
        }),
        ("a folder", |path| fs::create_dir(path)),
        ("a link to nothing", |path| {
            std::os::unix::fs::symlink("/nowhere", path)
        }),
        ("a link to another map", |path| {
            std::os::unix::fs::symlink(path.with_file_name("STATS"), path)
        }),
    ];
    for map in Extent::wanted().pick(&["GATES", "HELD"][..], &gate_userspace::tables::MAPS) {
        for (what, plant) in plants {
            let topology = up();
            let path = topology.run(Side::Server, || {
                let path = Pins::here()?.map(map);
                fs::remove_file(&path)?;
                plant(&path)?;
                Ok(path)
            });
            let path = path.unwrap();
            println!("{what} as {}", path.display());
            let restart = CHANGES.len() - 1..;
            let all = match ["CHECKS", "CHECKING", "PEERS"].contains(map) {
                // Only who checks a backend opens these.
                true => &CHANGES[restart],
                false => &CHANGES[..],
            };
            for args in all {
                refused(&topology, args, 1, &[]);
            }
            gate(&topology, &["down"]);
            gate(&topology, &["up", INTERFACE]);
            gate(&topology, &["hold", ENDPOINT, "--for", "5s"]);
            assert_eq!(mode(&topology, ENDPOINT), "hold");
            gate(&topology, &["open", ENDPOINT]);
        }
    }
}

#[test]
fn a_root_folder_that_another_user_made_is_refused_whatever_it_is() {
    for plant in [
        format!("mkdir -m 0700 {ROOT}"),
        format!("mkdir -p -m 0777 {ROOT}/v{ABI_VERSION}"),
        format!("ln -s /tmp {ROOT}"),
        format!("ln -s /sys/fs/bpf {ROOT}"),
        format!("mkdir -m 0700 /sys/fs/bpf/mine && ln -s /sys/fs/bpf/mine {ROOT}"),
    ] {
        let topology = Topology::new().unwrap();
        let line = format!(
            "chmod 1777 /sys/fs/bpf && setpriv --reuid 65534 --clear-groups sh -c '{plant}'"
        );
        shell(&topology, Side::Server, &line);
        refused(&topology, &["up", INTERFACE], 1, &[ROOT, "0700"]);
        for args in CHANGES {
            let output = topology.gate(args).unwrap();
            assert_documented(&output);
            assert_ne!(output.code(), 0, "{plant}: {output}");
        }
        let _listener = listen(&topology, TARGET);
        assert_connects_at_once(&topology, TARGET);
    }
}
