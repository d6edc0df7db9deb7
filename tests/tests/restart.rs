//! `gate restart` when something goes wrong on the way, and its checks. Needs root.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use common::{
    ENDPOINT, LIMIT, MS, PORT, TARGET, UNTIL_LET_GO, assert_complaint, assert_connects_at_once,
    assert_refusal, exists, find_gate, gate, held_client, let_go, listen, mode, refused, restart,
    running, start_restart, up, up_with_service, wait_until,
};
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::{SCRATCH, Side, Topology, server_v4, server_v6};
use nix::sys::signal::Signal;

// ---- Signals, and commands that fail ----

#[test]
fn a_signal_opens_the_gate_and_stops_the_command() {
    let (topology, _service) = up_with_service();
    for (signal, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGINT, 130),
        (Signal::SIGHUP, 129),
    ] {
        let restart = start_restart(&topology, &[], &["sleep", "98761"]);
        wait_until("the command runs", || {
            running(&topology, "sleep 98761") == 1
        });
        let client = held_client(&topology, ENDPOINT, TARGET);
        restart.signal(signal).unwrap();
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), code, "{output}");
        assert_complaint(
            &output,
            &["interrupted", "the gate was opened", "the command stopped"],
        );
        assert_eq!(mode(&topology, ENDPOINT), "open");
        assert_eq!(running(&topology, "sleep 98761"), 0);
        client.finish_released(&topology, ENDPOINT);
    }
}

#[test]
fn a_signal_before_the_command_starts_opens_the_gate() {
    let topology = up();
    // Nobody accepts, so the queue never empties, and the command waits for that.
    let _listener = listen(&topology, TARGET);
    assert_connects_at_once(&topology, TARGET);
    let restart = start_restart(&topology, &[], &["touch", "/run/ran"]);
    restart.signal(Signal::SIGTERM).unwrap();
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 143, "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "open");
    assert!(!exists(&topology, "/run/ran"));
}

#[test]
fn a_signal_during_the_checks_opens_the_gate() {
    let (topology, _service) = up_with_service();
    let restart = start_restart(&topology, &["--check", "exec:false"], &["true"]);
    wait_until("the checks have begun", || {
        restart.stderr().unwrap().contains("checking")
    });
    restart.signal(Signal::SIGINT).unwrap();
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 130, "{output}");
    assert_complaint(&output, &["interrupted"]);
    assert_eq!(mode(&topology, ENDPOINT), "open");
}

