//! Looks at a socket again, and destroys it (`SOCK_DESTROY`, Linux 4.5).

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::socket::{Name, Socket};
use crate::endpoint::Endpoint;
use crate::netlink::Channel;

/// Looks at sockets and destroys them, in the network namespace in which it was made.
pub struct Destroyer {
    looks: Channel,
    destroys: Channel,
}

impl Destroyer {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            looks: Channel::open(NETLINK_SOCK_DIAG)?,
            destroys: Channel::open(NETLINK_SOCK_DIAG)?,
        })
    }

    /// A socket as it is at this moment; none when it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self, name: &Name) -> io::Result<Option<Socket>> {
        let answers = match self.looks.ask(request(name)) {
            Err(error) if has_ended(&error) => return Ok(None),
            answers => answers?,
        };
        let socket = answers.iter().find_map(|answer| match answer {
            SockDiagMessage::InetResponse(answer) => Socket::read(answer),
            _ => None,
        });
        Ok(socket.filter(Socket::is_open))
    }

    /// Destroys a socket: its owner reads `ECONNABORTED`, the peer is sent a reset. False when it
    /// has ended by itself.
    ///
    /// The kernel looks up the four ends, and where that connection has gone finds the listener, or
    /// a new connection of the same ends. The cookie doesn't fit those, so they are left alone.
    ///
    /// # Errors
    /// The kernel's; `EPERM` without `CAP_NET_ADMIN` in the network namespace's user namespace.
    pub fn destroy(&mut self, name: &Name) -> io::Result<bool> {
        match self.destroys.ask(SockDiagDestroy::new(request(name))) {
            Err(error) if has_ended(&error) => Ok(false),
            answers => answers.map(|_| true),
        }
    }
}

/// Whether the kernel can destroy TCP sockets (`CONFIG_INET_DIAG_DESTROY`): asked for one that can't
/// be, it looks for it or doesn't know the request.
///
/// # Errors
/// The kernel's, where it tells neither, and where it has no sock_diag for TCP.
pub fn can_destroy() -> io::Result<bool> {
    // Without sock_diag the answer would be ENOENT, too.
    super::listeners(Endpoint {
        address: None,
        port: 1,
    })?;
    let nowhere = Name {
        family: AF_INET,
        id: SocketId {
            source_port: 0,
            destination_port: 0,
            // TEST-NET-1 (RFC 5737): nothing has it, and nothing listens on port 0.
            source_address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            destination_address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
            interface_id: 0,
            cookie: [0; 8],
        },
    };
    let mut channel = Channel::open(NETLINK_SOCK_DIAG)?;
    match channel.ask(SockDiagDestroy::new(request(&nowhere))) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESTALE) => Ok(true),
            Some(libc::EOPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

fn request(name: &Name) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: name.family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id: name.id.clone(),
    })
}

/// `ENOENT`: nothing has these ends. `ESTALE`: something else has them. `EOPNOTSUPP`: it is in
/// `TIME_WAIT`, which older kernels answer so.
fn has_ended(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESTALE | libc::EOPNOTSUPP)
    )
}
