//! What a restart waits for before its command, and what becomes of the gate when it fails. Needs
//! root.

mod common;

use std::ffi::OsString;
use std::time::Duration;

use common::{
    BEFORE_RETRANSMISSION, ENDPOINT, LIMIT, MS, TARGET, UNTIL_LET_GO, assert_complaint,
    assert_connects_at_once, connect, connect_once, error_at, gate_status, held_client, let_go,
    listen, mode, refused, restart, start_restart, up, up_with_service, wait_until,
    wait_until_half_open,
};
use gate_tests::load::{Load, Outcome};
use gate_tests::nft;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{Output, Side, Topology};
use serde_json::Value;

/// A restart with `--json`, to its end.
#[track_caller]
fn restart_json(topology: &Topology, options: &[&str], command: &[&str]) -> (Output, Value) {
    let args = [&["--json", "restart", ENDPOINT], options, &["--"], command].concat();
    let output = topology.gate(args).unwrap();
    let fields = serde_json::from_str(&output.stdout).unwrap();
    (output, fields)
}

fn phases(fields: &Value) -> Vec<&str> {
    let phases = fields["phases"].as_array().unwrap();
    let names = phases.iter().map(|phase| phase["phase"].as_str());
    names.map(Option::unwrap).collect()
}

// ---- On failure ----

#[test]
fn a_restart_that_fails_can_leave_the_gate_rejecting() {
    let (topology, _service) = up_with_service();
    let options = ["--on-failure", "reject", "--max-hold", "20s"];
    let command = format!("{UNTIL_LET_GO}; exit 7");
    let restart = start_restart(&topology, &options, &["sh", "-c", &command]);
    let client = held_client(&topology, ENDPOINT, TARGET);
    let_go(&topology);
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 7, "{output}");
    assert_complaint(&output, &["exited with 7", "rejected for 20s"]);
    assert!(
        output.stdout.contains("rejecting new connections"),
        "{output}"
    );
    assert_eq!(mode(&topology, ENDPOINT), "reject");
    assert!(gate_status(&topology, ENDPOINT).lease.unwrap() > Duration::from_secs(10));
    // Refused at once; the held one when it retransmits.
    let refused = connect_once(&topology, TARGET);
    assert!(refused.result.is_err() && refused.took < BEFORE_RETRANSMISSION);
    assert!(
        client
            .finish()
            .iter()
            .all(|attempt| attempt.result.is_err())
    );
}

#[test]
fn a_restart_that_fails_can_leave_the_gate_closed_for_its_lease() {
    let (topology, _service) = up_with_service();
    let options = ["--on-failure", "keep", "--max-hold", "20s"];
    let output = restart(&topology, &options, &["false"]);
    assert_eq!(output.code(), 1, "{output}");
    assert_complaint(&output, &["stays closed until its lease is over"]);
    assert!(output.stdout.contains("still holding"), "{output}");
    let client = held_client(&topology, ENDPOINT, TARGET);
    common::gate(&topology, &["open", ENDPOINT]);
    client.finish_released(&topology, ENDPOINT);
}

#[test]
fn what_a_lease_opened_stays_open_and_what_shall_reject_rejects() {
    let (topology, _service) = up_with_service();
    for (policy, expected) in [("keep", "open"), ("open", "open"), ("reject", "reject")] {
        let options = [
            "--on-failure",
            policy,
            "--max-hold",
            "2s",
            "--check",
            "exec:false",
        ];
        let output = restart(&topology, &options, &["true"]);
        assert_eq!(output.code(), 124, "{output}");
        assert_eq!(mode(&topology, ENDPOINT), expected, "{policy}");
    }
}

#[test]
fn an_interrupted_restart_opens_whatever_it_does_on_failure() {
    let (topology, _service) = up_with_service();
    for policy in ["reject", "keep"] {
        let options = ["--on-failure", policy];
        let restart = start_restart(&topology, &options, &["sleep", "98763"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        restart.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(restart.wait(LIMIT).unwrap().code(), 143);
        assert_eq!(mode(&topology, ENDPOINT), "open");
        client.finish_released(&topology, ENDPOINT);
    }
}

// ---- Before the command ----

#[test]
fn the_accept_queue_is_waited_for_as_long_as_it_is_told() {
    let topology = up();
    // Nobody accepts, so the queue never empties.
    let _listener = listen(&topology, TARGET);
    assert_connects_at_once(&topology, TARGET);
    let quiesce = |options: &[&str]| {
        let (output, fields) = restart_json(&topology, options, &["true"]);
        assert_eq!(output.code(), 0, "{output}");
        assert_eq!(phases(&fields), ["quiesce", "command", "health"]);
        fields["phases"][0]["ms"].as_f64().unwrap()
    };
    assert!(quiesce(&[]) >= 1_000.0);
    assert!(quiesce(&["--quiesce", "150ms"]) >= 150.0);
    assert!(quiesce(&["--quiesce", "0s"]) < 1_000.0);
}

#[test]
fn a_client_whose_first_packets_were_lost_is_waited_for() {
    if !has(Feature::Nftables) {
        return;
    }
    let (topology, service) = up_with_service();
    // A bit more than the least there is, which a client further away takes as well. Older kernels than
    // 6.11 have that least.
    let _is_older = topology.sysctl(Side::Client, "net.ipv4.tcp_rto_min_us", "280000");
    let losing = "table ip loss { chain in { type filter hook prerouting priority -300; \
                  tcp dport 8080 tcp flags & (syn | ack) == ack drop; }; }";
    nft::load(&topology, Side::Server, losing).unwrap();
    let load = Load::new(TARGET, 1, MS * 1_000).start(&topology).unwrap();
    wait_until_half_open(&topology, TARGET);
    nft::load(&topology, Side::Server, "delete table ip loss").unwrap();
    let command = service.restart_command(MS * 50).unwrap();
    let words = ["restart", ENDPOINT, "--"].map(OsString::from);
    let output = topology.gate(words.into_iter().chain(command)).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    let requests = load.finish().unwrap();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].outcome, Outcome::Ok, "{requests:?}");
}

