//! Netfilter: rules that drop SYNs, and a queue that holds them.

use anyhow::{Context, Result};

use super::rig::{PORT, Valve};
use crate::iptables::Iptables;
use crate::nfqueue::Holder;
use crate::nft;
use crate::topology::{INTERFACE, Side, Topology};

/// An iptables rule in `INPUT`, for as long as it is closed.
pub struct Drop<'a> {
    topology: &'a Topology,
    rule: Option<Iptables<'a>>,
    kept: u64,
}

impl<'a> Drop<'a> {
    pub fn new(topology: &'a Topology) -> Self {
        Self {
            topology,
            rule: None,
            kept: 0,
        }
    }
}

impl Valve for Drop<'_> {
    fn close(&mut self) -> Result<()> {
        let rule = Iptables::drop_syns(self.topology, Side::Server, INTERFACE, PORT)?;
        self.rule = Some(rule);
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        let rule = self.rule.take().context("it is open")?;
        self.kept += Iptables::packets(self.topology, Side::Server, "INPUT", "DROP")?;
        rule.flush()
    }

    fn kept(&self) -> Result<Option<u64>> {
        Ok(Some(self.kept))
    }
}

/// What tells a SYN to the backend, in nft's language.
fn syn() -> String {
    format!("tcp dport {PORT} tcp flags & (fin|syn|rst|ack) == syn")
}

/// A chain of nft's with one rule, which is there for as long as it is closed.
pub struct Chain<'a> {
    topology: &'a Topology,
    /// The family, table and chain.
    name: &'static str,
    rule: String,
}

impl<'a> Chain<'a> {
    /// Makes the table `rig` of a family and in it an empty chain and a counter.
    fn new(
        topology: &'a Topology,
        family: &str,
        name: &'static str,
        hook: &str,
        rule: String,
    ) -> Result<Self> {
        let table = format!(
            "table {family} rig {{\n  counter kept {{}}\n  \
             chain syns {{ type filter hook {hook}; policy accept; }}\n}}"
        );
        nft::load(topology, Side::Server, &table)?;
        Ok(Self {
            topology,
            name,
            rule,
        })
    }

    /// At the input hook.
    pub fn input(topology: &'a Topology) -> Result<Self> {
        let rule = format!("iifname \"{INTERFACE}\" {} counter name kept drop", syn());
        let hook = "input priority 0";
        Self::new(topology, "inet", "inet rig syns", hook, rule)
    }

    /// At the interface's ingress hook.
    pub fn ingress(topology: &'a Topology) -> Result<Self> {
        let rule = format!("{} counter name kept drop", syn());
        let hook = format!("ingress device \"{INTERFACE}\" priority 0");
        Self::new(topology, "netdev", "netdev rig syns", &hook, rule)
    }
}

impl Valve for Chain<'_> {
    fn close(&mut self) -> Result<()> {
        let rule = format!("add rule {} {}", self.name, self.rule);
        nft::load(self.topology, Side::Server, &rule)
    }

    fn open(&mut self) -> Result<()> {
        let flush = format!("flush chain {}", self.name);
        nft::load(self.topology, Side::Server, &flush)
    }

    fn kept(&self) -> Result<Option<u64>> {
        let counters = nft::counters(self.topology, Side::Server)?;
        Ok(counters.get("kept").copied())
    }
}

/// The queue's number.
const NUMBER: u16 = 7;

/// An iptables rule that queues SYNs to a program, which holds them. The rule stays when the program
/// lets them go: without it those would be lost.
pub struct Queue<'a> {
    topology: &'a Topology,
    holder: Holder,
}

impl<'a> Queue<'a> {
    pub fn new(topology: &'a Topology) -> Result<Self> {
        let holder = Holder::start(topology, Side::Server, NUMBER)?;
        Ok(Self { topology, holder })
    }
}

impl Valve for Queue<'_> {
    fn close(&mut self) -> Result<()> {
        self.holder.hold();
        Iptables::queue_syns(self.topology, Side::Server, INTERFACE, PORT, NUMBER).map(drop)
    }

    fn open(&mut self) -> Result<()> {
        self.holder.release()
    }

    fn kept(&self) -> Result<Option<u64>> {
        Ok(Some(self.holder.held()))
    }
}
