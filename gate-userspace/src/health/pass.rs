//! A check's connection, which passes a gate that its own restart closed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpSocket, TcpStream};

use crate::error::Error;
use crate::tables::Checks;

/// The table of the connections that pass.
#[derive(Clone)]
pub(super) struct Passes(Arc<Mutex<Checks>>);

impl Passes {
    pub(super) fn new(checks: Checks) -> Self {
        Self(Arc::new(Mutex::new(checks)))
    }

    /// Connects, past a closed gate.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let to = reached(to);
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.bind(source(to)?)?;
        self.checks().exempt(&socket).map_err(io::Error::other)?;
        let pass = Pass {
            passes: self,
            from: socket.local_addr()?,
            to,
        };
        pass.enter().map_err(io::Error::other)?;
        socket.connect(to).await
    }

    fn checks(&self) -> MutexGuard<'_, Checks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entry of one connection, for as long as it is being made.
struct Pass<'a> {
    passes: &'a Passes,
    from: SocketAddr,
    to: SocketAddr,
}

impl Pass<'_> {
    fn enter(&self) -> Result<(), Error> {
        self.passes.checks().enter(self.from, self.to)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.passes.checks().leave(self.from, self.to);
    }
}

/// The address that a connection really goes to: to the unspecified one it goes to loopback.
fn reached(to: SocketAddr) -> SocketAddr {
    let ip = match to.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, to.port())
}

/// The address from which this host connects to another, with any port.
fn source(to: SocketAddr) -> io::Result<SocketAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket looks up the route and sends nothing.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    let mut source = socket.local_addr()?;
    source.set_port(0);
    Ok(source)
}