#[test]
fn a_failed_command_opens_the_gate_and_passes_its_code_on() {
    let (topology, _service) = up_with_service();
    for (line, code, word) in [
        ("exit 7", 7, "exited with 7"),
        ("kill -9 $$", 137, "was killed by SIGKILL"),
        ("exit 255", 255, "exited with 255"),
    ] {
        let held = format!("{UNTIL_LET_GO}; {line}");
        let restart = start_restart(&topology, &[], &["sh", "-c", &held]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        let_go(&topology);
        let output = restart.wait(LIMIT).unwrap();
        assert_eq!(output.code(), code, "{output}");
        assert_complaint(&output, &[word, "the gate was opened"]);
        assert_eq!(mode(&topology, ENDPOINT), "open");
        client.finish_released(&topology, ENDPOINT);
    }
}

/// A file in the topology's own folder with this text and mode.
fn write(topology: &Topology, name: &str, text: &str, mode: u32) -> String {
    let path = Path::new(SCRATCH).join(name);
    topology
        .run(Side::Server, || {
            std::fs::write(&path, text)?;
            Ok(std::fs::set_permissions(
                &path,
                PermissionsExt::from_mode(mode),
            )?)
        })
        .unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_command_that_is_not_there_or_not_executable_never_closes_the_gate() {
    let (topology, _service) = up_with_service();
    let plain = write(&topology, "plain", "#!/bin/sh\n", 0o644);
    for (command, code, word) in [
        ("no-such-command", 127, "no command no-such-command"),
        ("/no/such/command", 127, "no command /no/such/command"),
        ("", 127, "no command"),
        (&*plain, 126, "permission"),
        (SCRATCH, 126, "can't be run"),
        ("/etc/passwd/x", 126, "can't be run"),
    ] {
        refused(
            &topology,
            &["restart", ENDPOINT, "--", command],
            code,
            &[word],
        );
    }
    assert!(find_gate(&topology, ENDPOINT).is_none());
}

#[test]
fn a_command_in_path_that_is_not_executable_is_told_from_one_that_is_not_there() {
    let (topology, _service) = up_with_service();
    write(&topology, "plain", "#!/bin/sh\n", 0o644);
    let mut command = Command::new("env");
    command
        .arg(format!("PATH={SCRATCH}"))
        .arg(gate_tests::exe::gate().unwrap())
        .args(["restart", ENDPOINT, "--", "plain"]);
    let output = topology.output(Side::Server, &mut command, LIMIT).unwrap();
    assert_refusal(&output, 126, &["plain", "permission"]);
    assert!(find_gate(&topology, ENDPOINT).is_none());
}

#[test]
fn a_command_that_fails_to_start_leaves_the_gate_open() {
    let (topology, _service) = up_with_service();
    for text in ["#!/no/such/interpreter\n", "\x7fELF rubbish"] {
        let path = write(&topology, "broken", text, 0o755);
        let output = restart(&topology, &[], &[&path]);
        assert_eq!(output.code(), 126, "{output}");
        assert_complaint(&output, &["broken", "can't be run"]);
        assert_eq!(mode(&topology, ENDPOINT), "open");
        assert_connects_at_once(&topology, TARGET);
    }
}

#[test]
fn a_command_that_hangs_is_stopped_when_the_lease_is_over() {
    let (topology, _service) = up_with_service();
    let restart = start_restart(&topology, &["--max-hold", "1s"], &["sleep", "98762"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["--max-hold 1s", "the command stopped"]);
    assert_eq!(mode(&topology, ENDPOINT), "open");
    assert_eq!(running(&topology, "sleep 98762"), 0);
    client.finish_connected();
    assert_connects_at_once(&topology, TARGET);
}

#[test]
fn a_command_that_ignores_sigterm_keeps_nobody_waiting_and_is_killed() {
    let (topology, _service) = up_with_service();
    let line = "trap '' TERM; while :; do sleep 0.1; done";
    let restart = start_restart(&topology, &["--max-hold", "500ms"], &["sh", "-c", line]);
    wait_until("the lease is over", || mode(&topology, ENDPOINT) == "open");
    // Open, though the command is still being stopped.
    assert_connects_at_once(&topology, TARGET);
    assert!(!restart.has_ended().unwrap());
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 124, "{output}");
    assert_eq!(running(&topology, "sh -c trap"), 0);
}

#[test]
fn all_of_a_stopped_commands_process_group_is_killed() {
    let (topology, _service) = up_with_service();
    let stubborn = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & wait";
    let options = ["--max-hold", "500ms"];
    let output = restart(&topology, &options, &["sh", "-c", stubborn]);
    assert_eq!(output.code(), 124, "{output}");
    wait_until("the last of the group is gone", || {
        running(&topology, "sh -c trap") == 0
    });
}

#[test]
fn a_command_that_daemonises_is_done_when_it_returns() {
    let (topology, _service) = up_with_service();
    for line in ["sleep 98763 & exit 0", "setsid sleep 98763 & exit 0"] {
        let output = restart(&topology, &[], &["sh", "-c", line]);
        assert_eq!(output.code(), 0, "{output}");
        assert!(output.took < Duration::from_secs(10), "{output}");
        assert_eq!(mode(&topology, ENDPOINT), "open");
    }
    // What it left behind is left alone.
    wait_until("both run", || running(&topology, "sleep 98763") == 2);
}

// ---- Checks ----

#[test]
fn the_gate_opens_when_the_check_passes_and_not_before() {
    let (topology, _service) = up_with_service();
    let check = "exec:test -e /run/healthy";
    let restart = start_restart(&topology, &["--json", "--check", check], &["true"]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    sleep(MS * 300);
    assert_eq!((mode(&topology, ENDPOINT), client.connected()), ("hold", 0));
    write(&topology, "healthy", "", 0o644);
    let output = restart.wait(LIMIT).unwrap().ok().unwrap();
    let fields: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(fields["released"], 1, "{output}");
    assert!(fields["closed_ms"].as_f64().unwrap() >= 300.0, "{output}");
    client.finish_released(&topology, ENDPOINT);
}

#[test]
fn every_kind_of_check_passes_when_it_should() {
    let (topology, _service) = up_with_service();
    for options in [
        &["--check", "tcp://10.0.0.5:8080"][..],
        &["--check", "http://10.0.0.5:8080/healthz"],
        &[
            "--check",
            "http://10.0.0.5:8080/none",
            "--check-status",
            "404",
        ],
        &[
            "--check",
            "http://10.0.0.5:8080/none",
            "--check-status",
            "200-499",
        ],
        &["--check", "exec:exit 0"],
        &["--check", "exec:true", "--check", "tcp://10.0.0.5:8080"],
    ] {
        let output = restart(&topology, options, &["true"]);
        assert_eq!(output.code(), 0, "{output}");
        assert!(output.stdout.contains("healthy"), "{output}");
    }
}

#[test]
fn a_check_that_never_passes_ends_with_the_lease_and_is_named() {
    let (topology, _service) = up_with_service();
    // It connects, and never says a word.
    let _mute = listen(&topology, server_v4(81));
    let hold = ["--max-hold", "500ms", "--check-timeout", "100ms"];
    for (check, word) in [
        ("http://10.0.0.5:81/healthz", "no answer within 100ms"),
        ("http://10.0.0.5:82/healthz", "connection refused"),
        ("http://10.0.0.5:8080/none", "status 404"),
        ("https://10.0.0.5:81/healthz", "no answer within 100ms"),
        ("tcp://10.0.0.5:82", "connection refused"),
        ("exec:exit 3", "exit status: 3"),
        ("exec:sleep 9", "no answer within 100ms"),
    ] {
        let options = [&hold[..], &["--check", check]].concat();
        let output = restart(&topology, &options, &["true"]);
        assert_eq!(output.code(), 124, "{output}");
        assert_complaint(&output, &["not healthy", "--max-hold 500ms", check, word]);
        assert_eq!(mode(&topology, ENDPOINT), "open");
    }
}

#[test]
fn a_check_by_command_that_is_given_up_leaves_no_process() {
    let (topology, _service) = up_with_service();
    let check = "exec:sleep 98764";
    let options = [
        "--max-hold",
        "500ms",
        "--check-timeout",
        "100ms",
        "--check",
        check,
    ];
    let output = restart(&topology, &options, &["true"]);
    assert_eq!(output.code(), 124, "{output}");
    assert_eq!(running(&topology, "sleep 98764"), 0);
}

#[test]
fn a_backend_that_does_not_come_back_ends_with_the_lease_and_is_named() {
    let (topology, service) = up_with_service();
    service.process().signal(Signal::SIGTERM).unwrap();
    service.process().wait(LIMIT).unwrap();
    let options = ["--max-hold", "500ms", "--check", "exec:true"];
    let output = restart(&topology, &options, &["true"]);
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["nothing listens on 10.0.0.5:8080"]);
}

#[test]
fn a_wildcard_restart_needs_no_check_of_its_own_wherever_the_backend_listens() {
    for listen_at in [server_v4(PORT), server_v6(PORT)] {
        let topology = up();
        let _service = Service::start(&topology, Options::new(listen_at)).unwrap();
        let args = ["restart", "*:8080", "--max-hold", "2s", "--", "true"];
        let output = topology.gate(args).unwrap();
        assert_eq!(output.code(), 0, "{listen_at}: {output}");
    }
}

#[test]
fn what_another_command_did_to_the_gate_meanwhile_stays() {
    let (topology, _service) = up_with_service();
    let restart = start_restart(&topology, &[], &["sleep", "1"]);
    gate(&topology, &["reject", ENDPOINT, "--for", "30s"]);
    let output = restart.wait(LIMIT).unwrap();
    assert!(output.stdout.contains("another command"), "{output}");
    assert_eq!(mode(&topology, ENDPOINT), "reject");
}
