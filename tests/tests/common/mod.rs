//! What the live tests of `gate` share: a server with the gate up, clients that wait for their
//! connections, and what `gate` said and did.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary compiles this anew and uses its own part of it"
)]

mod answers;
mod attached;
mod connected;
mod connections;
mod daemons;
mod faults;
mod refusing;
mod restarts;
mod tc;
mod verbs;

use std::ffi::OsStr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use gate_common::abi::Counter;
use gate_tests::exe;
use gate_tests::topology::{INTERFACE, Output, Place, Process, Side, Topology};
use gate_userspace::attach::NO_TCX;
use gate_userspace::gates::Target;
use gate_userspace::interfaces;
use gate_userspace::pins::Pins;
use gate_userspace::status::{self, GateStatus, Status};

pub use answers::*;
pub use attached::*;
pub use connected::*;
pub use connections::*;
pub use daemons::*;
pub use faults::*;
pub use refusing::*;
pub use restarts::*;
pub use tc::*;
pub use verbs::*;

/// For what must come sooner or later.
pub const LIMIT: Duration = Duration::from_secs(40);
pub const MS: Duration = Duration::from_millis(1);
/// The port of every backend here.
pub const PORT: u16 = 8080;
/// The endpoint that most tests close.
pub const ENDPOINT: &str = "10.0.0.5:8080";
/// A connection that took less than this was not made by a retransmission, which comes after 1 s.
pub const BEFORE_RETRANSMISSION: Duration = Duration::from_millis(900);
/// The root of gate's pins.
pub const ROOT: &str = "/sys/fs/bpf/gate";

/// A topology with the gate up at the server's interface.
pub fn up() -> Topology {
    let topology = Topology::new().unwrap();
    topology.gate(["up", INTERFACE]).unwrap().ok().unwrap();
    topology
}

/// Runs `gate`, which must exit with 0 and complain of nothing.
#[track_caller]
pub fn gate<S: AsRef<OsStr>>(topology: &Topology, args: &[S]) -> Output {
    let output = topology.gate(args).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(output.stderr, "", "{output}");
    output
}

/// Starts `gate` on a side.
#[track_caller]
pub fn start_gate(topology: &Topology, side: Side, args: &[&str]) -> Process {
    let mut command = Command::new(exe::gate().unwrap());
    topology.spawn(side, command.args(args)).unwrap()
}

/// Runs `gate` on a side, however it ends.
#[track_caller]
pub fn run_gate(topology: &Topology, side: Side, args: &[&str]) -> Output {
    start_gate(topology, side, args).wait(LIMIT).unwrap()
}

/// As [`gate`], as if the kernel had no TCX: it attaches by filters.
#[track_caller]
pub fn gate_by_filters<S: AsRef<OsStr>>(topology: &Topology, args: &[S]) -> Output {
    let output = try_by_filters(topology, args);
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(output.stderr, "", "{output}");
    output
}

/// As [`gate_by_filters`], however it ends.
#[track_caller]
pub fn try_by_filters<S: AsRef<OsStr>>(topology: &Topology, args: &[S]) -> Output {
    let mut command = Command::new(exe::gate().unwrap());
    command.args(args).env(NO_TCX, "1");
    topology.output(Side::Server, &mut command, LIMIT).unwrap()
}

/// Runs `gate`, which must fail with this code and one line that has all of these words, print
/// nothing else, and change nothing.
#[track_caller]
pub fn refused<S: AsRef<OsStr>>(topology: &Topology, args: &[S], code: i32, words: &[&str]) {
    let before = snapshot(topology);
    let output = topology.gate(args).unwrap();
    assert_refusal(&output, code, words);
    assert_eq!(snapshot(topology), before, "{output}");
}

/// One line on stderr with all of these words, nothing on stdout, and this exit code.
#[track_caller]
pub fn assert_refusal(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code(), code, "{output}");
    assert_eq!(output.stdout, "", "{output}");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
    assert_complaint(output, words);
}

/// The last line on stderr is gate's, and has all of these words.
#[track_caller]
pub fn assert_complaint(output: &Output, words: &[&str]) {
    assert!(output.stderr.ends_with('\n'), "{output}");
    let line = output.stderr.lines().next_back().unwrap_or_default();
    assert!(line.starts_with("gate: "), "{output}");
    for word in words {
        assert!(line.contains(word), "no {word:?} in: {output}");
    }
}

