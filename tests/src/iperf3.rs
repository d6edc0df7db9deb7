//! iperf3: how many bytes a second get from one side to the other.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::topology::{Process, Side, Topology};
use crate::{exe, listener};

/// The environment variable that names the iperf3 to use.
pub const IPERF3: &str = "GATE_TEST_IPERF3";

/// What starting, connecting and ending may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A server at the topology's [`Side::Server`].
pub struct Iperf3<'a> {
    topology: &'a Topology,
    target: SocketAddr,
    _server: Process,
}

impl<'a> Iperf3<'a> {
    /// Starts it; returns when it listens on `target`.
    pub fn start(topology: &'a Topology, target: SocketAddr) -> Result<Self> {
        let mut command = program()?;
        command.args(["--server", "--port", &target.port().to_string()]);
        let server = topology.spawn(Side::Server, &mut command)?;
        topology
            .run(Side::Server, || listener::wait_until(target, true, LIMIT))
            .with_context(|| format!("start iperf3: {}", server.stderr().unwrap_or_default()))?;
        Ok(Self {
            topology,
            target,
            _server: server,
        })
    }

    /// Bits a second that come in over one connection from a client at `side`, or that the server
    /// sends it. Each end has a processor of its own, where there are two of them.
    pub fn measure(&self, side: Side, from_server: bool, seconds: u32) -> Result<f64> {
        let mut command = program()?;
        let (address, port) = (self.target.ip().to_string(), self.target.port().to_string());
        command.args(["--client", &address, "--port", &port, "--json"]);
        command.args(["--time", &seconds.to_string()]);
        if from_server {
            command.arg("--reverse");
        }
        if let [first, second, ..] = processors()?[..] {
            command.args(["--affinity", &format!("{first},{second}")]);
        }
        let limit = LIMIT + Duration::from_secs(seconds.into());
        let output = self.topology.output(side, &mut command, limit)?.ok()?;
        received(&output.stdout)
    }
}

/// The program, without words.
pub(crate) fn program() -> Result<Command> {
    exe::foreign_command("iperf3", IPERF3, None)
}

/// The processors that this process may run on.
pub fn processors() -> Result<Vec<usize>> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))
        .context("sched_getaffinity")?;
    let is_in = |processor: &usize| set.is_set(*processor).unwrap_or(false);
    Ok((0..nix::sched::CpuSet::count()).filter(is_in).collect())
}

/// What the receiver counted, from the client's report.
fn received(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).context("read iperf3's report")?;
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .filter(|bits| *bits > 0.0)
        .with_context(|| format!("iperf3 received nothing: {}", report["error"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receivers_count_is_read() {
        let report = r#"{ "end": { "sum_sent": { "bits_per_second": 9.0 },
                          "sum_received": { "bits_per_second": 8.5 } } }"#;
        assert_eq!(received(report).unwrap(), 8.5);
    }

    #[test]
    fn a_failure_is_told() {
        let error = received(r#"{ "end": {}, "error": "busy" }"#).unwrap_err();
        assert!(error.to_string().contains("busy"), "{error}");
        assert!(received("").is_err());
    }
}
