//! One TCP socket of a connection, as sock_diag shows it.

use std::mem::offset_of;
use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_sock_diag::constants::{
    TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_SYN_SENT,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{InetResponse, SocketId, StateFlags};

use super::served;
use crate::endpoint::Endpoint;

/// The states of TCP (RFC 9293) in which a process can still have something to lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A SYN was sent and not answered. Not a connection yet.
    SynSent,
    /// Neither side has closed.
    Established,
    /// This side has sent its last byte, which may not be acknowledged yet.
    FinWait1,
    /// This side has sent its last byte, and the other has it.
    FinWait2,
    /// The other side has sent its last byte.
    CloseWait,
}

impl State {
    /// All of them, as sock_diag asks for them.
    pub(super) const FLAGS: StateFlags = StateFlags::SYN_SENT
        .union(StateFlags::ESTABLISHED)
        .union(StateFlags::FIN_WAIT1)
        .union(StateFlags::FIN_WAIT2)
        .union(StateFlags::CLOSE_WAIT);

    fn of(number: u8) -> Option<Self> {
        match number {
            TCP_SYN_SENT => Some(Self::SynSent),
            TCP_ESTABLISHED => Some(Self::Established),
            TCP_FIN_WAIT1 => Some(Self::FinWait1),
            TCP_FIN_WAIT2 => Some(Self::FinWait2),
            TCP_CLOSE_WAIT => Some(Self::CloseWait),
            _ => None,
        }
    }

    /// Its name, as RFC 9293 writes it, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::Established => "established",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::CloseWait => "close-wait",
        }
    }
}

/// What the kernel calls a socket: with its cookie no other one is ever meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub(super) family: u8,
    pub(super) id: SocketId,
}

/// A socket at one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// For the kernel.
    pub name: Name,
    /// Its own address; v4-mapped ones are made IPv4.
    pub local: SocketAddr,
    /// The other end's.
    pub peer: SocketAddr,
    /// Its state.
    pub state: State,
    /// Since it last sent or received data, to a jiffy. Keep-alive probes are no data. None where
    /// the kernel doesn't tell, and while it connects.
    pub idle: Option<Duration>,
    /// Bytes received and not read.
    pub unread: u32,
    /// Bytes written and not acknowledged, sent or not.
    pub unsent: u32,
    /// Segments sent and not acknowledged; a FIN counts.
    pub unacked: u32,
    /// Of the file that a process has open; 0 where none has, as in an accept queue.
    pub inode: u32,
    /// Where the listener is bound that accepted it, where that was marked and asked for.
    pub served_by: Option<Endpoint>,
}

impl Socket {
    /// Reads what sock_diag answers; none in a state that is not listed.
    pub(super) fn read(answer: &InetResponse) -> Option<Self> {
        let header = &answer.header;
        let id = &header.socket_id;
        let state = State::of(header.state)?;
        let info = answer.nlas.iter().find_map(|attribute| match attribute {
            Nla::TcpInfo(bytes) => Some(TcpInfo(bytes)),
            _ => None,
        });
        // In CLOSE_WAIT the peer's FIN counts as a byte until the process has read it.
        let fin = u32::from(state == State::CloseWait);
        Some(Self {
            name: Name {
                family: header.family,
                id: id.clone(),
            },
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            state,
            idle: info
                .as_ref()
                .filter(|_| state != State::SynSent)
                .and_then(TcpInfo::idle),
            unread: header.recv_queue.saturating_sub(fin),
            unsent: header.send_queue,
            unacked: info.and_then(|info| info.unacked()).unwrap_or(0),
            inode: header.inode,
            served_by: served::mark(answer),
        })
    }

    /// An established one, for tests.
    #[cfg(test)]
    pub(crate) fn example(local: &str, peer: &str, served_by: Option<Endpoint>) -> Self {
        Self {
            name: Name {
                family: netlink_packet_sock_diag::constants::AF_INET,
                id: SocketId::new_v4(),
            },
            local: local.parse().expect("an address"),
            peer: peer.parse().expect("an address"),
            state: State::Established,
            idle: Some(Duration::ZERO),
            unread: 0,
            unsent: 0,
            unacked: 0,
            inode: 1,
            served_by,
        }
    }

    /// As [`example`](Self::example), with a cookie, and idle for some milliseconds.
    #[cfg(test)]
    pub(super) fn idle_example(local: &str, peer: &str, cookie: u8, idle: u64) -> Self {
        let mut socket = Self::example(local, peer, None);
        socket.name.id.cookie = [cookie; 8];
        socket.idle = Some(Duration::from_millis(idle));
        socket
    }