/// Runs a shell line, which must exit with 0, and returns what it printed.
#[track_caller]
pub fn shell(topology: &Topology, place: impl Into<Place>, line: &str) -> String {
    let mut command = Command::new("sh");
    topology
        .output(place, command.args(["-c", line]), LIMIT)
        .unwrap()
        .ok()
        .unwrap()
        .stdout
}

/// All that `gate` can change: the pins, what is attached, and the gates' modes.
pub fn snapshot(topology: &Topology) -> String {
    let line = "find /sys/fs/bpf -mindepth 1 ! -name '*.debug' -printf '%P %y %m %U %i\\n' | sort";
    let pins = shell(topology, Side::Server, line);
    let interfaces: String = topology
        .run(Side::Server, || Ok(interfaces::list()?))
        .unwrap()
        .iter()
        .map(|interface| format!("{} {:?}\n", interface.name, interface.xdp))
        .collect();
    let gates: String = match topology.run(Side::Server, || Ok(status::read(&Pins::here()?)?)) {
        Ok(Some(status)) => status
            .gates
            .iter()
            .map(|gate| format!("{} {:?} {}\n", gate.gate, gate.mode, gate.waiting.held))
            .collect(),
        Ok(None) => "not up".to_owned(),
        Err(error) => error.to_string(),
    };
    pins + &interfaces + &gates
}

/// The status, read by the library: faster than a process.
#[track_caller]
pub fn status(topology: &Topology) -> Status {
    topology
        .run(Side::Server, || Ok(status::read(&Pins::here()?)?))
        .unwrap()
        .expect("the gate is up")
}

/// The status of one gate, by its name or its endpoint; none where there is none.
#[track_caller]
pub fn find_gate(topology: &Topology, target: &str) -> Option<GateStatus> {
    let target: Target = target.parse().unwrap();
    let is_it = |gate: &GateStatus| gate.gate.to_string() == target.to_string();
    status(topology).gates.into_iter().find(is_it)
}

/// The status of one gate, which must be there.
#[track_caller]
pub fn gate_status(topology: &Topology, endpoint: &str) -> GateStatus {
    find_gate(topology, endpoint).expect("the gate is defined")
}

/// The word for a gate's mode now.
#[track_caller]
pub fn mode(topology: &Topology, endpoint: &str) -> &'static str {
    gate_status(topology, endpoint).mode.name()
}

/// One of a gate's counters.
#[track_caller]
pub fn count(topology: &Topology, endpoint: &str, counter: Counter) -> u64 {
    gate_status(topology, endpoint).stats.counts[counter as usize]
}

/// Waits until this many SYNs are held.
#[track_caller]
pub fn wait_until_held(topology: &Topology, endpoint: &str, held: usize) {
    wait_until("all SYNs are held", || {
        gate_status(topology, endpoint).waiting.held == held
    });
}

/// Waits until a counter has come to this, or more.
#[track_caller]
pub fn wait_until_counted(topology: &Topology, endpoint: &str, counter: Counter, least: u64) {
    wait_until("all SYNs are counted", || {
        count(topology, endpoint, counter) >= least
    });
}

#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = Instant::now() + LIMIT;
    while !is_so() {
        assert!(
            Instant::now() < late,
            "waited {LIMIT:?} in vain until {what}"
        );
        sleep(MS * 5);
    }
}

/// Waits until the kernel has noticed the carrier of a bridge's port at the server, and of the bridge:
/// before that their queues drop all.
#[track_caller]
pub fn wait_until_forwarding(topology: &Topology, port: &str, bridge: &str) {
    wait_until("the bridge forwards", || {
        let is_up = |interface| {
            let line = format!("ip link show {interface}");
            shell(topology, Side::Server, &line).contains(" state UP ")
        };
        is_up(port) && is_up(bridge)
    });
}

/// How many processes of the topology have a command line that begins with this, the program's
/// folder left out.
#[track_caller]
pub fn running(topology: &Topology, words: &str) -> usize {
    let line = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done 2>/dev/null";
    let begins = |line: &&str| {
        let program = line.split(' ').next().unwrap_or_default();
        let folder = program.rfind('/').map_or(0, |slash| slash + 1);
        line[folder..].starts_with(words)
    };
    shell(topology, Side::Server, line)
        .lines()
        .filter(begins)
        .count()
}
