//! What people do without Gate: iptables drops the SYNs of new connections.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::exe;
use crate::topology::{Place, Topology};

/// The environment variable that names the iptables to use.
pub const IPTABLES: &str = "GATE_TEST_IPTABLES";

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

    /// Adds rules, each in the command's own words.
    pub fn add(topology: &'a Topology, place: impl Into<Place>, rules: &[&str]) -> Result<Self> {
        let place = place.into();
        let all = Self { topology, place };
        for rule in rules {
            all.run(rule)?;
        }
        Ok(all)
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

    /// The packets that the rules of a chain which end in this target have counted.
    pub fn packets(
        topology: &'a Topology,
        place: impl Into<Place>,
        chain: &str,
        target: &str,
    ) -> Result<u64> {
        let place = place.into();
        let listed = Self { topology, place }.run(&format!("-nvxL {chain}"))?;
        Ok(counted(&listed, target))
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
        let nat = Self { topology, place };
        nat.run(&format!("-t nat -A PREROUTING {rule}")).map(drop)
    }

    /// Removes what [`forward`](Self::forward) did. Connections that there are go on.
    pub fn stop_forwarding(topology: &'a Topology, place: impl Into<Place>) -> Result<()> {
        let place = place.into();
        Self { topology, place }.run("-t nat -F").map(drop)
    }

    /// Removes all rules.
    pub fn flush(self) -> Result<()> {
        self.run("-F").map(drop)
    }

    fn run(&self, words: &str) -> Result<String> {
        let mut command = program()?;
        command.args(words.split(' '));
        let output = self
            .topology
            .output(self.place.clone(), &mut command, LIMIT)?
            .ok()?;
        Ok(output.stdout)
    }
}

/// The program, without rules.
pub(crate) fn program() -> Result<Command> {
    let extensions = ("xtables", "XTABLES_LIBDIR");
    let mut command = exe::foreign_command("iptables", IPTABLES, Some(extensions))?;
    // The link's target is one program for several commands; its first word tells which.
    command.arg("iptables");
    Ok(command)
}

/// The sum of the first column (packets) of the lines whose third (target) is this.
fn counted(listed: &str, target: &str) -> u64 {
    let rules = listed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let packets = words.next()?.parse::<u64>().ok()?;
        (words.nth(1)? == target).then_some(packets)
    });
    rules.sum()
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn only_the_targets_rules_are_counted() {
        let listed = "\
Chain INPUT (policy ACCEPT 7 packets, 9 bytes)
    pkts      bytes target     prot opt in     out     source               destination
      40       2400 DROP       6    --  *      *       0.0.0.0/0            0.0.0.0/0
       9        900 ACCEPT     0    --  *      *       0.0.0.0/0            0.0.0.0/0
       2        120 DROP       6    --  *      *       0.0.0.0/0            0.0.0.0/0
";
        assert_eq!(counted(listed, "DROP"), 42);
        assert_eq!(counted(listed, "REJECT"), 0);
    }
}