    /// Whether a process, or an accept queue, still has it. A socket that was closed goes on in
    /// FIN_WAIT until the peer has all of it: that is the kernel's own affair, and outlives the
    /// process. One that was only shut down for writing can still be read, and is open. In CLOSING
    /// and LAST_ACK both sides have sent their last byte, so these are never listed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.state {
            State::SynSent | State::Established | State::CloseWait => true,
            State::FinWait1 | State::FinWait2 => self.inode != 0,
        }
    }

    /// Whether nothing went over it for `time`, nothing is under way, and nothing waits to be read.
    #[must_use]
    pub fn is_idle_for(&self, time: Duration) -> bool {
        self.state != State::SynSent
            && self.idle.is_some_and(|idle| idle >= time)
            && self.unread == 0
            && self.unsent == 0
            && self.unacked == 0
    }
}

/// `struct tcp_info` of linux/tcp.h, or as much of it as the kernel knows.
struct TcpInfo<'a>(&'a [u8]);

impl TcpInfo<'_> {
    fn word(&self, offset: usize) -> Option<u32> {
        let bytes = self.0.get(offset..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    }

    /// The kernel counts in milliseconds.
    fn idle(&self) -> Option<Duration> {
        let sent = self.word(offset_of!(libc::tcp_info, tcpi_last_data_sent))?;
        let received = self.word(offset_of!(libc::tcp_info, tcpi_last_data_recv))?;
        Some(Duration::from_millis(sent.min(received).into()))
    }

    fn unacked(&self) -> Option<u32> {
        self.word(offset_of!(libc::tcp_info, tcpi_unacked))
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;
    use netlink_packet_sock_diag::constants::{AF_INET6, TCP_LAST_ACK, TCP_LISTEN};
    use netlink_packet_sock_diag::inet::InetResponseHeader;

    use super::*;

    fn answer(state: u8, info: Option<Vec<u8>>) -> InetResponse {
        let mapped = |text: &str| text.parse().expect("an address");
        let mut nlas = vec![Nla::Other(DefaultNla::new(99, vec![1]))];
        nlas.extend(info.map(Nla::TcpInfo));
        InetResponse {
            header: InetResponseHeader {
                family: AF_INET6,
                state,
                timer: None,
                socket_id: SocketId {
                    source_port: 80,
                    destination_port: 4000,
                    source_address: mapped("::ffff:10.0.0.5"),
                    destination_address: mapped("::ffff:10.0.0.1"),
                    ..SocketId::new_v6()
                },
                recv_queue: 1,
                send_queue: 7,
                uid: 0,
                inode: 0,
            },
            nlas: nlas.into_iter().collect(),
        }
    }

    /// Unacknowledged segments at byte 24, and times at bytes 44 and 52 (linux/tcp.h).
    fn info(unacked: u32, sent: u32, received: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 104];
        for (offset, value) in [(24, unacked), (44, sent), (52, received)] {
            bytes[offset..][..4].copy_from_slice(&value.to_ne_bytes());
        }
        Some(bytes)
    }

    #[test]
    fn what_the_kernel_answers_is_read() {
        let socket = Socket::read(&answer(TCP_ESTABLISHED, info(3, 900, 40))).expect("a socket");
        assert_eq!(socket.local, "10.0.0.5:80".parse().expect("an address"));
        assert_eq!(socket.peer, "10.0.0.1:4000".parse().expect("an address"));
        assert_eq!(socket.idle, Some(Duration::from_millis(40)));
        assert_eq!((socket.unread, socket.unsent, socket.unacked), (1, 7, 3));
    }

    #[test]
    fn a_fin_that_was_not_read_is_no_unread_byte() {
        let socket = Socket::read(&answer(TCP_CLOSE_WAIT, info(0, 1, 1))).expect("a socket");
        assert_eq!(socket.unread, 0);
    }

    #[test]
    fn what_the_kernel_does_not_tell_counts_as_busy() {
        for short in [None, Some(Vec::new()), Some(vec![0; 50])] {
            let socket = Socket::read(&answer(TCP_ESTABLISHED, short)).expect("a socket");
            assert_eq!(socket.idle, None);
            assert!(!socket.is_idle_for(Duration::ZERO));
        }
    }

    #[test]
    fn what_a_process_has_closed_is_not_open() {
        let state = |number, inode| {
            let mut answer = answer(number, None);
            answer.header.inode = inode;
            Socket::read(&answer).map(|socket| socket.is_open())
        };
        for (number, in_queue, owned) in [
            (TCP_ESTABLISHED, Some(true), Some(true)),
            (TCP_CLOSE_WAIT, Some(true), Some(true)),
            (TCP_FIN_WAIT1, Some(false), Some(true)),
            (TCP_FIN_WAIT2, Some(false), Some(true)),
            (TCP_LAST_ACK, None, None),
            (TCP_LISTEN, None, None),
        ] {
            assert_eq!((state(number, 0), state(number, 9)), (in_queue, owned));
        }
    }
}
