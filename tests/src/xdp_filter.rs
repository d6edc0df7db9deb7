//! What people do without Gate where XDP must drop: xdp-filter, of the xdp-tools.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::exe;
use crate::topology::{Output, Side, Topology};

/// The environment variable that names the xdp-filter to use.
pub const XDP_FILTER: &str = "GATE_TEST_XDP_FILTER";

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Attaches it to an interface of the server's, in the driver or in the stack, with one port that it
/// drops all TCP packets to.
pub fn drop_port(topology: &Topology, interface: &str, is_generic: bool, port: u16) -> Result<()> {
    let mode = if is_generic { "skb" } else { "native" };
    let load = ["load", interface, "-m", mode, "-f", "tcp", "-p", "allow"];
    run(topology, &load)?;
    run(
        topology,
        &["port", &port.to_string(), "-m", "dst", "-p", "tcp"],
    )?;
    Ok(())
}

/// The packets that it has dropped for a port.
pub fn dropped(topology: &Topology, port: u16) -> Result<u64> {
    // Its exit code means nothing.
    hits(&run(topology, &["status"])?.stdout, port)
}

fn run(topology: &Topology, words: &[&str]) -> Result<Output> {
    topology.output(Side::Server, program()?.args(words), LIMIT)
}

/// The program, without words.
pub(crate) fn program() -> Result<Command> {
    let objects = ("bpf", "LIBXDP_OBJECT_PATH");
    exe::foreign_command("xdp-filter", XDP_FILTER, Some(objects))
}

/// From the line of the port: number, mode, hits.
fn hits(status: &str, port: u16) -> Result<u64> {
    let port = port.to_string();
    let line = status.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == port).then(|| words.last())?
    });
    let hits = line.with_context(|| format!("xdp-filter has no port {port}"))?;
    hits.parse().context("read xdp-filter's counter")
}

#[cfg(test)]
mod tests {
    use super::hits;

    #[test]
    fn the_ports_counter_is_read() {
        let status = "\
Filtered ports:
                                           Mode             Hit counter
  8080                                     dst,tcp          42
  80                                       dst,tcp          7
";
        assert_eq!(hits(status, 80).unwrap(), 7);
        assert_eq!(hits(status, 8080).unwrap(), 42);
        assert!(hits(status, 81).is_err());
    }
}
