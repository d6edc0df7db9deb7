//! From a host and a port to a connection.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::CheckFailure;
use super::pass::Passes;

/// The most look-ups of names under way in this process. Each has a thread, and nothing can end it
/// before the resolver gives up.
static LOOK_UPS: Semaphore = Semaphore::const_new(64);

type LookUp = JoinHandle<io::Result<Vec<SocketAddr>>>;

/// Where a check connects to.
#[derive(Clone)]
pub(super) enum Target {
    /// An address.
    Address(SocketAddr),
    /// A name, which is looked up each time.
    Name {
        host: Arc<str>,
        port: u16,
        /// The look-up that an earlier check has begun and not seen the end of: no other is begun
        /// before it ends.
        under_way: Arc<Mutex<Option<LookUp>>>,
    },
}

impl Target {
    /// A URL's IPv6 address has brackets.
    pub fn new(host: &str, port: u16) -> Self {
        let host = unbracketed(host);
        match host.parse::<IpAddr>() {
            Ok(address) => Self::Address(SocketAddr::new(address, port)),
            Err(_) => Self::Name {
                host: host.into(),
                port,
                under_way: Arc::default(),
            },
        }
    }

    /// All addresses, each once, in the resolver's order.
    ///
    /// # Errors
    /// The resolver's.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, CheckFailure> {
        let (host, port, under_way) = match self {
            Self::Address(address) => return Ok(vec![*address]),
            Self::Name {
                host,
                port,
                under_way,
            } => (host, *port, under_way),
        };
        let mut under_way = under_way.lock().await;
        let look_up = match &mut *under_way {
            Some(look_up) => look_up,
            None => {
                let permit = LOOK_UPS.acquire().await.map_err(io::Error::other)?;
                let host = Arc::clone(host);
                under_way.insert(tokio::task::spawn_blocking(move || {
                    let found = (&*host, port).to_socket_addrs();
                    drop(permit);
                    Ok(found?.collect())
                }))
            }
        };
        let found = look_up.await;
        *under_way = None;
        let refuse = |why: String| CheckFailure::Resolve {
            host: host.to_string(),
            why,
        };
        let found = found.map_err(|error| refuse(error.to_string()))?;
        let found = found.map_err(|error| {
            let text = error.to_string();
            let why = text.strip_prefix("failed to lookup address information: ");
            refuse(why.unwrap_or(&text).to_owned())
        })?;
        let mut addresses = Vec::<SocketAddr>::new();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        match addresses.is_empty() {
            true => Err(refuse("the name has no address".to_owned())),
            false => Ok(addresses),
        }
    }
}

/// A URL's host as it is looked up and verified.
pub(super) fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// Connects to the first address that answers. Each gets its part of the time that is left, so a dead
/// one leaves time for those after it.
///
/// # Errors
/// The last address's.
pub(super) async fn any(
    addresses: &[SocketAddr],
    passes: Option<&Passes>,
    deadline: Instant,
) -> Result<Connection, CheckFailure> {
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let mut last = None;
    for address in addresses {
        let connecting = async {
            match passes {
                Some(passes) => passes.connect(*address).await,
                None => Connection::make(socket(*address)?, *address).await,
            }
        };
        // The last one has all of the rest; the check's own timeout ends it.
        let connected = match left {
            0 | 1 => connecting.await,
            _ => {
                let part = deadline.saturating_duration_since(Instant::now()) / left;
                let timed = timeout(part, connecting).await;
                timed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
        };
        match connected {
            Ok(connection) => return Ok(connection),
            Err(source) => last = Some((*address, source)),
        }
        left = left.saturating_sub(1);
    }
    Err(match last {
        Some((last, source)) if addresses.len() > 1 => CheckFailure::Addresses {
            last,
            count: addresses.len(),
            source,
        },
        Some((_, source)) => CheckFailure::Connect(source),
        None => CheckFailure::Connect(io::ErrorKind::NotFound.into()),
    })
}

/// A socket for a connection to this address, which doesn't block.
pub(super) fn socket(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::STREAM.nonblocking().cloexec(),
        None,
    )?;
    // The handshake's last packet waits for what comes next, be it a request or a reset (tcp(7)): one
    // packet less, and the peer's process is woken once, or not at all.
    socket.set_tcp_quickack(false)?;
    Ok(socket)
}

/// A connection that the peer's kernel has accepted.
pub(super) enum Connection {
    /// Made at once; the runtime doesn't know it.
    AtOnce(Socket),
    /// Waited for.
    InTime(TcpStream),
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn make(socket: Socket, to: SocketAddr) -> io::Result<Self> {
        match socket.connect(&to.into()) {
            Ok(()) => return Ok(Self::AtOnce(socket)),
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) => return Err(error),
        }
        // Over loopback and veth the answer is there when connect(2) returns.
        let mut answered = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut answered, PollTimeout::ZERO)? > 0 {
            return match socket.take_error()? {
                Some(error) => Err(error),
                None => Ok(Self::AtOnce(socket)),
            };
        }
        let stream = TcpStream::from_std(socket.into())?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(Self::InTime(stream)),
        }
    }

    /// The connection, to talk over.
    ///
    /// # Errors
    /// The kernel's.
    pub fn talk(self) -> io::Result<TcpStream> {
        match self {
            Self::AtOnce(socket) => TcpStream::from_std(socket.into()),
            Self::InTime(stream) => Ok(stream),
        }
    }

    /// Ends the connection by a reset: before the handshake's last packet, so that the peer's process
    /// never sees it, and no port is kept in TIME_WAIT. (HAProxy's TCP checks end like that.)
    ///
    /// # Errors
    /// The kernel's.
    pub fn reset(self) -> io::Result<()> {
        let now = Some(Duration::ZERO);
        match self {
            Self::AtOnce(socket) => socket.set_linger(now),
            Self::InTime(stream) => SockRef::from(&stream).set_linger(now),
        }
    }
}
