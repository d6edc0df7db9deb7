//! Two members behind mod_proxy_balancer with persistent connections, and one of them dies.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::host::Host;
use crate::apache::Apache;
use crate::load::{Load, Outcome, Request};
use crate::nginx::Nginx;
use crate::summary::Summary;
use crate::topology::{SCRATCH, Side, Topology, server_v4};

/// Where the balancer listens.
const PORT: u16 = 8000;
/// The size of `/slow` in bytes, which takes about a second.
const SLOW: usize = 12 * 1024;
/// From the load's start to the member's death.
const CALM: Duration = Duration::from_millis(1_000);
/// From the death to what is done about it.
const NOTICED: Duration = Duration::from_millis(500);
/// From then to the load's end.
const REST: Duration = Duration::from_millis(1_500);

/// How a member dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Its processes by SIGKILL.
    Killed,
    /// Its host takes packets and answers none.
    Silent,
}

/// How long the balancer tries to connect to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// As long as it waits for an answer, which is Apache's default: a minute or more.
    Default,
    /// `connectiontimeout=200ms`.
    Short,
}

/// What is done about its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    Nothing,
    /// `gate flush`.
    Flush,
    /// `gate reject`, so that new connections fail at once, then `gate flush`.
    RejectAndFlush,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Aftermath {
    /// What the clients saw.
    pub summary: Summary,
    /// Requests lost that were due before anything was done.
    pub lost_before: usize,
    /// Those that were due after it.
    pub lost_after: usize,
    /// The longest that a request took, lost or not.
    pub longest: Duration,
    /// The longest among those that were due after something was done.
    pub longest_after: Duration,
    /// Connections of the balancer to the dead member before anything was done, established or not.
    pub connections_before: usize,
    /// As many 100 ms after it.
    pub connections_after: usize,
}

/// One death under load. A client gives up after `patience`.
pub fn run(
    death: Death,
    connect: Connect,
    how: How,
    rate: u32,
    patience: Duration,
) -> Result<Aftermath> {
    let topology = Topology::new()?;
    let hosts = [Host::new(&topology, 1)?, Host::new(&topology, 2)?];
    let members = [member(&topology, &hosts[0])?, member(&topology, &hosts[1])?];
    let listen = server_v4(PORT);
    let more = configuration(hosts.each_ref().map(|host| host.address), connect);
    let _balancer = Apache::start(&topology, Side::Server, "balancer", listen, &more)?;
    if how == How::RejectAndFlush {
        topology
            .gate(["up", "--hook", "tc-egress", &hosts[0].interface])?
            .ok()?;
    }
    let load = Load {
        timeout: patience,
        paths: &["/", "/", "/", "/slow"],
        ..Load::new(listen, rate, CALM + NOTICED + REST)
    };
    let load = load.start(&topology)?;
    let begin = load.begin();
    sleep((begin + CALM).saturating_duration_since(Instant::now()));
    match death {
        Death::Killed => members[0].kill()?,
        Death::Silent => hosts[0].silence(&topology)?,
    }
    sleep((begin + CALM + NOTICED).saturating_duration_since(Instant::now()));
    let dead = hosts[0].address;
    let connections_before = connections(&topology, dead)?;
    act(&topology, how, dead)?;
    let done = begin.elapsed();
    sleep(Duration::from_millis(100));
    let connections_after = connections(&topology, dead)?;
    let requests = load.finish()?;
    let (before, after): (Vec<Request>, Vec<Request>) =
        requests.iter().partition(|request| request.at < done);
    let lost = |requests: &[Request]| {
        let failed = |request: &&Request| request.outcome != Outcome::Ok;
        requests.iter().filter(failed).count()
    };
    let longest = |requests: &[Request]| {
        let latencies = requests.iter().map(|request| request.latency);
        latencies.max().unwrap_or_default()
    };
    Ok(Aftermath {
        summary: Summary::new(&requests, Duration::ZERO),
        lost_before: lost(&before),
        lost_after: lost(&after),
        longest: longest(&requests),
        longest_after: longest(&after),
        connections_before,
        connections_after,
    })
}

fn member<'a>(topology: &'a Topology, host: &Host) -> Result<Nginx<'a>> {
    let http = format!(
        "    server {{\n        \
             listen {} backlog=4096;\n        \
             location / {{ return 200 \"ok\\n\"; }}\n        \
             location = /slow {{ root {SCRATCH}; limit_rate 10k; }}\n    \
         }}\n",
        host.address,
    );
    topology.run(&host.namespace, || {
        let page = Path::new(SCRATCH).join("slow");
        std::fs::write(&page, "x".repeat(SLOW)).with_context(|| format!("write {}", page.display()))
    })?;
    let place = &host.namespace;
    Nginx::start_with(topology, place, &host.interface, host.address, &http)
}

fn configuration(members: [SocketAddr; 2], connect: Connect) -> String {
    let option = match connect {
        Connect::Default => "",
        Connect::Short => " connectiontimeout=200ms",
    };
    let members: String = (1..)
        .zip(members)
        .map(|(route, address)| format!("BalancerMember http://{address} route={route}{option}\n"))
        .collect();
    format!(
        "<Proxy balancer://myapp>\n\
         {members}\
         ProxySet lbmethod=byrequests\n\
         </Proxy>\n\
         ProxyPass / balancer://myapp/\n"
    )
}

fn act(topology: &Topology, how: How, dead: SocketAddr) -> Result<()> {
    let dead = dead.to_string();
    match how {
        How::Nothing => {}
        How::Flush => drop(topology.gate(["flush", &dead])?.ok()?),
        How::RejectAndFlush => {
            topology.gate(["reject", &dead, "--for", "60s"])?.ok()?;
            topology.gate(["flush", &dead])?.ok()?;
        }
    }
    Ok(())
}

/// The connections from the balancer's host to this address, established or being made.
fn connections(topology: &Topology, to: SocketAddr) -> Result<usize> {
    let table = topology.run(Side::Server, || {
        Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")?)
    })?;
    let SocketAddr::V4(to) = to else {
        return Ok(0);
    };
    let address = u32::from_ne_bytes(to.ip().octets());
    let wanted = format!("{address:08X}:{:04X}", to.port());
    count(&table, &wanted).context("read /proc/net/tcp")
}

/// ESTABLISHED (01) and SYN_SENT (02) to this address in a table of the kernel's.
fn count(table: &str, remote: &str) -> Option<usize> {
    let mut count = 0;
    for line in table.lines().skip(1) {
        let mut words = line.split_whitespace().skip(2);
        let (address, state) = (words.next()?, words.next()?);
        if address == remote && matches!(state, "01" | "02") {
            count += 1;
        }
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_their_other_end() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
             0: 0100000A:1F90 0501000A:1F90 01 00000000:00000000\n   \
             1: 0100000A:1F91 0501000A:1F90 02 00000000:00000000\n   \
             2: 0100000A:1F92 0501000A:1F90 06 00000000:00000000\n   \
             3: 0501000A:1F90 0100000A:1F92 01 00000000:00000000\n";
        assert_eq!(count(table, "0501000A:1F90"), Some(2));
    }
}
