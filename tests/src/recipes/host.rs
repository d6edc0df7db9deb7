//! Another host beside the proxy's, as a network namespace with a cable of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::Result;

use super::LIMIT;
use crate::topology::{Namespace, Side, Topology};

/// The port of each server.
const PORT: u16 = 8080;

/// A host that [`Side::Server`] reaches by the interface `app1`, `app2` and so on.
pub struct Host {
    /// Where it is.
    pub namespace: Namespace,
    /// Where its server listens.
    pub address: SocketAddr,
    /// The interface that leads to it.
    pub interface: String,
    number: u8,
}

impl Host {
    /// Makes host `number` and wires it.
    pub fn new(topology: &Topology, number: u8) -> Result<Self> {
        let namespace = topology.namespace()?;
        let (name, interface) = (namespace.name().to_owned(), format!("app{number}"));
        let line = format!(
            "ip link add {interface} type veth peer name eth0 netns {name} && \
             ip addr add 10.0.{number}.1/24 dev {interface} && ip link set {interface} up && \
             nsenter --net=/proc/{name}/ns/net sh -c \
             'ip addr add 10.0.{number}.5/24 dev eth0 && ip link set eth0 up'"
        );
        let mut shell = Command::new("sh");
        topology
            .output(Side::Server, shell.args(["-c", &line]), LIMIT)?
            .ok()?;
        Ok(Self {
            namespace,
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, number, 5)), PORT),
            interface,
            number,
        })
    }

    /// From then on it gets packets and answers none, as a host that hangs.
    pub fn silence(&self, topology: &Topology) -> Result<()> {
        let subnet = format!("10.0.{}.1/32", self.number);
        let mut ip = Command::new("ip");
        ip.args(["route", "add", "blackhole", &subnet]);
        topology.output(&self.namespace, &mut ip, LIMIT)?.ok()?;
        Ok(())
    }
}
