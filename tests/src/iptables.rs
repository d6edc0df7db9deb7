//! What people do without Gate: iptables drops the SYNs of new connections.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::exe;
use crate::topology::{Place, Topology};

/// The environment variable that names the iptables to use.
pub const IPTABLES: &str = "GATE_TEST_IPTABLES";
/// The environment variable with the folders of its libraries, if they are not where they belong.
pub const IPTABLES_LIBS: &str = "GATE_TEST_IPTABLES_LIBS";

/// How long iptables may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Rules in a topology.
pub struct Iptables<'a> {
    topology: &'a Topology,
    place: Place,
}

impl<'a> Iptables<'a> {
    /// Drops what opens a new connection to a port of this place, and nothing of the others.
    pub fn drop_new(topology: &'a Topology, place: impl Into<Place>, port: u16) -> Result<Self> {
        let rules = Self {
            topology,
            place: place.into(),
        };
        let port = port.to_string();
        rules.run("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
        rules.run(&format!(
            "-A INPUT -p tcp -m conntrack --ctstate NEW -m tcp --dport {port} -j DROP"
        ))?;
        Ok(rules)
    }

    /// Drops the SYNs that come in on an interface of this place for a port.
    pub fn drop_syns(
        topology: &'a Topology,
        place: impl Into<Place>,
        interface: &str,
        port: u16,
    ) -> Result<Self> {
        Self::judge_syns(topology, place, interface, port, "DROP")
    }

    /// Has a program at the queue `number` decide on them.
    pub fn queue_syns(
        topology: &'a Topology,
        place: impl Into<Place>,
        interface: &str,
        port: u16,
        number: u16,
    ) -> Result<Self> {
        let target = format!("NFQUEUE --queue-num {number}");
        Self::judge_syns(topology, place, interface, port, &target)
    }

    fn judge_syns(
        topology: &'a Topology,
        place: impl Into<Place>,
        interface: &str,
        port: u16,
        target: &str,
    ) -> Result<Self> {
        let rules = Self {
            topology,
            place: place.into(),
        };
        rules.run(&format!(
            "-A INPUT -i {interface} -p tcp -m tcp --dport {port} --syn -j {target}"
        ))?;
        Ok(rules)
    }

    /// The packets that the rules of `INPUT` met.
    pub fn packets(&self) -> Result<u64> {
        let list = self.run("-L INPUT -v -x -n")?;
        // Two lines of headings, then a rule a line, its packets first.
        let rules = list.lines().skip(2);
        Ok(rules
            .filter_map(|rule| rule.split_whitespace().next()?.parse::<u64>().ok())
            .sum())
    }

    /// Has what comes to port `from` of this place answered by port `to`.
    pub fn forward(
        topology: &'a Topology,
        place: impl Into<Place>,
        from: u16,
        to: u16,
    ) -> Result<()> {
        let place = place.into();
        let rule = format!("-p tcp -m tcp --dport {from} -j REDIRECT --to-ports {to}");
        Self { topology, place }.run(&format!("-t nat -A PREROUTING {rule}"))?;
        Ok(())
    }

    /// Removes what [`forward`](Self::forward) did. Connections that there are go on.
    pub fn stop_forwarding(topology: &'a Topology, place: impl Into<Place>) -> Result<()> {
        let place = place.into();
        Self { topology, place }.run("-t nat -F")?;
        Ok(())
    }

    /// Removes all rules.
    pub fn flush(self) -> Result<()> {
        self.run("-F")?;
        Ok(())
    }

    fn run(&self, words: &str) -> Result<String> {
        let mut command = Command::new(exe::foreign("iptables", IPTABLES)?);
        if let Some(folders) = std::env::var_os(IPTABLES_LIBS) {
            let extensions = std::env::split_paths(&folders)
                .map(|folder| folder.join("xtables"))
                .find(|folder| folder.is_dir())
                .unwrap_or_else(PathBuf::new);
            command
                .env("LD_LIBRARY_PATH", folders)
                .env("XTABLES_LIBDIR", extensions);
        }
        // The link's target is one program for several commands; its first word tells which.
        command.arg("iptables").args(words.split(' '));
        let output = self
            .topology
            .output(self.place.clone(), &mut command, LIMIT)?
            .ok()?;
        Ok(output.stdout)
    }
}
