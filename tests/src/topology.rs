//! A client and a server network namespace, joined by a veth pair, and as many more as a test asks
//! for, joined by nothing.
//!
//! The namespaces have no names and no bind mounts: file descriptors of this process hold them, and
//! a process namespace holds every process started in them. So all of it goes when the
//! [`Topology`] is dropped, and also when this process is killed.

mod ethtool;
mod namespaces;
mod place;
mod process;
mod wire;

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::exe;
pub use ethtool::Offload;
use namespaces::Namespaces;
pub use place::{Namespace, Place};
pub use process::{Output, Process, command};

/// The name of the only interface, besides `lo`, in either namespace.
pub const INTERFACE: &str = "eth0";
/// The client's IPv4 address; the prefix is 24 bits.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The server's IPv4 address; the prefix is 24 bits.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
/// The client's IPv6 address; the prefix is 64 bits.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// The server's IPv6 address; the prefix is 64 bits.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);
/// What clients of many networks come from, after [`Topology::route_many_clients`]: address and bits.
pub const MANY_CLIENTS: (Ipv4Addr, u8) = (Ipv4Addr::new(44, 0, 0, 0), 8);
/// A folder that every process of a topology and [`Topology::run`] share, and that nobody else
/// sees: in memory, gone with the topology.
pub const SCRATCH: &str = "/run";

/// The client's ports that tests choose; the kernel gives them to nobody.
const CHOSEN: &str = "8080-8090,20000-20199,30000-30099,40000-40099";

/// How long [`Topology::gate`] waits for the command.
const GATE_LIMIT: Duration = Duration::from_secs(60);

/// One end of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The namespace that connections come from.
    Client,
    /// The namespace with the backend and the gate.
    Server,
}

impl Side {
    /// This side's IPv4 address.
    pub fn v4(self) -> Ipv4Addr {
        match self {
            Self::Client => CLIENT_V4,
            Self::Server => SERVER_V4,
        }
    }

    /// This side's IPv6 address.
    pub fn v6(self) -> Ipv6Addr {
        match self {
            Self::Client => CLIENT_V6,
            Self::Server => SERVER_V6,
        }
    }

    /// The fixed MAC address of this side's [`INTERFACE`].
    pub fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.v4().octets()[3]]
    }

    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The server's address with `port`, IPv4.
pub fn server_v4(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(SERVER_V4), port)
}

/// The server's address with `port`, IPv6.
pub fn server_v6(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(SERVER_V6), port)
}

/// Two network namespaces joined by a veth pair, with a bpffs, a `/run` and a `/proc` of their own.
///
/// Dropping it kills every process started in it, daemons included, and waits until they are gone.
pub struct Topology {
    live: Arc<Live>,
}

/// What has to be ended, shared with [`end_all`].
struct Live {
    namespaces: Namespaces,
    /// Processes whose parent is this one: the process namespace can't end before they are reaped.
    children: Mutex<Vec<Arc<Mutex<Child>>>>,
}

/// Every topology of this process that is still up.
static LIVE: Mutex<Vec<Weak<Live>>> = Mutex::new(Vec::new());

