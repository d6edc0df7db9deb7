//! Which socket of this network namespace a flow meets, by sock_diag's exact look-up.
//!
//! The kernel looks as it would for a packet of the flow: connections first, then the listener
//! that gets its SYN, with all that this takes into account (exact before any address, both
//! families on one socket, `SO_REUSEPORT`, `SO_BINDTODEVICE`, `sk_lookup` programs). A look-up
//! costs one step in a hash, where a dump walks all connections of the host.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN, TCP_SYN_RECV,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink;

/// Requests in one system call: their answers, some 1 KiB each in the kernel's books, must fit
/// the socket's buffer (208 KiB by default).
const BATCH: usize = 64;

/// Any socket, whatever its cookie (`INET_DIAG_NOCOOKIE`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// The two ends of a connection, as its backend's host sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The backend's address and port.
    pub local: SocketAddr,
    /// The client's.
    pub remote: SocketAddr,
    /// The interface that the client's packets come in on.
    pub ifindex: u32,
}

/// A listening socket's accept queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Connections that wait to be accepted.
    pub queued: u32,
    /// How many may (`listen(2)`, capped by `net.core.somaxconn`).
    pub backlog: u32,
}

/// A socket's identity for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie(pub [u8; 8]);

/// What a flow meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// No connection; this listener would get its SYN.
    Listener(Cookie, Queue),
    /// Its handshake is under way.
    Handshake,
    /// A connection, or what is left of one.
    Connection,
    /// No socket.
    Nothing,
}

/// A way to ask the kernel, in the network namespace of the thread that opened it.
pub struct Lookup {
    socket: Socket,
    sequence: u32,
}

impl Lookup {
    /// Opens it.
    ///
    /// # Errors
    /// Those of the socket calls.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// What each of these flows meets, in their order.
    ///
    /// # Errors
    /// Those of the socket calls, and where the kernel can't tell.
    pub fn meet(&mut self, flows: &[Ends]) -> io::Result<Vec<Met>> {
        let mut met = Vec::with_capacity(flows.len());
        for flows in flows.chunks(BATCH) {
            self.ask(flows, &mut met)?;
        }
        Ok(met)
    }

    /// Which listener gets the SYN of each of these flows. Where an old connection is in the way,
    /// which a new SYN may replace, it is that of another client.
    ///
    /// # Errors
    /// As [`meet`](Self::meet).
    pub fn listeners(&mut self, flows: &[Ends]) -> io::Result<Vec<Option<(Cookie, Queue)>>> {
        let mut met = self.meet(flows)?;
        let is_old = |met: &Met| matches!(met, Met::Handshake | Met::Connection);
        let old: Vec<usize> = (0..met.len()).filter(|at| is_old(&met[*at])).collect();
        let nobody = |at: &usize| {
            let mut ends = flows[*at];
            ends.remote.set_port(0);
            ends
        };
        let others = self.meet(&old.iter().map(nobody).collect::<Vec<_>>())?;
        for (at, other) in old.into_iter().zip(others) {
            met[at] = other;
        }
        let listener = |met: Met| match met {
            Met::Listener(cookie, queue) => Some((cookie, queue)),
            Met::Handshake | Met::Connection | Met::Nothing => None,
        };
        Ok(met.into_iter().map(listener).collect())
    }

    fn ask(&mut self, flows: &[Ends], met: &mut Vec<Met>) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for ends in flows {
            self.sequence = self.sequence.wrapping_add(1);
            let mut request = NetlinkMessage::new(NetlinkHeader::default(), question(ends).into());
            request.header.flags = NLM_F_REQUEST;
            request.header.sequence_number = self.sequence;
            request.finalize();
            let start = bytes.len();
            bytes.resize(start + request.buffer_len(), 0);
            request.serialize(&mut bytes[start..]);
        }
        // The kernel answers during the call, each with a datagram of its own.
        self.socket.send(&bytes, 0)?;
        let mut datagram = Vec::with_capacity(1024);
        let mut sequence = first;
        for _ in flows {
            loop {
                datagram.clear();
                self.socket.recv(&mut datagram, libc::MSG_DONTWAIT)?;
                let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&datagram)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                // One of an earlier call that failed half-way is passed over.
                if answer.header.sequence_number == sequence {
                    met.push(read(answer.payload)?);
                    break;
                }
            }
            sequence = sequence.wrapping_add(1);
        }
        Ok(())
    }
}

fn question(ends: &Ends) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: match ends.local {
            SocketAddr::V4(_) => AF_INET,
            SocketAddr::V6(_) => AF_INET6,
        },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: ends.local.port(),
            destination_port: ends.remote.port(),
            source_address: ends.local.ip(),
            destination_address: ends.remote.ip(),
            interface_id: ends.ifindex,
            cookie: ANY_COOKIE,
        },
    })
}

fn read(answer: NetlinkPayload<SockDiagMessage>) -> io::Result<Met> {
    match answer {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
            let header = socket.header;
            Ok(match header.state {
                TCP_LISTEN => Met::Listener(
                    Cookie(header.socket_id.cookie),
                    Queue {
                        queued: header.recv_queue,
                        backlog: header.send_queue,
                    },
                ),
                TCP_SYN_RECV => Met::Handshake,
                _ => Met::Connection,
            })
        }
        NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => Ok(Met::Nothing),
        NetlinkPayload::Error(error) => Err(netlink::refusal(&error)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
