//! A restart whose pins are out of reach, or gone, does with its own all that it has to do. What it says
//! then: faults_system.rs. Needs root.

mod common;

use std::ffi::OsString;
use std::time::Duration;

use common::{
    ENDPOINT, LIMIT, ROOT, TARGET, assert_connects_at_once, gate, held_client, shell,
    start_restart, up,
};
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::Side;

/// A backend that the gate is handed over to.
const BACKEND: &str = "127.0.0.1:8082";

/// Nothing listens for so long.
const OUTAGE: Duration = Duration::from_secs(1);

/// The time of such a restart, and what a busy machine takes besides; less than a client's third SYN
/// comes after its first.
const RESTARTED: Duration = Duration::from_millis(2_800);

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
    let took = client.finish_connected();
    assert!(took < RESTARTED, "{took:?}, {output}");
    assert_connects_at_once(&topology, TARGET);
    shell(&topology, Side::Server, "umount /sys/fs/bpf");
    gate(&topology, &["down"]);
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
        let restart = start_restart(&topology, &OPTIONS, &["sleep", "1"]);
        let client = held_client(&topology, ENDPOINT, TARGET);
        let line = format!("set -- {ROOT}/v[1-9]*/{gone}; test -e $1 && rm -r $1");
        shell(&topology, Side::Server, &line);
        let output = restart.wait(LIMIT).unwrap();
        let told = "1 connection held, now released";
        assert!(output.stdout.contains(told), "{gone}: {output}");
        let took = client.finish_connected();
        assert!(took < RESTARTED, "{gone}: {took:?}, {output}");
        assert_connects_at_once(&topology, TARGET);
        gate(&topology, &["down"]);
    }
}
