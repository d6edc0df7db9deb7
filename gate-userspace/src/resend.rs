//! Sending a held SYN again by a raw IP socket, from this host to itself.
//!
//! It goes through the firewall once more, from its output on, as its client's own retransmission
//! would; so it must be what the client sent, and not what the firewall made of it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use gate_common::abi::ReplayFrame;
use gate_common::checksum;
use gate_common::flow::FlowKey;
use gate_common::parse::{Family, Frame, Located, locate};
use socket2::{Domain, Protocol, Socket, Type};

use crate::conntrack::{self, Tuple};
use crate::endpoint::ip;
use crate::error::{Error, Result};

/// The raw sockets, opened when they are needed.
#[derive(Debug, Default)]
pub struct Resend {
    v4: Option<Marked>,
    v6: Option<Marked>,
    tracked: Option<bool>,
}

/// A socket, and the mark that it puts on packets.
#[derive(Debug)]
struct Marked {
    socket: Socket,
    mark: u32,
}

impl Resend {
    /// Finds out whether it may be done at all.
    ///
    /// # Errors
    /// [`Error::Rights`], and those of the socket call.
    pub fn check() -> Result<()> {
        match raw(Domain::IPV4) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Error::Rights {
                missing: "CAP_NET_RAW, for what is held on loopback".to_owned(),
            }),
            Err(error) => Err(Error::call("open a raw socket for", "loopback")(error)),
        }
    }

    /// Sends the IP packet of a frame to its destination.
    ///
    /// # Errors
    /// Those of the socket calls.
    pub fn send(&mut self, replay: &ReplayFrame) -> io::Result<()> {
        let mut frame = replay.frame;
        let Frame::Tcp(at) = locate(&frame[..]) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let Some(syn) = at.syn(&frame[..]) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut tuple = tuple(&replay.attempt.flow);
        // The firewall may have translated it on its way to the hook.
        if *self.tracked.get_or_insert_with(conntrack::is_used)
            && let Ok(Some(original)) = conntrack::before_translation(tuple)
            && readdress(&mut frame[..syn.end], &at, original)
        {
            tuple = original;
        }
        let (room, domain) = match at.family {
            Family::V4 => (&mut self.v4, Domain::IPV4),
            Family::V6 => (&mut self.v6, Domain::IPV6),
        };
        let marked = match room {
            Some(marked) => marked,
            none => none.insert(Marked {
                socket: raw(domain)?,
                mark: 0,
            }),
        };
        if marked.mark != replay.mark {
            marked.socket.set_mark(replay.mark)?;
            marked.mark = replay.mark;
        }
        let packet = &frame[at.network..syn.end];
        marked
            .socket
            .send_to(packet, &SocketAddr::new(tuple.destination.ip(), 0).into())
            .map(drop)
    }
}

/// A socket whose packets bring their IP headers with them (raw(7)).
fn raw(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
}

fn tuple(flow: &FlowKey) -> Tuple {
    Tuple {
        source: SocketAddr::new(ip(&flow.source), flow.source_port.number()),
        destination: SocketAddr::new(ip(&flow.endpoint.address), flow.endpoint.port.number()),
    }
}

/// Writes other addresses and ports into a frame that ends where its IP packet does; false where they
/// are of the other family.
fn readdress(frame: &mut [u8], at: &Located, tuple: Tuple) -> bool {
    let (network, transport) = (at.network, at.transport);
    let len = (frame.len() - transport) as u16;
    let pseudo = match (at.family, tuple.source.ip(), tuple.destination.ip()) {
        (Family::V4, IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame[network + 12..network + 16].copy_from_slice(&source.octets());
            frame[network + 16..network + 20].copy_from_slice(&destination.octets());
            checksum::pseudo_header(&source.octets(), &destination.octets(), len)
        }
        (Family::V6, IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame[network + 8..network + 24].copy_from_slice(&source.octets());
            frame[network + 24..network + 40].copy_from_slice(&destination.octets());
            checksum::pseudo_header(&source.octets(), &destination.octets(), len)
        }
        _ => return false,
    };
    let ports = [tuple.source.port(), tuple.destination.port()].map(u16::to_be_bytes);
    frame[transport..transport + 4].copy_from_slice(&ports.concat());
    // Partial, and so to be completed; the IPv4 header's own the kernel writes anew.
    let partial = checksum::fold(pseudo).to_be_bytes();
    frame[transport + 16..transport + 18].copy_from_slice(&partial);
    checksum::complete(frame, at).is_ok()
}
