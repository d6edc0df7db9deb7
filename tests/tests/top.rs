//! `gate top` in a terminal: what it shows, what its keys do, and how it leaves the terminal. Needs
//! root, and script(1) of util-linux.

mod common;

use std::process::Command;

use common::{
    Clients, ENDPOINT, LIMIT, PORT, assert_refusal, gate, listen, mode, refused, up, wait_until,
    wait_until_held,
};
use gate_tests::exe;
use gate_tests::topology::{Output, Process, Side, Topology, server_v4};

/// How a program takes the screen, and gives it back (`smcup` and `rmcup` of xterm).
const TAKES: &str = "\x1b[?1049h";
const GIVES_BACK: &str = "\x1b[?1049l";

/// What the shell writes last.
const TOLD: &str = "all-told";

/// Starts a shell line in a terminal of 100 columns and 24 rows; `input` is a shell line that types.
#[track_caller]
fn in_terminal(topology: &Topology, input: &str, line: &str) -> Process {
    let line = format!("stty rows 24 cols 100; {line}; echo code $?; stty -a; echo {TOLD}");
    let typing = format!("{{ {input}; sleep 60; }} | TERM=xterm script -qec '{line}' /dev/null");
    let mut command = Command::new("bash");
    topology
        .spawn(Side::Server, command.args(["-c", &typing]))
        .unwrap()
}

#[track_caller]
fn top() -> String {
    format!("{} top", exe::gate().unwrap().display())
}

/// Waits until it has ended and the shell has told how; all that was written.
#[track_caller]
fn ended(process: &Process) -> String {
    wait_until("it has ended", || process.stdout().unwrap().contains(TOLD));
    let written = process.stdout().unwrap();
    process
        .signal_group(nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    written
}

/// It ended well, and the terminal is as before.
#[track_caller]
fn assert_restored(written: &str) {
    assert!(written.contains(TAKES), "{written:?}");
    let (_, after) = written
        .rsplit_once(GIVES_BACK)
        .expect("the screen is given back");
    assert!(after.contains("code 0"), "{after:?}");
    let words: Vec<&str> = after.split_whitespace().collect();
    for word in ["icanon", "echo", "isig"] {
        assert!(words.contains(&word), "{word}: {after:?}");
    }
}

#[test]
fn it_refuses_without_a_terminal() {
    let topology = up();
    let words = ["needs a terminal", "`gate status`"];
    refused(&topology, &["top"], 3, &words);
    let output: Output = topology.gate(["top", "--json"]).unwrap();
    assert_eq!(output.code(), 3, "{output}");
    assert!(output.stdout.contains("gate status"), "{output}");
}

#[test]
fn without_rights_it_says_so() {
    let topology = up();
    let line = format!("exec setpriv --reuid=65534 --clear-groups {}", top());
    let mut command = Command::new("sh");
    let output = topology
        .output(Side::Server, command.args(["-c", &line]), LIMIT)
        .unwrap();
    assert_refusal(&output, 4, &["missing rights", "run it as root"]);
}

#[test]
fn it_shows_what_is_live_and_ends_by_q() {
    let topology = up();
    gate(&topology, &["define", "web", ENDPOINT]);
    gate(&topology, &["reject", "web", "--for", "60s"]);
    let process = in_terminal(&topology, "sleep 2; printf q", &top());
    let written = ended(&process);
    assert_restored(&written);
    // Only what differs from the screen before is written, so longer texts may come in pieces.
    for text in ["web", "reject", "closed", "0/16384", "eth0"] {
        assert!(written.contains(text), "{text}: {written:?}");
    }
    // The gate stays as it was.
    assert_eq!(mode(&topology, "web"), "reject");
}

#[test]
fn sigterm_ends_it_and_gives_the_terminal_back() {
    let topology = up();
    for signal in ["TERM", "HUP", "INT"] {
        let line = format!(
            "timeout --foreground --preserve-status -s {signal} 2 {}",
            top()
        );
        let process = in_terminal(&topology, "true", &line);
        assert_restored(&ended(&process));
    }
}

#[test]
fn its_keys_hold_and_open_as_the_commands_do() {
    let topology = up();
    gate(&topology, &["define", "web", ENDPOINT]);
    let _listener = listen(&topology, server_v4(PORT));
    // The time between the keys is for what is done by hand meanwhile.
    let input = "sleep 2; printf h; sleep 1; printf y; sleep 6; printf o; sleep 1; printf y; \
                 sleep 2; printf q";
    let process = in_terminal(&topology, input, &top());
    wait_until("it asks", || process.stdout().unwrap().contains("sure?"));
    assert_eq!(mode(&topology, "web"), "open");
    wait_until("it holds", || mode(&topology, "web") == "hold");
    let clients = Clients::start(&topology, server_v4(PORT), 5, None);
    wait_until_held(&topology, "web", 5);
    wait_until("it is open", || mode(&topology, "web") == "open");
    clients.finish_connected();
    let written = ended(&process);
    assert_restored(&written);
    assert!(
        written.contains("5 connections held, now released"),
        "{written:?}"
    );
}
