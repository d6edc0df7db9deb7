//! What the daemon says of its gates' health.

use serde_json::{Value, json};

use super::millis;
use crate::health::{CheckHealth, GateHealth, Sample};

/// The JSON of all that the checks say.
#[must_use]
pub fn health_json(gates: &[GateHealth]) -> Value {
    let gates: Vec<Value> = gates.iter().map(gate).collect();
    json!({ "gates": gates })
}

fn gate(gate: &GateHealth) -> Value {
    let checks: Vec<Value> = gate.checks.iter().map(check).collect();
    json!({
        "gate": gate.name.to_string(),
        "state": gate.health.name(),
        "since_ms": millis(gate.since),
        "checks": checks,
    })
}

fn check(check: &CheckHealth) -> Value {
    let sample =
        |sample: &Sample| json!({ "passed": sample.passed, "took_ms": millis(sample.took()) });
    let failure = check.last_failure.as_ref();
    json!({
        "check": check.check.to_string(),
        "state": check.health.name(),
        "since_ms": millis(check.since),
        "last": check.last.as_ref().map(sample),
        "last_ago_ms": check.last_ago.map(millis),
        "streak": check.streak,
        "last_failure": failure.map(|(why, _)| why),
        "last_failure_ago_ms": failure.map(|(_, ago)| millis(*ago)),
        "history": check.history.iter().map(sample).collect::<Vec<_>>(),
    })
}
