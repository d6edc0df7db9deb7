//! Does a socket listen on an address? Asked of the kernel, so that no connection is needed and
//! nobody's word is taken for how long a backend was away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gate_userspace::sockets;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use crate::topology::{Place, Side, Topology};

/// How often the kernel is asked, and so how exact the times are.
pub const SAMPLE: Duration = Duration::from_millis(1);

/// Any socket with this address, whatever its cookie (`INET_DIAG_NOCOOKIE`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// Asks the kernel about listeners of the network namespace it was opened in.
pub struct Probe(Socket);

impl Probe {
    /// Opens it in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG).context("open sock_diag")?;
        socket.bind_auto().context("bind sock_diag")?;
        Ok(Self(socket))
    }

    /// Would a connection to this address find a listener, be it of this address or of any?
    pub fn listens(&self, address: SocketAddr) -> Result<bool> {
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), question(address).into());
        request.header.flags = NLM_F_REQUEST;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0).context("ask sock_diag")?;
        let (bytes, _) = self.0.recv_from_full().context("hear sock_diag")?;
        let answer: NetlinkMessage<SockDiagMessage> =
            NetlinkMessage::deserialize(&bytes).context("read sock_diag's answer")?;
        match answer.payload {
            NetlinkPayload::InnerMessage(_) => Ok(true),
            NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => Ok(false),
            other => bail!("sock_diag on {address}: {other:?}"),
        }
    }
}

/// A request for the socket that a SYN from nowhere to this address would reach.
fn question(address: SocketAddr) -> SockDiagMessage {
    let (family, nowhere) = match address {
        SocketAddr::V4(_) => (AF_INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        SocketAddr::V6(_) => (AF_INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: SocketId {
            source_port: address.port(),
            destination_port: 0,
            source_address: address.ip(),
            destination_address: nowhere,
            interface_id: 0,
            cookie: ANY_COOKIE,
        },
    })
}

/// Waits in the calling thread's network namespace until there is a listener (`there`) or until
/// there is none, and returns when that was, to 1 ms.
pub fn wait_until(address: SocketAddr, there: bool, limit: Duration) -> Result<Instant> {
    let probe = Probe::open()?;
    let late = Instant::now() + limit;
    while probe.listens(address)? != there {
        if Instant::now() > late {
            let what = if there {
                "no listener"
            } else {
                "still a listener"
            };
            bail!("{what} on {address} after {limit:?}");
        }
        sleep(SAMPLE);
    }
    Ok(Instant::now())
}

/// Waits in the calling thread's network namespace until a socket of this address listens, whoever gets
/// its connections: [`wait_until`] asks as the kernel would look it up, and sees another's where a gate is
/// handed over.
pub fn wait_until_own(address: SocketAddr, limit: Duration) -> Result<()> {
    let endpoint = address.to_string().parse()?;
    let late = Instant::now() + limit;
    while sockets::listeners(endpoint).context("ask sock_diag")? == 0 {
        ensure!(
            Instant::now() < late,
            "no listener on {address} after {limit:?}"
        );
        sleep(SAMPLE);
    }
    Ok(())
}

/// Waits until nothing listens on the address, and then until that has lasted for `outage`.
pub fn sit_out(address: SocketAddr, outage: Duration, limit: Duration) -> Result<()> {
    let closed = wait_until(address, false, limit)?;
    sleep(outage.saturating_sub(closed.elapsed()));
    Ok(())
}

/// A time in which nothing listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When the listener was first missed.
    pub from: Instant,
    /// When there was one again, or when the watch ended.
    pub to: Instant,
}

impl Gap {
    /// How long it was.
    pub fn length(&self) -> Duration {
        self.to - self.from
    }
}

/// Notes every gap in the listening on one address of the server, on a thread of its own, which
/// ends when this is dropped.
pub struct Watch {
    /// The thread goes on for as long as somebody else holds this, too.
    wanted: Arc<()>,
    thread: JoinHandle<Result<Vec<Gap>>>,
}

impl Watch {
    /// Starts to watch in the server namespace.
    pub fn start(topology: &Topology, address: SocketAddr) -> Result<Self> {
        Self::start_at(topology, Side::Server, address)
    }

    /// As [`start`](Self::start), in any namespace.
    pub fn start_at(
        topology: &Topology,
        place: impl Into<Place>,
        address: SocketAddr,
    ) -> Result<Self> {
        let wanted = Arc::new(());
        let mine = Arc::clone(&wanted);
        let thread = topology.start(place, move || {
            let probe = Probe::open()?;
            let mut gaps = Gaps::default();
            while Arc::strong_count(&mine) > 1 {
                gaps.note(Instant::now(), probe.listens(address)?);
                sleep(SAMPLE);
            }
            Ok(gaps.finish(Instant::now()))
        })?;
        Ok(Self { wanted, thread })
    }

    /// Ends the watch and returns the gaps, in order.
    pub fn finish(self) -> Result<Vec<Gap>> {
        drop(self.wanted);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Turns samples into gaps.
#[derive(Default)]
struct Gaps {
    closed: Vec<Gap>,
    open: Option<Instant>,
}

impl Gaps {
    fn note(&mut self, now: Instant, listens: bool) {
        match (self.open, listens) {
            (None, false) => self.open = Some(now),
            (Some(from), true) => {
                self.closed.push(Gap { from, to: now });
                self.open = None;
            }
            (None, true) | (Some(_), false) => {}
        }
    }

    fn finish(mut self, now: Instant) -> Vec<Gap> {
        self.note(now, true);
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_gaps() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut gaps = Gaps::default();
        for (ms, listens) in [
            (0, true),
            (1, false),
            (2, false),
            (3, true),
            (4, true),
            (5, false),
        ] {
            gaps.note(at(ms), listens);
        }
        let gaps = gaps.finish(at(9));
        assert_eq!(
            gaps,
            [
                Gap {
                    from: at(1),
                    to: at(3)
                },
                Gap {
                    from: at(5),
                    to: at(9)
                }
            ]
        );
        assert_eq!(gaps[0].length(), Duration::from_millis(2));
    }
}
