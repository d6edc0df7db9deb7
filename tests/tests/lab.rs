//! Tests of the laboratory itself: the topology, nginx and the demo. They need root.

mod common;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::shell;
use gate_tests::backend::Options;
use gate_tests::listener::Watch;
use gate_tests::load::{Outcome, get_once};
use gate_tests::nginx::Nginx;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, SCRATCH, Side, Topology, command, server_v4, server_v6};

const LIMIT: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);

// ---- The topology ----

#[test]
fn both_families_work_at_once_and_in_both_directions() {
    let topology = Topology::new().unwrap();
    let service = Options {
        listen: vec![server_v4(80), server_v6(80)],
        ..Options::new(server_v4(80))
    };
    let _service = Service::start(&topology, service).unwrap();
    for target in [server_v4(80), server_v6(80)] {
        for side in [Side::Client, Side::Server] {
            let outcome = topology
                .run(side, || get_once(target, "/healthz", LIMIT))
                .unwrap();
            assert_eq!(outcome, Outcome::Ok, "{side:?} to {target}");
        }
    }
}

/// An interface without a carrier has a queue that drops all, and gets another one in the kernel's
/// own time: the first SYN would be lost, and sent again after a second.
#[test]
fn the_first_packets_arrive() {
    /// Of 100 topologies, about one would lose one.
    const EACH: u32 = 200;
    let first = || {
        for _ in 0..EACH {
            let topology = Topology::new().unwrap();
            let bound = |side, to| topology.run(side, || Ok(UdpSocket::bind(to)?)).unwrap();
            for (server, any) in [
                (server_v4(9), "0.0.0.0:0".parse().unwrap()),
                (server_v6(9), "[::]:0".parse::<SocketAddr>().unwrap()),
            ] {
                let receiver = bound(Side::Server, server);
                let sender = bound(Side::Client, any);
                receiver.set_read_timeout(Some(LIMIT)).unwrap();
                sender.set_read_timeout(Some(LIMIT)).unwrap();
                sender.send_to(b"x", server).unwrap();
                let (_, client) = receiver.recv_from(&mut [0]).unwrap();
                receiver.send_to(b"y", client).unwrap();
                sender.recv_from(&mut [0]).unwrap();
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(first);
        first();
    });
}

#[test]
fn a_process_sees_the_private_mounts_and_the_servers_interfaces() {
    let topology = Topology::new().unwrap();
    let mount = shell(
        &topology,
        Side::Server,
        "grep ' /sys/fs/bpf ' /proc/self/mounts",
    );
    assert!(
        mount.ends_with(
            "bpf rw,relatime 0 0
"
        ),
        "{mount}"
    );
    assert_eq!(
        shell(&topology, Side::Server, "ls /sys/class/net"),
        format!("{INTERFACE}\nlo\n")
    );
    shell(
        &topology,
        Side::Server,
        "mkdir /sys/fs/bpf/gate; echo here > /run/note; echo here > /dev/shm/gate-lab-note",
    );
    // Threads share the folders with the processes; the machine does not.
    let read = || {
        Ok((
            fs::read_to_string(format!("{SCRATCH}/note"))?,
            fs::metadata("/sys/fs/bpf/gate")?,
        ))
    };
    assert_eq!(topology.run(Side::Client, read).unwrap().0, "here\n");
    assert!(!Path::new("/run/note").exists());
    assert!(!Path::new("/dev/shm/gate-lab-note").exists());
    // Nor does it share processes: the first is the namespace's own.
    assert_eq!(shell(&topology, Side::Server, "cat /proc/1/comm"), "cat\n");
}

#[test]
fn the_working_folder_stays() {
    let topology = Topology::new().unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        topology
            .run(Side::Client, || Ok(std::env::current_dir()?))
            .unwrap(),
        here
    );
    assert_eq!(
        PathBuf::from(shell(&topology, Side::Server, "pwd").trim()),
        here
    );
}

