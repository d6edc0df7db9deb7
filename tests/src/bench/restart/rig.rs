//! The ways to restart a backend that are compared: each is a value of [`ALL`], and how it is set up.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::firewall::{Chain, Drop, Queue};
use super::gates::{self, Guard, Hold};
use super::proxy::{Maxconn, Retries};
use super::shaper::{Plug, Starved, no_plug};
use super::sockets::{Inherited, Paused};
use crate::haproxy::Release;
use crate::listener::Gap;
use crate::service::Service;
use crate::topology::{self, Side, Topology, server_v4};
use crate::{backend, listener};

/// The backend's port.
pub const PORT: u16 = 8080;
/// The time that the backend takes for a request.
pub const SERVICE_TIME: Duration = Duration::from_millis(5);
/// What a step may take beyond the outage.
pub const LIMIT: Duration = Duration::from_secs(30);
/// A backlog that keeps all that come in ten seconds of 2,000 a second.
pub const DEEP: u32 = 65_535;

/// A way to restart a backend.
pub struct Rig {
    /// Its name on the command line and in the figures.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// What becomes of a request that is due while the backend is away.
    pub claim: Claim,
    /// What has to be changed for it: the application, the path, the clients.
    pub needs: &'static str,
    /// Why this machine can't have it, if it can't.
    pub absent: fn(&Topology) -> Result<Option<String>>,
    /// Sets it up in a topology, with a backend that serves. It is torn down with the topology.
    pub set_up: for<'a> fn(&'a Topology) -> Result<Box<dyn Way + 'a>>,
}

/// What becomes of a request that is due while the backend is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is refused.
    Refused,
    /// It is answered by a retransmission or a retry, a second later.
    Retried,
    /// It is answered as soon as the backend is back.
    Kept,
    /// It fails, though not by the backend's refusal.
    Broken,
}

/// A way, set up.
pub trait Way {
    /// Where clients connect to.
    fn target(&self) -> SocketAddr {
        server_v4(PORT)
    }

    /// Restarts the backend so that it is away for `outage`, and returns when all that the way asks
    /// for is done. Where its listener never closes, when it did not serve.
    fn restart(&mut self, outage: Duration) -> Result<Option<Gap>>;

