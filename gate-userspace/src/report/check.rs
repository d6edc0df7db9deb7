//! What `gate check` says.

use serde_json::{Value, json};

use super::count;
use crate::config::{Config, ConfigError};

/// The line of `gate check`.
#[must_use]
pub fn checked(config: &Config) -> String {
    let (gates, endpoints, checks) = counts(config);
    format!(
        "the configuration is right: {}, {}, {}\n",
        count(gates, "gate"),
        count(endpoints, "endpoint"),
        count(checks, "health check")
    )
}

/// The JSON of `gate check`.
#[must_use]
pub fn checked_json(config: &Config) -> Value {
    let (gates, endpoints, checks) = counts(config);
    json!({ "gates": gates, "endpoints": endpoints, "checks": checks })
}

fn counts(config: &Config) -> (usize, usize, usize) {
    let gates = config.gates.values();
    (
        config.gates.len(),
        gates.clone().map(|it| it.endpoints.len()).sum(),
        gates.map(|it| it.checks.len()).sum(),
    )
}

/// What is wrong with a configuration, for machines.
#[must_use]
pub fn config_problems(error: &ConfigError) -> Value {
    let problem = |it: &crate::config::Problem| {
        json!({
            "file": it.file.to_string_lossy(),
            "line": it.position.map(|at| at.line),
            "column": it.position.map(|at| at.column),
            "text": it.text,
        })
    };
    error.problems.iter().map(problem).collect()
}
