//! A check's connection, which passes closed gates that let checks pass.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::connect::{Connection, socket};
use crate::pins::Pins;
use crate::tables::Checks;

/// The table of the connections that pass.
#[derive(Clone)]
pub struct Passes(Arc<Mutex<Source>>);

/// For so long it is not looked again whether connections must be entered: for those that begin
/// together once.
const LOOK: Duration = Duration::from_millis(1);

struct Source {
    /// When it was looked whether connections must be entered, and whether they must.
    looked: Option<(Instant, bool)>,
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
            looked: None,
            open: Some((checks, 0)),
            pins: None,
        })))
    }

    /// Connections are entered into the table that these pins have at the time, where a gate is closed
    /// or guarded.
    #[must_use]
    pub fn following(pins: Pins) -> Self {
        Self(Arc::new(Mutex::new(Source {
            looked: None,
            open: None,
            pins: Some(pins),
        })))
    }

    /// Connects, past a closed gate.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn connect(&self, to: SocketAddr) -> io::Result<Connection> {
        if !self.source().is_needed() {
            return Connection::make(socket(to)?, to).await;
        }
        let to = reached(to);
        let socket = socket(to)?;
        socket.bind(&source(to)?.into())?;
        let _pass = self.enter(&socket, to)?;
        Connection::make(socket, to).await
    }

    fn enter(&self, socket: &Socket, to: SocketAddr) -> io::Result<Pass<'_>> {
        let from = socket.local_addr()?.as_socket().unwrap_or(to);
        if let Some((checks, _)) = &mut self.source().open {
            checks.exempt(socket).map_err(io::Error::other)?;
            checks.enter(from, to).map_err(io::Error::other)?;
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
    /// Whether a connection may need an entry. What can't be opened is as if it was not there: a check
    /// tells of the backend, not of the pins.
    fn is_needed(&mut self) -> bool {
        let Some(pins) = &self.pins else {
            return true;
        };
        let now = Instant::now();
        if let Some((at, needed)) = self.looked
            && now.duration_since(at) < LOOK
        {
            return needed;
        }
        // Each pin has an inode of its own, also where `gate up` pins the same name again.
        let inode = std::fs::metadata(pins.map("CHECKS"))
            .ok()
            .map(|it| it.ino());
        let known = self.open.as_ref().map(|(_, inode)| *inode);
        if inode != known {
            self.open = inode.and_then(|inode| match Checks::open(pins) {
                Ok(checks) => Some((checks, inode)),
                Err(error) => {
                    log::debug!("checks do not pass closed gates: {error}");
                    None
                }
            });
        }
        let needed = self
            .open
            .as_ref()
            .is_some_and(|(checks, _)| checks.are_needed());
        self.looked = Some((now, needed));
        needed
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