impl Topology {
    /// Makes the namespaces, connects them, and returns when both addresses of both sides can be
    /// used. Needs root.
    pub fn new() -> Result<Self> {
        let namespaces = thread::spawn(namespaces::build)
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
            .context(
                "cannot make the lab's namespaces; run as root, \
                 in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN",
            )?;
        let live = Arc::new(Live {
            namespaces,
            children: Mutex::default(),
        });
        let mut all = lock(&LIVE);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&live));
        drop(all);
        let topology = Self { live };
        // Ten seconds of 2,000 connections a second, and no port used twice.
        topology.sysctl(Side::Client, "net.ipv4.ip_local_port_range", "1024 65535")?;
        topology.sysctl(Side::Client, "net.ipv4.ip_local_reserved_ports", CHOSEN)?;
        Ok(topology)
    }

    /// Runs `f` on a new thread inside `place`'s network namespace and the topology's mounts, and
    /// returns what it returns. A panic goes through to the caller.
    pub fn run<T: Send>(
        &self,
        place: impl Into<Place>,
        f: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let place = place.into();
        thread::scope(|scope| {
            thread::Builder::new()
                .name(place.to_string())
                .spawn_scoped(scope, || {
                    self.live.namespaces.enter(&place)?;
                    f()
                })
                .context("start a thread")?
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// As [`run`](Self::run), but returns at once; the thread's result is the handle's.
    pub fn start<T: Send + 'static>(
        &self,
        place: impl Into<Place>,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let live = Arc::clone(&self.live);
        let place = place.into();
        thread::Builder::new()
            .name(place.to_string())
            .spawn(move || {
                live.namespaces.enter(&place)?;
                // The thread is inside now; it must not keep the topology from ending.
                drop(live);
                f()
            })
            .context("start a thread")
    }

    /// Starts `command` inside `place`, in a process group of its own, with no input; what it writes
    /// is kept in memory for [`Process::wait`].
    pub fn spawn(&self, place: impl Into<Place>, command: &mut Command) -> Result<Process> {
        let place = place.into();
        // Held over the fork: `end` must see every child there is.
        let mut children = lock(&self.live.children);
        let process = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.live.namespaces.enter_as_process(&place)?;
                    Process::spawn(command)
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        children.push(process.child());
        Ok(process)
    }

    /// Runs `command` inside `place` until it ends. One that takes longer than `limit` is killed,
    /// and that is an error.
    pub fn output(
        &self,
        place: impl Into<Place>,
        command: &mut Command,
        limit: Duration,
    ) -> Result<Output> {
        self.spawn(place, command)?.wait(limit)
    }

    /// Starts `gate` with these arguments in the server namespace.
    pub fn spawn_gate<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Result<Process> {
        self.spawn(Side::Server, Command::new(exe::gate()?).args(args))
    }

    /// Runs `gate` with these arguments in the server namespace until it ends, for at most a
    /// minute.
    pub fn gate<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Result<Output> {
        self.spawn_gate(args)?.wait(GATE_LIMIT)
    }

    /// Makes another network namespace, with only `lo` in it, which is up.
    pub fn namespace(&self) -> Result<Namespace> {
        Namespace::new(self)
    }

    /// Sets a sysctl of `place`'s network namespace, for example `net.core.somaxconn`.
    pub fn sysctl(&self, place: impl Into<Place>, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name)?;
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.run(place, || {
            std::fs::write(&path, value).with_context(|| format!("write {value:?} to {path}"))
        })
    }

    /// Reads a sysctl of `side`'s network namespace, without the line's end.
    pub fn read_sysctl(&self, side: Side, name: &str) -> Result<String> {
        let path = sysctl_path(name)?;
        self.run(side, || {
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            Ok(text.trim_end().to_owned())
        })
    }

    /// Makes every address of [`MANY_CLIENTS`] one of the client's, so that connections come from as
    /// many networks as there are clients.
    pub fn route_many_clients(&self) -> Result<()> {
        self.run(Side::Client, wire::own_many)?;
        self.run(Side::Server, wire::reach_many)
    }

    /// Switches GRO on at `side`'s interface, and with it NAPI. What the other side sends by
    /// `XDP_TX` needs both that and an XDP program at `side`.
    pub fn enable_gro(&self, side: Side) -> Result<()> {
        self.run(side, || ethtool::enable_gro(INTERFACE))
    }

    /// Whether `side`'s interface does this.
    pub fn is_offloaded(&self, side: Side, offload: Offload) -> Result<bool> {
        self.run(side, || ethtool::is_on(INTERFACE, offload))
    }

    /// Removes a file of `side`'s, if it is there.
    pub fn remove(&self, side: Side, path: &Path) -> Result<()> {
        self.run(side, || match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        })
    }

    /// Kills every process of the topology and waits until they are gone. Dropping does the same.
    pub fn end(&self) {
        self.live.end();
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        self.live.end();
    }
}

impl Live {
    fn end(&self) {
        self.namespaces.kill();
        for child in lock(&self.children).drain(..) {
            // It has been killed with its namespace, so this can't take long, and an error can only
            // mean that it was reaped before.
            let _ = lock(&child).wait();
        }
        self.namespaces.reap();
    }
}

/// Ends every topology of this process; for use when a signal ends the process itself.
pub fn end_all() {
    for live in lock(&LIVE).drain(..).filter_map(|one| one.upgrade()) {
        live.end();
    }
}

/// Locks, also after a panic elsewhere: what is guarded here is a list of things to clean up.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sysctl_path(name: &str) -> Result<String> {
    if !name.starts_with("net.") {
        bail!("sysctl {name} belongs to the whole machine, not to a network namespace");
    }
    Ok(format!("/proc/sys/{}", name.replace('.', "/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_namespace_are_set() {
        assert_eq!(
            sysctl_path("net.core.somaxconn").unwrap(),
            "/proc/sys/net/core/somaxconn"
        );
        assert!(sysctl_path("kernel.panic").is_err());
    }

    #[test]
    fn sides_differ_in_every_address() {
        for side in [Side::Client, Side::Server] {
            assert_eq!(side.peer().peer(), side);
            assert_ne!(side.mac(), side.peer().mac());
            assert_ne!(side.v4(), side.peer().v4());
            assert_ne!(side.v6(), side.peer().v6());
        }
    }
}