    /// How many packets it kept from the backend, by its own count, where it has one.
    fn kept(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// What else is to be told of it.
    fn remark(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// What closes and opens the way to a backend that is restarted by its own command.
pub trait Valve {
    /// Where clients connect to.
    fn target(&self) -> SocketAddr {
        server_v4(PORT)
    }

    /// From now on new connections don't reach the backend.
    fn close(&mut self) -> Result<()>;

    /// They reach it again, and it is told, or finds out, that it serves.
    fn open(&mut self) -> Result<()>;

    /// As [`Way::kept`].
    fn kept(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// As [`Way::remark`].
    fn remark(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// The backend of every way, which listens with a deep backlog.
pub fn backend() -> backend::Options {
    backend::Options {
        backlog: DEEP,
        service_time: SERVICE_TIME,
        ..backend::Options::new(server_v4(PORT))
    }
}

/// A way that closes, restarts the backend, waits until it listens, and opens.
pub struct Valved<'a, V> {
    /// Where.
    pub topology: &'a Topology,
    /// The backend.
    pub service: Service,
    /// What closes and opens.
    pub valve: V,
}

impl<'a, V: Valve + 'a> Valved<'a, V> {
    /// Starts the backend beside a valve.
    pub fn boxed(topology: &'a Topology, valve: V) -> Result<Box<dyn Way + 'a>> {
        let service = Service::start(topology, backend())?;
        Ok(Box::new(Self {
            topology,
            service,
            valve,
        }))
    }
}

impl<V: Valve> Way for Valved<'_, V> {
    fn target(&self) -> SocketAddr {
        self.valve.target()
    }

    fn restart(&mut self, outage: Duration) -> Result<Option<Gap>> {
        self.valve.close()?;
        bounce(self.topology, &self.service, outage)?;
        wait_for_listener(self.topology)?;
        self.valve.open()?;
        Ok(None)
    }

    fn kept(&self) -> Result<Option<u64>> {
        self.valve.kept()
    }

    fn remark(&self) -> Result<Option<String>> {
        self.valve.remark()
    }
}

/// No valve.
struct Nothing;

impl Valve for Nothing {
    fn close(&mut self) -> Result<()> {
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Restarts the backend by its command; returns when the new one is started.
pub fn bounce(topology: &Topology, service: &Service, outage: Duration) -> Result<()> {
    let mut command = topology::command(&service.restart_command(outage)?);
    topology
        .output(Side::Server, &mut command, outage + LIMIT)?
        .ok()?;
    Ok(())
}

/// Waits until the backend listens: no way waits for more, nor does an open socket.
pub fn wait_for_listener(topology: &Topology) -> Result<()> {
    topology.run(Side::Server, || {
        listener::wait_until(server_v4(PORT), true, LIMIT).map(drop)
    })
}

/// Every kernel that gate runs on has it.
fn never(_: &Topology) -> Result<Option<String>> {
    Ok(None)
}

/// All ways, in the order of the tables. The listening socket that never closes is the floor.
pub const ALL: &[Rig] = &[
    Rig {
        name: "nothing",
        title: "nothing",
        claim: Claim::Refused,
        needs: "-",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Nothing),
    },
    Rig {
        name: "iptables",
        title: "iptables drops SYNs",
        claim: Claim::Retried,
        needs: "-",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Drop::new(topology)),
    },
    Rig {
        name: "nft",
        title: "nft drops SYNs, input hook",
        claim: Claim::Retried,
        needs: "-",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Chain::input(topology)?),
    },
    Rig {
        name: "nft-netdev",
        title: "nft drops SYNs, netdev ingress",
        claim: Claim::Retried,
        needs: "-",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Chain::ingress(topology)?),
    },
    Rig {
        name: "nfqueue",
        title: "NFQUEUE holds SYNs",
        claim: Claim::Kept,
        needs: "a program at the queue",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Queue::new(topology)?),
    },
    Rig {
        name: "plug",
        title: "tc plug holds SYNs",
        claim: Claim::Kept,
        needs: "root on the clients' host",
        absent: no_plug,
        set_up: |topology| Valved::boxed(topology, Plug::new(topology)?),
    },
    Rig {
        name: "starved",
        title: "tc starves SYNs (HTB, TBF)",
        claim: Claim::Kept,
        needs: "root on the clients' host",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Starved::new(topology)?),
    },
    Rig {
        name: "haproxy2-maxconn",
        title: "HAProxy 2.6, maxconn 0",
        claim: Claim::Broken,
        needs: "a proxy in the path",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Maxconn::new(topology, Release::System)?),
    },
    Rig {
        name: "haproxy3-maxconn",
        title: "HAProxy 3.0, maxconn 0",
        claim: Claim::Kept,
        needs: "a proxy in the path",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Maxconn::new(topology, Release::Three)?),
    },
    Rig {
        name: "haproxy-retries",
        title: "HAProxy 2.6, retries",
        claim: Claim::Retried,
        needs: "a proxy in the path",
        absent: never,
        set_up: |topology| Valved::boxed(topology, Retries::new(topology)?),
    },
    Rig {
        name: "sigstop",
        title: "SIGSTOP, SIGCONT",
        claim: Claim::Kept,
        needs: "the same process goes on",
        absent: never,
        set_up: |topology| Paused::boxed(topology),
    },
    Rig {
        name: "socket-128",
        title: "open socket, backlog 128",
        claim: Claim::Kept,
        needs: "a backend that inherits its socket",
        absent: never,
        set_up: |topology| Inherited::boxed(topology, 128),
    },
    Rig {
        name: FLOOR,
        title: "open socket, backlog 65,535",
        claim: Claim::Kept,
        needs: "a backend that inherits its socket",
        absent: never,
        set_up: |topology| Inherited::boxed(topology, DEEP),
    },
    Rig {
        name: "gate-drop",
        title: "gate drop",
        claim: Claim::Retried,
        needs: "-",
        absent: never,
        set_up: |topology| Valved::boxed(topology, gates::Drop::new(topology)?),
    },
    Rig {
        name: HOLD,
        title: "gate restart (hold)",
        claim: Claim::Kept,
        needs: "-",
        absent: never,
        set_up: |topology| Hold::boxed(topology),
    },
    Rig {
        name: "gate-guard",
        title: "gate guard",
        claim: Claim::Retried,
        needs: "-",
        absent: never,
        set_up: |topology| Guard::boxed(topology, gates::Watched::No),
    },
    Rig {
        name: "gate-watch",
        title: "gate guard --watch",
        claim: Claim::Kept,
        needs: "-",
        absent: never,
        set_up: |topology| Guard::boxed(topology, gates::Watched::Yes),
    },
];

/// The way that costs least of all: the listening socket stays.
pub const FLOOR: &str = "socket";
/// The way that is to cost hardly more.
pub const HOLD: &str = "gate-hold";

/// The way of this name.
pub fn find(name: &str) -> Result<&'static Rig, String> {
    let names = || {
        ALL.iter()
            .map(|rig| rig.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found = ALL.iter().find(|rig| rig.name == name);
    found.ok_or_else(|| format!("no way {name:?}; there are {}", names()))
}
