//! What `gate` prints, for people and in JSON, also of a full table, and into what is closed or full.
//! Needs root.

mod common;

use common::{
    Clients, ENDPOINT, LIMIT, PORT, UNTIL_LET_GO, assert_complaint, assert_refusal, count, exists,
    gate, gate_status, json, let_go, listen, mode, refused, start_restart, status, up,
    wait_until_counted, wait_until_held, with_gate,
};
use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Topology, server_v4};

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
        assert!(exists(&topology, "/run/ran"), "{redirections}: {output}");
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

// ---- A full table ----

#[test]
fn what_a_full_table_cannot_hold_is_counted_and_connects_by_retransmission() {
    /// What one prefix gets of 16.
    const ROOM: usize = 14;
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
    assert_eq!(shown["gates"][0]["held"], ROOM);
    assert_eq!(shown["gates"][0]["counters"]["held"], ROOM);
    assert!(shown["gates"][0]["counters"]["overflowed"].as_u64() >= Some(least));
    assert_eq!(clients.connected(), 0);

    let opened = json(&gate(&topology, &["open", "--json", ENDPOINT]));
    assert_eq!(opened["released"], ROOM);
    let attempts = clients.finish();
    assert!(attempts.iter().all(|a| a.result.is_ok()), "{attempts:?}");
    let sent_again = attempts.iter().filter(|a| a.sent_again > 0);
    assert!(sent_again.count() >= CLIENTS - ROOM, "{attempts:?}");
}

#[test]
fn a_restart_tells_of_an_overflow() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--held", "1", INTERFACE]);
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    let restart = start_restart(&topology, &[], &["sh", "-c", UNTIL_LET_GO]);
    let clients = Clients::start(&topology, server_v4(PORT), 3, None);
    wait_until_counted(&topology, ENDPOINT, Counter::Overflowed, 2);
    let_go(&topology);
    let output = restart.wait(LIMIT).unwrap().ok().unwrap();
    let overflowed = count(&topology, ENDPOINT, Counter::Overflowed);
    let line = format!("{overflowed} SYNs not held");
    assert!(output.stdout.contains(&line), "{line}: {output}");
    // One, or more where a retransmission found the room that a released one had left.
    assert!(output.stdout.contains("held, now released"), "{output}");
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
