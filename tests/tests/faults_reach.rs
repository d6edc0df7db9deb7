//! A restart whose pins are out of reach, or gone, does with its own all that it has to do. What it says
//! then: faults_system.rs. Needs root.

mod common;

use std::ffi::OsString;
use std::time::Duration;

use common::{
    ENDPOINT, LIMIT, ROOT, TARGET, assert_connects_at_once, exists, gate, held_client, mode, shell,
    start_restart, tcp_counters, up,
};
use gate_common::abi::ABI_VERSION;
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::{INTERFACE, Side, Topology};

/// A backend that the gate is handed over to.
const BACKEND: &str = "127.0.0.1:8082";

/// Nothing listens for so long: until after a client's second SYN, which comes 1 s after its first.
const OUTAGE: Duration = Duration::from_millis(1_500);

/// Said of a client whose SYN was injected.
const TOLD: &str = "1 connection held, now released";

/// The lease is longer than any client has patience: only an opening ends it.
const OPTIONS: [&str; 2] = ["--max-hold", "60s"];

#[test]
fn a_restart_knows_the_new_socket_of_a_backend_though_its_pins_are_covered() {
    let topology = up();
    let backend = Service::start(&topology, Options::new(BACKEND.parse().unwrap())).unwrap();
    // There is no other listener: who is not sent to the backend is refused.
    gate(&topology, &["handover", ENDPOINT, "--to", BACKEND]);
    assert_connects_at_once(&topology, TARGET);
    let command = backend.restart_command(OUTAGE).unwrap();
    let command: Vec<String> = command.into_iter().map(text).collect();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let restart = start_restart(&topology, &OPTIONS, &command);
    let client = held_client(&topology, ENDPOINT, TARGET);
    shell(&topology, Side::Server, "mount -t bpf bpf /sys/fs/bpf");
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert!(output.stdout.contains(TOLD), "{output}");
    assert_none_sent_again(&topology, || client.finish_connected());
    assert_connects_at_once(&topology, TARGET);
    shell(&topology, Side::Server, "umount /sys/fs/bpf");
    gate(&topology, &["down"]);
}

/// That no client sends its SYN again meanwhile: who connects had one injected.
#[track_caller]
fn assert_none_sent_again<T>(topology: &Topology, act: impl FnOnce() -> T) {
    let sent_again = || tcp_counters(topology, Side::Client)["TCPSynRetrans"];
    let before = sent_again();
    act();
    assert_eq!(sent_again(), before);
}

fn text(word: OsString) -> String {
    word.into_string().unwrap()
}

#[test]
fn a_restart_opens_though_its_namespaces_pins_or_that_of_the_words_are_removed() {
    // The folder of the lock stays: another namespace has pins there.
    for gone in ["[1-9][0-9]*", "[1-9][0-9]*/GATES"] {
        let topology = up();
        let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
        shell(&topology, Side::Server, &format!("mkdir -p {ROOT}/v0/7"));
        let restart = start_restart(&topology, &OPTIONS, &["sleep", "1.5"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        let line = format!("set -- {ROOT}/v[1-9]*/{gone}; test -e $1 && rm -r $1");
        shell(&topology, Side::Server, &line);
        let output = restart.wait(LIMIT).unwrap();
        assert!(output.stdout.contains(TOLD), "{gone}: {output}");
        assert_none_sent_again(&topology, || client.finish_connected());
        assert_connects_at_once(&topology, TARGET);
        gate(&topology, &["down"]);
    }
}

#[test]
fn a_restart_leaves_alone_what_others_put_in_the_place_of_its_gate() {
    // The root folder stays where another namespace has pins, or goes and is made anew.
    for other in [true, false] {
        let topology = up();
        let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
        if other {
            let line = format!("umask 077; mkdir -p {ROOT}/v{ABI_VERSION}/7");
            shell(&topology, Side::Server, &line);
        }
        for failing in [false, true] {
            let command = if failing {
                "sleep 1.5; exit 3"
            } else {
                "sleep 1.5"
            };
            let options = [&OPTIONS[..], &["--on-failure", "keep"]].concat();
            let restart = start_restart(&topology, &options, &["sh", "-c", command]);
            gate(&topology, &["down"]);
            assert_eq!(exists(&topology, ROOT), other);
            gate(&topology, &["up", INTERFACE]);
            gate(&topology, &["hold", ENDPOINT, "--for", "30s"]);
            let output = restart.wait(LIMIT).unwrap();
            let code = if failing { 3 } else { 0 };
            assert_eq!(output.code(), code, "{other}: {output}");
            let told = "left as another command set it: 10.0.0.5:8080";
            assert!(output.stdout.contains(told), "{other}: {output}");
            assert!(
                !output.stdout.contains("still holding"),
                "{other}: {output}"
            );
            assert_eq!(mode(&topology, ENDPOINT), "hold", "{other}: {output}");
            gate(&topology, &["open", ENDPOINT]);
        }
        gate(&topology, &["down"]);
    }
}
