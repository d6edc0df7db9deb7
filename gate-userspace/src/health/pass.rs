//! A check's connection, which passes closed gates that let checks pass.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpSocket, TcpStream};

use crate::error::Error;
use crate::pins::Pins;
use crate::tables::Checks;

/// The table of the connections that pass.
#[derive(Clone)]
pub struct Passes(Arc<Mutex<Source>>);

struct Source {
    /// The table, and the inode of its pin.
    open: Option<(Checks, u64)>,
    /// Where it is found anew; none where it stays.
    pins: Option<Pins>,
}

impl Passes {
    /// Every connection is entered into this table.
    #[must_use]
    pub fn always(checks: Checks) -> Self {
        Self(Arc::new(Mutex::new(Source {
            open: Some((checks, 0)),
            pins: None,
        })))
    }

    /// Connections are entered into the table that these pins have at the time, where a gate is closed
    /// or guarded.
    #[must_use]
    pub fn following(pins: Pins) -> Self {
        Self(Arc::new(Mutex::new(Source {
            open: None,
            pins: Some(pins),
        })))
    }

    /// Connects, past a closed gate.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        if self.source().needed().is_none() {
            return TcpStream::connect(to).await;
        }
        let to = reached(to);
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.bind(source(to)?)?;
        let _pass = self.enter(&socket, to).map_err(io::Error::other)?;
        socket.connect(to).await
    }

    fn enter(&self, socket: &TcpSocket, to: SocketAddr) -> Result<Pass<'_>, Error> {
        let from = socket
            .local_addr()
            .map_err(Error::call("getsockname of", "a check"))?;
        if let Some((checks, _)) = &mut self.source().open {
            checks.exempt(socket)?;
            checks.enter(from, to)?;
        }
        Ok(Pass {
            passes: self,
            from,
            to,
        })
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// The table, where a connection may need it. What can't be opened is as if it was not there: a
    /// check tells of the backend, not of the pins.
    fn needed(&mut self) -> Option<&mut Checks> {
        let Some(pins) = &self.pins else {
            return self.open.as_mut().map(|(checks, _)| checks);
        };
        // Each pin has an inode of its own, also where `gate up` pins the same name again.
        let Ok(pin) = std::fs::metadata(pins.map("CHECKS")) else {
            self.open = None;
            return None;
        };
        if self
            .open
            .as_ref()
            .is_none_or(|(_, inode)| *inode != pin.ino())
        {
            self.open = match Checks::open(pins) {
                Ok(checks) => Some((checks, pin.ino())),
                Err(error) => {
                    log::debug!("checks do not pass closed gates: {error}");
                    None
                }
            };
        }
        let checks = self.open.as_mut().map(|(checks, _)| checks);
        checks.filter(|checks| checks.are_needed())
    }
}

/// The entry of one connection, for as long as it is being made.
struct Pass<'a> {
    passes: &'a Passes,
    from: SocketAddr,
    to: SocketAddr,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some((checks, _)) = &mut self.passes.source().open {
            checks.leave(self.from, self.to);
        }
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
