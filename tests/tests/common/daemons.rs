//! `gate daemon` in a topology.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gate_tests::exe;
use gate_tests::topology::{Process, Side, Topology};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{LIMIT, wait_until};

/// Where the API is, unless the configuration says otherwise.
pub const SOCKET: &str = "/run/gate/gate.sock";

/// The configuration of the tests' daemons.
pub const CONFIG: &str = "/run/gate.toml";

/// Writes a file of the topology.
#[track_caller]
pub fn write(topology: &Topology, path: &str, text: &str) {
    topology
        .run(Side::Server, || Ok(std::fs::write(path, text)?))
        .unwrap();
}

/// Starts a daemon with this configuration, and returns when it is ready.
#[track_caller]
pub fn start_daemon(topology: &Topology, config: &str) -> Process {
    write(topology, CONFIG, config);
    restart_daemon(topology)
}

/// As [`start_daemon`], with the configuration that is there.
#[track_caller]
pub fn restart_daemon(topology: &Topology) -> Process {
    let daemon = spawn_daemon(topology);
    wait_until("the daemon answers", || {
        let ended = daemon.has_ended().unwrap_or(true);
        assert!(!ended, "it ended: {}", daemon.stderr().unwrap_or_default());
        get(topology, "/v1").is_some()
    });
    daemon
}

/// Starts a daemon, whatever becomes of it.
#[track_caller]
pub fn spawn_daemon(topology: &Topology) -> Process {
    let mut command = Command::new(exe::gate().unwrap());
    command.args(["daemon", "--config", CONFIG, "--log", "debug"]);
    topology.spawn(Side::Server, &mut command).unwrap()
}

/// Ends a daemon, which must end well.
#[track_caller]
pub fn stop_daemon(daemon: &Process) {
    daemon.signal(Signal::SIGTERM).unwrap();
    let output = daemon.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
}

/// The answer to a GET; none where nobody answers.
pub fn get(topology: &Topology, path: &str) -> Option<(u16, Value)> {
    ask(topology, "GET", path, "")
}

/// The answer to a POST.
#[track_caller]
pub fn post(topology: &Topology, path: &str, body: &Value) -> (u16, Value) {
    ask(topology, "POST", path, &body.to_string()).expect("an answer")
}

fn ask(topology: &Topology, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = topology
        .run(Side::Server, || Ok(raw(&request).ok()))
        .unwrap()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((
        status,
        serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())),
    ))
}

/// What comes back for these bytes, until the other end closes.
fn raw(request: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(Path::new(SOCKET))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The state of a gate's health, as the API tells it.
#[track_caller]
pub fn health(topology: &Topology, gate: &str) -> String {
    let (_, fields) = get(topology, "/v1/health").expect("an answer");
    let gates = fields["gates"].as_array().cloned().unwrap_or_default();
    let own = gates.iter().find(|it| it["gate"] == gate);
    own.and_then(|it| it["state"].as_str())
        .unwrap_or("")
        .to_owned()
}
