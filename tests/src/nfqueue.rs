//! A program that holds packets: nfnetlink_queue gives it those of a firewall's `queue` rule, and it
//! lets them go later, all at once and in order.
//!
//! It does what such a program can do best: of a SYN that is sent again it keeps the newest copy, and
//! one message (`NFQNL_MSG_VERDICT_BATCH`, Linux 3.1) lets all of them go.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use netlink_sys::Socket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::topology::{Place, Topology};

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// `NFNL_SUBSYS_QUEUE`, the upper byte of a message's type.
const QUEUE: u16 = 3 << 8;
const PACKET: u16 = QUEUE;
const VERDICT: u16 = QUEUE | 1;
const CONFIG: u16 = QUEUE | 2;
const VERDICT_BATCH: u16 = QUEUE | 3;
/// `NFQA_PACKET_HDR`, `NFQA_VERDICT_HDR`, `NFQA_PAYLOAD`.
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const PAYLOAD: u16 = 10;
/// `NFQA_CFG_CMD`, `NFQA_CFG_PARAMS`, `NFQA_CFG_QUEUE_MAXLEN`.
const COMMAND: u16 = 1;
const PARAMETERS: u16 = 2;
const LENGTH: u16 = 3;
/// `NF_DROP`, `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// Enough of a packet for its addresses and ports: IPv4 with options, and half of TCP's header.
const COPY: u32 = 72;
/// Most packets that the kernel keeps for the program.
const ROOM: u32 = 1 << 20;
/// What the kernel may have written for the program and it has not read, in bytes.
static BUFFER: libc::c_int = 32 << 20;
/// Lengths of a message's and of a netfilter message's header, and of an attribute's.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
const ATTRIBUTE: usize = 4;

/// A program at one queue, on a thread of its own, which ends when this is dropped.
pub struct Holder {
    /// The thread goes on for as long as somebody else holds this, too.
    queue: Arc<Queue>,
}

struct Queue {
    socket: Socket,
    number: u16,
    state: Mutex<State>,
}

/// Where a packet comes from: its address and port.
type Source = [u8; 6];

#[derive(Default)]
struct State {
    holds: bool,
    /// The newest packet of each source.
    newest: HashMap<Source, u32>,
    last: Option<u32>,
    held: u64,
}

impl Holder {
    /// Starts one in a place; it lets everything pass.
    pub fn start(topology: &Topology, place: impl Into<Place>, number: u16) -> Result<Self> {
        let place = place.into();
        let queue = Arc::new(topology.run(place.clone(), || Queue::open(number))?);
        let mine = Arc::clone(&queue);
        topology.start(place, move || {
            let mut bytes = vec![0; 1 << 16];
            while Arc::strong_count(&mine) > 1 {
                mine.serve(&mut bytes)?;
            }
            Ok(())
        })?;
        Ok(Self { queue })
    }

    /// From now on packets are held.
    pub fn hold(&self) {
        self.queue.state().holds = true;
    }

    /// Lets go all that is held, in order, and from now on everything.
    pub fn release(&self) -> Result<()> {
        let mut state = self.queue.state();
        state.holds = false;
        state.newest.clear();
        match state.last.take() {
            Some(last) => self.queue.judge(VERDICT_BATCH, ACCEPT, last),
            None => Ok(()),
        }
    }

    /// How many packets were held.
    pub fn held(&self) -> u64 {
        self.queue.state().held
    }
}

