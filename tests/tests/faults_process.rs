//! Processes that stop or die while a gate is closed, and output that goes nowhere. Commands that are
//! killed at each system call: faults_kill.rs. Needs root.

mod common;

use std::time::Duration;

use common::{
    CONFIG, ENDPOINT, LIMIT, MS, TARGET, UNTIL_LET_GO, assert_complaint, assert_documented,
    assert_none_lost, exists, find_gate, gate, held_client, let_go, mode, restart_daemon, running,
    shell, snapshot, spawn_daemon, start_restart, stop_daemon, up_with_service, wait_until,
    with_gate, write,
};
use gate_tests::extent::Extent;
use gate_tests::load::Load;
use gate_tests::topology::{Side, Topology};
use gate_userspace::error::exit;
use nix::sys::signal::Signal;

/// Waits until the gate is open, which its lease must see to: it is no longer than was asked for.
#[track_caller]
fn assert_lease_opens(topology: &Topology, lease: Duration) {
    let left = find_gate(topology, ENDPOINT).and_then(|gate| gate.lease);
    assert!(left.is_none_or(|left| left <= lease), "{left:?}");
    wait_until("the lease is over", || mode(topology, ENDPOINT) == "open");
}

// ---- Signals ----

#[test]
fn a_restart_that_is_stopped_keeps_nothing_closed_past_its_lease() {
    let (topology, _service) = up_with_service();
    for wait in Extent::wanted().pick(vec![0, 150], (0..20).map(|i| i * 25).collect()) {
        let options = ["--max-hold", "1s"];
        let restart = start_restart(&topology, &options, &["sleep", "98768"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        std::thread::sleep(MS * wait);
        restart.signal(Signal::SIGSTOP).unwrap();
        assert_lease_opens(&topology, MS * 1_000);
        client.finish_connected();
        restart.signal(Signal::SIGCONT).unwrap();
        let output = restart.wait(LIMIT).unwrap();
        assert_documented(&output);
        assert_eq!(output.code(), i32::from(exit::LEASE), "{output}");
        assert_eq!(mode(&topology, ENDPOINT), "open");
    }
}

#[test]
fn a_restarted_command_that_is_stopped_ends_with_the_lease() {
    let (topology, _service) = up_with_service();
    let line = "kill -STOP $$; sleep 98765";
    let restart = start_restart(&topology, &["--max-hold", "1s"], &["sh", "-c", line]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    assert_lease_opens(&topology, MS * 1_000);
    client.finish_connected();
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), i32::from(exit::LEASE), "{output}");
    assert_complaint(&output, &["--max-hold 1s"]);
    assert_eq!(running(&topology, "sh -c kill"), 0);
}

#[test]
fn a_restarted_command_that_is_killed_opens_the_gate() {
    let (topology, _service) = up_with_service();
    let load = Load::new(TARGET, 50, Duration::ZERO);
    let load = load.start_endless(&topology, Side::Client).unwrap();
    for wait in Extent::wanted().pick(vec![0, 20], (0..40).map(|i| i * 5).collect()) {
        let line = "echo $$ > /run/pid; exec sleep 98766";
        let restart = start_restart(&topology, &[], &["sh", "-c", line]);
        wait_until("it runs", || running(&topology, "sleep 98766") == 1);
        std::thread::sleep(MS * wait);
        shell(&topology, Side::Server, "kill -KILL $(cat /run/pid)");
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), 137, "{output}");
        assert_complaint(&output, &["was killed by SIGKILL", "the gate was opened"]);
        assert_eq!(mode(&topology, ENDPOINT), "open");
    }
    assert_none_lost(load, Duration::from_secs(5));
}

#[test]
fn a_backend_that_is_stopped_while_its_gate_opens_keeps_nothing_closed_past_the_lease() {
    let (topology, service) = up_with_service();
    let check = ["--max-hold", "2s", "--check", "http://10.0.0.5:8080/"];
    let restart = start_restart(&topology, &check, &["sh", "-c", UNTIL_LET_GO]);
    service.process().signal(Signal::SIGSTOP).unwrap();
    let client = held_client(&topology, ENDPOINT, TARGET);
    let_go(&topology);
    assert_lease_opens(&topology, MS * 2_000);
    assert_documented(&restart.wait(LIMIT).unwrap());
    service.process().signal(Signal::SIGCONT).unwrap();
    client.finish_connected();
}

// ---- Output that goes nowhere; of `restart` and `status`: output.rs ----

/// Where output goes nowhere.
const NOWHERE: [&str; 6] = [
    "> /dev/full",
    ">&-",
    "2>&-",
    "> /dev/full 2>&1",
    ">&- 2>&- <&-",
    "> /run/small/out 2>&1",
];

#[test]
fn whatever_becomes_of_its_output_a_command_does_what_it_is_told() {
    let (topology, _service) = up_with_service();
    let small = "mkdir /run/small && mount -t tmpfs -o size=4k none /run/small && \
                 dd if=/dev/zero of=/run/small/fill bs=4k count=2 2> /run/dd || true";
    shell(&topology, Side::Server, small);
    for nowhere in NOWHERE {
        for json in ["", "--json"] {
            for (verb, is) in [
                ("hold", "hold"),
                ("drop", "drop"),
                ("reject", "reject"),
                ("open", "open"),
            ] {
                let line = format!("exec \"$0\" {json} {verb} {ENDPOINT} {nowhere}");
                let output = with_gate(&topology, &line);
                assert_documented(&output);
                assert!([0, 1].contains(&output.code()), "{line}: {output}");
                assert!(output.stderr.lines().count() <= 1, "{line}: {output}");
                assert_eq!(mode(&topology, ENDPOINT), is, "{line}: {output}");
            }
        }
    }
    let line = "\"$0\" down > /dev/full; \"$0\" up eth0 > /dev/full; echo $?";
    assert_eq!(with_gate(&topology, line).stdout, "1\n");
    assert!(find_gate(&topology, ENDPOINT).is_none());
}

#[test]
fn a_daemon_whose_disk_and_output_are_full_does_its_work_or_says_so() {
    let (topology, _service) = up_with_service();
    let before = snapshot(&topology);
    // No room for its socket's folder, and none for a file in it.
    write(
        &topology,
        CONFIG,
        "[gate.web]\nendpoints = ['10.0.0.5:8081']\n",
    );
    let full = "mkdir /run/gate && mount -t tmpfs -o nr_inodes=1 none /run/gate";
    shell(&topology, Side::Server, full);
    let output = spawn_daemon(&topology).wait(LIMIT).unwrap();
    assert_documented(&output);
    assert_ne!(output.code(), 0, "{output}");
    assert_complaint(&output, &["/run/gate"]);
    assert_eq!(snapshot(&topology), before);
    shell(&topology, Side::Server, "umount /run/gate");
    // A log that can't be written is no reason to stop.
    let line = format!("exec \"$0\" daemon --config {CONFIG} > /dev/full 2>&1");
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &line])
        .arg(gate_tests::exe::gate().unwrap());
    let daemon = topology.spawn(Side::Server, &mut command).unwrap();
    wait_until("it has applied its configuration", || {
        find_gate(&topology, "web").is_some()
    });
    gate(&topology, &["hold", "web"]);
    gate(&topology, &["open", "web"]);
    stop_daemon(&daemon);
    stop_daemon(&restart_daemon(&topology));
    assert!(!exists(&topology, "/run/gate/gate.sock"));
}
