//! Traffic control on the clients' host: SYNs wait there, in a queue of their own.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::rig::{PORT, Valve};
use crate::topology::{INTERFACE, Output, Side, Topology, server_v4};

/// How long `tc` may take.
const LIMIT: Duration = Duration::from_secs(10);
/// A port on which nothing listens.
const NOBODY: u16 = 9;
/// How long its refusal is waited for.
const REFUSAL: Duration = Duration::from_millis(20);
/// Room for the SYNs and their retransmissions, in bytes.
const ROOM: u32 = 200_000_000;
/// The queue of the SYNs.
const QUEUE: &str = "parent 1:20 handle 20:";

/// The clients' interface, where SYNs to the backend go through a queue of their own.
struct Shaper<'a>(&'a Topology);

impl<'a> Shaper<'a> {
    /// Makes the classes, and puts a queue of this kind before the SYNs.
    fn new(topology: &'a Topology, kind: &str) -> Result<Self> {
        let shaper = Self(topology);
        for line in [
            "qdisc add dev eth0 root handle 1: htb default 10",
            "class add dev eth0 parent 1: classid 1:10 htb rate 100gbit quantum 60000",
            "class add dev eth0 parent 1: classid 1:20 htb rate 100gbit quantum 60000",
        ] {
            shaper.run(line)?;
        }
        shaper.queue("add", kind)?;
        for port in [PORT, NOBODY] {
            // The flags of a TCP header behind an IPv4 header without options: SYN, and not ACK.
            shaper.run(&format!(
                "filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip protocol 6 0xff \
                 match ip dport {port} 0xffff match u8 0x02 0x12 at 33 flowid 1:20"
            ))?;
        }
        Ok(shaper)
    }

    fn queue(&self, verb: &str, kind: &str) -> Result<()> {
        self.run(&format!("qdisc {verb} dev eth0 {QUEUE} {kind}"))?;
        Ok(())
    }

    /// How many packets wait.
    fn waiting(&self) -> Result<u64> {
        let text = self.run("-s qdisc show dev eth0 parent 1:20")?;
        let mut words = text.stdout.split_whitespace();
        words
            .find(|word| *word == "backlog")
            .and_then(|_| words.nth(1)?.strip_suffix('p')?.parse().ok())
            .with_context(|| format!("no backlog in {}", text.stdout))
    }

    fn run(&self, line: &str) -> Result<Output> {
        tc(self.0, line)?.ok()
    }
}

/// Runs `tc` on the clients' side.
fn tc(topology: &Topology, line: &str) -> Result<Output> {
    let words = line.split_whitespace();
    let words = words.map(|word| if word == "eth0" { INTERFACE } else { word });
    topology.output(Side::Client, Command::new("tc").args(words), LIMIT)
}

/// `sch_plug`: a queue that holds what comes, until it is told to let it go.
pub struct Plug<'a> {
    shaper: Shaper<'a>,
    kept: u64,
}

impl<'a> Plug<'a> {
    pub fn new(topology: &'a Topology) -> Result<Self> {
        let shaper = Shaper::new(topology, &format!("plug limit {ROOM}"))?;
        // It begins plugged.
        shaper.queue("change", "plug release_indefinite")?;
        Ok(Self { shaper, kept: 0 })
    }
}

/// Why `plug` is not there, if it isn't: asked of the kernel.
pub fn no_plug(topology: &Topology) -> Result<Option<String>> {
    let output = tc(topology, "qdisc add dev lo root plug")?;
    if output.code() == 0 {
        tc(topology, "qdisc del dev lo root")?.ok()?;
        return Ok(None);
    }
    if !output.stderr.contains("kind is unknown") {
        bail!("{output}");
    }
    Ok(Some("this kernel has no sch_plug".to_owned()))
}

impl Valve for Plug<'_> {
    fn close(&mut self) -> Result<()> {
        self.shaper.queue("change", "plug block")
    }

    fn open(&mut self) -> Result<()> {
        self.kept += self.shaper.waiting()?;
        self.shaper.queue("change", "plug release_indefinite")
    }

    fn kept(&self) -> Result<Option<u64>> {
        Ok(Some(self.kept))
    }
}

/// A token bucket that hardly fills stands in for `plug`.
pub struct Starved<'a> {
    shaper: Shaper<'a>,
    kept: u64,
}

impl<'a> Starved<'a> {
    pub fn new(topology: &'a Topology) -> Result<Self> {
        let shaper = Shaper::new(topology, &Self::open_bucket())?;
        Ok(Self { shaper, kept: 0 })
    }

    fn open_bucket() -> String {
        format!("tbf rate 10gbit burst 10mb limit {ROOM}")
    }
}

impl Valve for Starved<'_> {
    fn close(&mut self) -> Result<()> {
        // A byte a second, beginning with a bucket that is full.
        let bucket = format!("tbf rate 8bit burst 100 limit {ROOM}");
        self.shaper.queue("change", &bucket)?;
        // One SYN empties it. Its port refuses it.
        self.shaper.0.run(Side::Client, || {
            let _refused = TcpStream::connect_timeout(&server_v4(NOBODY), REFUSAL);
            Ok(())
        })
    }

    fn open(&mut self) -> Result<()> {
        self.kept += self.shaper.waiting()?;
        self.shaper.queue("change", &Self::open_bucket())
    }

    fn kept(&self) -> Result<Option<u64>> {
        Ok(Some(self.kept))
    }
}
