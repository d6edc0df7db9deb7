//! Resetting of connections: which, from which side, what both ends read, and what is left alone.
//! Needs root.

#[path = "flush/command.rs"]
mod command;
mod common;
#[path = "flush/idle.rs"]
mod idle;
#[path = "flush/library.rs"]
mod library;
#[path = "flush/proxy.rs"]
mod proxy;
#[path = "flush/rights.rs"]
mod rights;
#[path = "flush/spread.rs"]
mod spread;

use std::process::Command;
use std::time::Duration;

use common::LIMIT;
use gate_tests::exe;
use gate_tests::topology::{Process, Side, Topology};
use gate_userspace::endpoint::Endpoint;
use serde_json::Value;

/// For how long idle connections must have been so.
const IDLE: Duration = Duration::from_millis(300);

fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Starts `gate flush` on a side.
#[track_caller]
fn start(topology: &Topology, side: Side, args: &[&str]) -> Process {
    let mut command = Command::new(exe::gate().unwrap());
    let command = command.arg("flush").args(args);
    topology.spawn(side, command).unwrap()
}

/// Runs `gate flush`, which must end well; its JSON.
#[track_caller]
fn flush(topology: &Topology, side: Side, args: &[&str]) -> Value {
    let output = start(topology, side, args).wait(LIMIT).unwrap();
    assert_eq!((output.code(), &*output.stderr), (0, ""), "{output}");
    serde_json::from_str(&output.stdout).unwrap()
}

/// The counts that matter, of its JSON.
fn counts(fields: &Value) -> [u64; 5] {
    ["backend_side", "client_side", "connecting", "busy", "ended"]
        .map(|name| fields[name].as_u64().unwrap())
}