impl Queue {
    fn open(number: u16) -> Result<Self> {
        let mut socket = Socket::new(NETFILTER).context("open netfilter's netlink")?;
        socket.bind_auto().context("bind netfilter's netlink")?;
        let size = libc::socklen_t::try_from(size_of_val(&BUFFER))?;
        // SAFETY: the option's value is an integer of that size, and lives through the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const BUFFER).cast(),
                size,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error()).context("setsockopt(SO_RCVBUFFORCE)");
        }
        let queue = Self {
            socket,
            number,
            state: Mutex::default(),
        };
        // `NFQNL_CFG_CMD_BIND`; then `NFQNL_COPY_PACKET`.
        queue.ask(&[(COMMAND, &[1, 0, 0, 0])])?;
        let [a, b, c, d] = COPY.to_be_bytes();
        queue.ask(&[(PARAMETERS, &[a, b, c, d, 2])])?;
        queue.ask(&[(LENGTH, &ROOM.to_be_bytes())])?;
        Ok(queue)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Configures the queue, and waits for the kernel's word.
    fn ask(&self, attributes: &[(u16, &[u8])]) -> Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let sent = message(CONFIG, flags, self.number, attributes);
        self.socket
            .send(&sent, 0)
            .context("configure nfnetlink_queue")?;
        let (answer, _) = self.socket.recv_from_full().context("hear netfilter")?;
        match answer.get(HEADER..HEADER + 4).map(word) {
            Some(0) => Ok(()),
            error => bail!("nfnetlink_queue: {error:?}"),
        }
    }

    fn judge(&self, kind: u16, verdict: u32, packet: u32) -> Result<()> {
        let header = [verdict.to_be_bytes(), packet.to_be_bytes()].concat();
        let sent = message(
            kind,
            libc::NLM_F_REQUEST,
            self.number,
            &[(VERDICT_HEADER, &header)],
        );
        self.socket.send(&sent, 0).context("tell the verdict")?;
        Ok(())
    }

    /// Takes what the kernel has, or waits for it for some time.
    fn serve(&self, bytes: &mut [u8]) -> Result<()> {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(20_u8)).context("poll")? == 0 {
            return Ok(());
        }
        let mut into = &mut bytes[..];
        let count = match self.socket.recv(&mut into, 0) {
            Ok(count) => count,
            // Some were lost; their clients send them again.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
            Err(error) => return Err(error).context("hear netfilter"),
        };
        let mut rest = &bytes[..count];
        while let Some(one) = first(rest) {
            if let Some((packet, source)) = packet(one) {
                self.take(packet, source)?;
            }
            rest = rest.get(one.len().next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(())
    }

    fn take(&self, packet: u32, source: Source) -> Result<()> {
        let mut state = self.state();
        if !state.holds {
            return self.judge(VERDICT, ACCEPT, packet);
        }
        state.held += 1;
        state.last = Some(packet);
        match state.newest.insert(source, packet) {
            Some(older) => self.judge(VERDICT, DROP, older),
            None => Ok(()),
        }
    }
}

/// A message to netfilter.
fn message(kind: u16, flags: i32, queue: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEADERS];
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    bytes[18..20].copy_from_slice(&queue.to_be_bytes());
    for (name, value) in attributes {
        let length = (ATTRIBUTE + value.len()) as u16;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(name.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// The first of the messages in there.
fn first(bytes: &[u8]) -> Option<&[u8]> {
    let length = word(bytes.get(..4)?) as usize;
    bytes.get(..length).filter(|one| one.len() >= HEADERS)
}

/// The number of the packet that a message tells of, and where it comes from.
fn packet(message: &[u8]) -> Option<(u32, Source)> {
    if message[4..6] != PACKET.to_ne_bytes() {
        return None;
    }
    let number = attribute(message, PACKET_HEADER)?.get(..4)?;
    let packet = attribute(message, PAYLOAD)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let mut source = [0; 6];
    source[..4].copy_from_slice(packet.get(12..16)?);
    source[4..].copy_from_slice(packet.get(header..header + 2)?);
    Some((u32::from_be_bytes(number.try_into().ok()?), source))
}

fn attribute(message: &[u8], name: u16) -> Option<&[u8]> {
    let mut rest = &message[HEADERS..];
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(ATTRIBUTE..length)?;
        if found == name {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_and_its_source_are_read() {
        let mut ip = vec![0x45; 24];
        ip[12..16].copy_from_slice(&[10, 0, 0, 1]);
        ip[20..22].copy_from_slice(&[0x1f, 0x90]);
        let header = [0, 0, 1, 2, 8, 0, 1];
        let attributes: [(u16, &[u8]); 3] = [(3, &[9]), (PACKET_HEADER, &header), (PAYLOAD, &ip)];
        let bytes = message(PACKET, 0, 7, &attributes);
        assert_eq!(first(&bytes).map(<[u8]>::len), Some(bytes.len()));
        assert_eq!(packet(&bytes), Some((258, [10, 0, 0, 1, 0x1f, 0x90])));
        assert_eq!(packet(&message(PACKET, 0, 7, &attributes[..2])), None);
        assert_eq!(packet(&message(VERDICT, 0, 7, &attributes)), None);
        assert_eq!(first(&bytes[..bytes.len() - 1]), None, "cut off");
    }
}
