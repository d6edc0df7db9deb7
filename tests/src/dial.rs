//! Many clients that connect at once and stay, each from another address. A process of its own,
//! because a process may not have as many files open as there are clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::backend::raise_file_limit;
use crate::text::parse_duration;
use crate::topology::MANY_CLIENTS;

/// The clients' command line.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where to
    #[arg(value_name = "ADDR:PORT")]
    pub target: SocketAddr,
    /// How many
    #[arg(long)]
    pub count: u32,
    /// The number of the first: each number has an address, in a /24 of its own
    #[arg(long, default_value_t = 0)]
    pub first: u32,
    /// How long one may take
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Files that a process has open anyway.
const SPARE: u64 = 64;

/// The most clients that one process may have.
pub fn most() -> Result<u32> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
    Ok(u32::try_from(hard.saturating_sub(SPARE)).unwrap_or(u32::MAX))
}

/// The time of `CLOCK_MONOTONIC`, in ns: the same for every process.
pub fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock_gettime")?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// Connects, and prints when the first and the last were connected ([`monotonic`]).
pub fn dial(options: &Options) -> Result<()> {
    raise_file_limit()?;
    ensure!(options.count > 0, "no clients");
    let (first, last) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?
        .block_on(connect_all(options))?;
    println!("{first} {last}");
    Ok(())
}

async fn connect_all(options: &Options) -> Result<(u64, u64)> {
    let (target, timeout) = (options.target, options.timeout);
    let mut clients = JoinSet::new();
    for index in 0..options.count {
        let own = SocketAddr::new(IpAddr::V4(source(options.first + index)), 0);
        clients.spawn(async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(own).with_context(|| format!("bind {own}"))?;
            let connected = tokio::time::timeout(timeout, socket.connect(target));
            let stream = connected.await.context("not connected in time")??;
            anyhow::Ok((stream, monotonic()?))
        });
    }
    let (mut streams, mut first, mut last) = (Vec::new(), u64::MAX, 0);
    while let Some(client) = clients.join_next().await {
        let (stream, end) = client.context("a client panicked")??;
        streams.push(stream);
        (first, last) = (first.min(end), last.max(end));
    }
    Ok((first, last))
}

/// The address of a client.
fn source(index: u32) -> Ipv4Addr {
    let ([first, ..], [_, _, high, low]) = (MANY_CLIENTS.0.octets(), index.to_be_bytes());
    Ipv4Addr::new(first, low, high, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_clients_share_a_network() {
        let networks: HashSet<[u8; 3]> = (0..65_536)
            .map(|index| {
                let [a, b, c, _] = source(index).octets();
                [a, b, c]
            })
            .collect();
        assert_eq!(networks.len(), 65_536);
    }
}
