//! What `gate` can be told, and what it answers.

use std::path::{Path, PathBuf};
use std::process::Command;

use gate_tests::exe;
use gate_tests::topology::{INTERFACE, Output, SCRATCH, Side, Topology};
use serde_json::Value;

use super::{ENDPOINT, LIMIT};

/// Every verb, as it would be used.
pub const VERBS: [&[&str]; 10] = [
    &["up", INTERFACE],
    &["down"],
    &["hold", ENDPOINT],
    &["drop", ENDPOINT],
    &["reject", ENDPOINT],
    &["open", ENDPOINT],
    &["guard", ENDPOINT],
    &["status"],
    &["restart", ENDPOINT, "--", "true"],
    &["log"],
];

/// The verbs that close a gate or open it.
pub const CHANGES: [&[&str]; 6] = [
    &["hold", ENDPOINT],
    &["drop", ENDPOINT],
    &["reject", ENDPOINT],
    &["open", ENDPOINT],
    &["guard", ENDPOINT],
    &["restart", ENDPOINT, "--", "true"],
];

/// A shell line in the server namespace, `gate` being "$0".
pub fn with_gate(topology: &Topology, line: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(exe::gate().unwrap());
    topology.output(Side::Server, &mut command, LIMIT).unwrap()
}

/// What was printed, which must be one line of JSON.
#[track_caller]
pub fn json(output: &Output) -> Value {
    let value: Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("{error} in the JSON of {output}"));
    assert_eq!(value["version"], 2, "{output}");
    assert_eq!(output.stdout.lines().count(), 1, "{output}");
    value
}

/// Whether the server namespace sees something at this path.
pub fn exists(topology: &Topology, path: &str) -> bool {
    topology
        .run(Side::Server, || Ok(Path::new(path).exists()))
        .unwrap()
}

/// Makes the binary reachable for every user: the build's folder need not be.
pub fn public_gate(topology: &Topology) -> PathBuf {
    let path = Path::new(SCRATCH).join("gate");
    let line = format!("touch {0} && mount --bind \"$0\" {0}", path.display());
    with_gate(topology, &line).ok().unwrap();
    path
}