#[test]
fn the_command_starts_when_the_last_connection_has_ended() {
    let topology = up();
    let listener = listen(&topology, TARGET);
    let connected = connect(&topology, Side::Client, TARGET, &listener);
    let options = ["--drain", "30s"];
    let restart = start_restart(&topology, &options, &["touch", "/run/drained"]);
    wait_until("it drains", || {
        restart.stderr().unwrap().contains("1 connection")
    });
    assert!(!common::exists(&topology, "/run/drained"));
    drop(connected);
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert!(output.stdout.contains("drain "), "{output}");
    assert!(common::exists(&topology, "/run/drained"));
}

#[test]
fn connections_that_hold_on_are_left_or_reset_when_the_drain_is_over() {
    for (then, left) in [("leave", 1), ("flush", 0)] {
        let topology = up();
        let listener = listen(&topology, TARGET);
        let connected = connect(&topology, Side::Client, TARGET, &listener);
        let options = ["--drain", "200ms", "--then", then];
        let (output, fields) = restart_json(&topology, &options, &["true"]);
        assert_eq!(output.code(), 0, "{output}");
        assert_eq!(phases(&fields), ["quiesce", "drain", "command", "health"]);
        assert_eq!(fields["drain"]["left"], left, "{fields}");
        assert_eq!(fields["drain"]["flushed"], 1 - left, "{fields}");
        let timeout = Some(Duration::from_millis(100));
        connected.client.set_read_timeout(timeout).unwrap();
        let error = error_at(&connected.client);
        let expected = match then {
            "leave" => libc::EAGAIN,
            _ => libc::ECONNRESET,
        };
        assert_eq!(error, Some(expected), "{then}");
    }
}

#[test]
fn connections_that_are_kept_for_later_are_reset_meanwhile() {
    let topology = up();
    let listener = listen(&topology, TARGET);
    let connected = connect(&topology, Side::Client, TARGET, &listener);
    let options = ["--drain", "20s", "--flush-idle", "300ms"];
    let (output, fields) = restart_json(&topology, &options, &["true"]);
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(fields["drain"]["flushed"], 1, "{fields}");
    let waited = fields["phases"][1]["ms"].as_f64().unwrap();
    assert!(waited < 20_000.0, "{fields}");
    drop(connected);
}

// ---- Checks in a row ----

#[test]
fn a_backend_that_flaps_is_healthy_when_it_has_passed_often_enough() {
    let (topology, _service) = up_with_service();
    // Passes at the first, the third, and from the fifth time on.
    let check = "exec:n=$(cat /run/n 2>/dev/null || echo 0); n=$((n+1)); echo $n > /run/n; \
                 [ $n = 1 ] || [ $n = 3 ] || [ $n -ge 5 ]";
    let options = ["--check", check, "--rise", "3"];
    let (output, _) = restart_json(&topology, &options, &["true"]);
    assert_eq!(output.code(), 0, "{output}");
    let count = common::shell(&topology, Side::Server, "cat /run/n");
    assert_eq!(count.trim(), "7");
}

#[test]
fn a_backend_that_listens_on_another_address_is_told() {
    let topology = up();
    let _listener = listen(&topology, "127.0.0.1:8080".parse().unwrap());
    let output = restart(&topology, &["--max-hold", "2s"], &["true"]);
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(
        &output,
        &["nothing listens on 10.0.0.5:8080, but on 127.0.0.1:8080"],
    );
}

#[test]
fn a_backend_that_listens_but_fails_its_check_is_told() {
    let (topology, _service) = up_with_service();
    let options = ["--max-hold", "2s", "--check-status", "404"];
    let check = ["--check", "http://10.0.0.5:8080/"];
    let output = restart(&topology, &[&options[..], &check].concat(), &["true"]);
    assert_eq!(output.code(), 124, "{output}");
    assert_complaint(&output, &["http://10.0.0.5:8080/", "200"]);
}

// ---- Bad input ----

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let topology = up();
    for (options, word) in [
        (
            &["--drain", "10s", "--max-hold", "10s"][..],
            "leaves nothing",
        ),
        (&["--drain", "0s"], "1ms to 24h"),
        (&["--then", "flush"], "--drain"),
        (&["--flush-idle", "1s"], "--drain"),
        (&["--rise", "0"], "rise"),
        (&["--on-failure", "explode"], "explode"),
        (&["--quiesce", "fast"], "write a time"),
    ] {
        let args = [&["restart", ENDPOINT], options, &["--", "true"]].concat();
        refused(&topology, &args, 2, &[word]);
    }
}