#[test]
fn sysctls_are_those_of_one_side() {
    let name = "net.core.somaxconn";
    let of_machine = || fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let before = of_machine();
    let topology = Topology::new().unwrap();
    topology.sysctl(Side::Server, name, "77").unwrap();
    assert_eq!(topology.read_sysctl(Side::Server, name).unwrap(), "77");
    assert_ne!(topology.read_sysctl(Side::Client, name).unwrap(), "77");
    assert_eq!(of_machine(), before);
    let error = topology
        .sysctl(Side::Server, "net.core.no_such", "1")
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("/proc/sys/net/core/no_such"),
        "{error:#}"
    );
}

#[test]
fn gro_can_be_switched_on() {
    let topology = Topology::new().unwrap();
    topology.enable_gro(Side::Client).unwrap();
}

#[test]
fn output_and_exit_codes_are_captured() {
    let topology = Topology::new().unwrap();
    let run = |line: &str, limit| {
        topology.output(Side::Client, Command::new("sh").args(["-c", line]), limit)
    };
    let output = run("echo out; echo err >&2; exit 3", LIMIT).unwrap();
    assert_eq!(
        (output.code(), &*output.stdout, &*output.stderr),
        (3, "out\n", "err\n")
    );
    assert_eq!(run("kill -TERM $$", LIMIT).unwrap().code(), 143);
    // A daemon that keeps the output open holds up nobody.
    let start = Instant::now();
    assert_eq!(
        run("sleep 60 & echo started", LIMIT).unwrap().stdout,
        "started\n"
    );
    assert!(start.elapsed() < LIMIT / 2);
    let error = run("echo slow; sleep 60", MS * 200)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("took longer") && error.contains("slow"),
        "{error}"
    );
    let missing = topology.output(Side::Client, &mut Command::new("no-such-program"), LIMIT);
    assert!(format!("{:#}", missing.unwrap_err()).contains("start no-such-program"));
}

// ---- The demo ----

/// Runs the demo with a gate that only runs what it is told to restart.
fn demo_without_a_real_gate(args: &[&str]) -> std::process::Output {
    let gate = std::env::temp_dir().join(format!("gate-lab-test-{}", std::process::id()));
    fs::write(
        &gate,
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = -- ] && shift && exec \"$@\"; shift; done\n",
    )
    .unwrap();
    fs::set_permissions(&gate, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gate-lab"))
        .args([
            "demo",
            "--outage",
            "300ms",
            "--duration",
            "2400ms",
            "--svg",
            "/dev/null",
        ])
        .args(args)
        .env("GATE_BIN", &gate)
        .output()
        .unwrap();
    fs::remove_file(gate).unwrap();
    output
}

#[test]
fn the_demo_fails_if_the_hold_run_loses_a_request() {
    let output = demo_without_a_real_gate(&["--only", "hold", "--json"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("the hold run lost"), "{words}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["runs"][0]["run"], "hold");
    assert_eq!(json["runs"][0]["requests"], 480);
    assert!(
        json["runs"][0]["errors"]["refused"].as_u64().unwrap() >= 15,
        "{json}"
    );
    assert!(json["runs"][0]["added_ms"].is_null());
}

// ---- nginx ----

#[test]
fn nginx_starts_restarts_and_stops() {
    let topology = Topology::new().unwrap();
    let nginx = Nginx::start(&topology).unwrap();
    let ask = |target, path| {
        topology
            .run(Side::Client, || get_once(target, path, LIMIT))
            .unwrap()
    };
    for target in nginx.addresses() {
        assert_eq!(
            [ask(target, "/"), ask(target, "/healthz")],
            [Outcome::Ok; 2]
        );
        assert_eq!(ask(target, "/none"), Outcome::BadStatus);
    }
    let watch = Watch::start(&topology, nginx.addresses()[0]).unwrap();
    let words = nginx.restart_command(MS * 300).unwrap();
    topology
        .output(Side::Server, &mut command(&words), LIMIT)
        .unwrap()
        .ok()
        .unwrap();
    let gaps = watch.finish().unwrap();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!((MS * 250..LIMIT).contains(&gaps[0].length()), "{gaps:?}");
    assert_eq!(ask(nginx.addresses()[0], "/"), Outcome::Ok);
    nginx.stop().unwrap();
    assert_eq!(ask(nginx.addresses()[0], "/"), Outcome::Refused);
    assert_eq!(
        shell(
            &topology,
            Side::Server,
            "cat /proc/[0-9]*/comm | grep -c nginx || true"
        ),
        "0\n"
    );
}
