//! Who sends the flood: one thread, in whose time the kernel also takes the frames in, up to where
//! they are dropped. So the thread's CPU time is all that they cost.

use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::ethertap::EtherTap;
use crate::iperf3::processors;
use crate::packet::Spec;

/// Frames of one length, one behind the other.
pub struct Frames {
    bytes: Vec<u8>,
    len: usize,
}

impl Frames {
    /// SYNs to these endpoints in turn, each from another source somewhere in the world, the
    /// same for the same seed.
    pub fn syns(count: usize, seed: u64, to: &[(IpAddr, u16)]) -> Self {
        let mut random = Random(seed | 1);
        let (mut bytes, mut len) = (Vec::new(), 0);
        for &(destination, destination_port) in to.iter().cycle().take(count) {
            let frame = Spec {
                source: random.source().into(),
                source_port: 1_024 + (random.next() % 60_000) as u16,
                isn: random.next() as u32,
                destination,
                destination_port,
                ..Spec::default()
            }
            .build();
            len = frame.len();
            bytes.extend(frame);
        }
        Self { bytes, len }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.bytes.len() / self.len.max(1)
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.len)
    }
}

/// Marsaglia's xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    /// An address that may come from outside: neither private, local nor multicast.
    fn source(&mut self) -> std::net::Ipv4Addr {
        loop {
            let address = std::net::Ipv4Addr::from_bits(self.next() as u32);
            let [first, ..] = address.octets();
            let is_odd = address.is_private() || address.is_link_local() || address.is_loopback();
            if (1..224).contains(&first) && !is_odd {
                return address;
            }
        }
    }
}

/// What takes the frames.
pub enum Sender {
    /// A device whose frames this process writes, one by one.
    Tap {
        /// The device.
        tap: EtherTap,
        /// Whether it refuses all of them, because it is down.
        is_down: bool,
    },
    /// A packet socket, many in one call.
    Packet(OwnedFd),
}

/// Frames in one call.
const BATCH: usize = 64;

impl Sender {
    /// A packet socket on an interface of the calling thread's network namespace.
    pub fn packet(interface: &str) -> Result<Self> {
        let index = if_nametoindex(interface).with_context(|| format!("find {interface}"))?;
        // Without a protocol it receives nothing.
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("open a packet socket")?;
        // SAFETY: sockaddr_ll is plain integers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the address is of the length that is passed, and outlives the call.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        ensure!(bound == 0, "bind: {}", io::Error::last_os_error());
        Ok(Self::Packet(fd))
    }

    /// Sends all of them once.
    pub fn send(&self, frames: &Frames) -> Result<()> {
        match self {
            Self::Tap { tap, is_down } => write(tap, frames, *is_down),
            Self::Packet(fd) => send_batches(fd, frames),
        }
    }

    /// Sends all of them as often as it takes to use that much of the thread's time.
    pub fn slice(&self, frames: &Frames, time: Duration) -> Result<Slice> {
        let before = Usage::now()?;
        let mut sent = 0;
        loop {
            self.send(frames)?;
            sent += frames.count();
            let usage = Usage::now()?;
            let cpu = usage.thread - before.thread;
            if cpu >= time {
                let behind = usage.softirq.saturating_sub(before.softirq);
                return Ok(Slice {
                    packets: sent as u64,
                    cpu_ns: (cpu + behind).as_nanos() as u64,
                    wall_ns: (usage.at - before.at).as_nanos() as u64,
                });
            }
        }
    }
}

fn write(tap: &EtherTap, frames: &Frames, is_down: bool) -> Result<()> {
    for frame in frames.iter() {
        match tap.write(frame) {
            Ok(()) if !is_down => {}
            Err(error) if is_down && error.raw_os_error() == Some(libc::EIO) => {}
            Ok(()) => anyhow::bail!("an interface that is down took a frame"),
            Err(error) => return Err(error).context("write a frame to the tap device"),
        }
    }
    Ok(())
}

fn send_batches(fd: &OwnedFd, frames: &Frames) -> Result<()> {
    for batch in frames.bytes.chunks(BATCH * frames.len) {
        let mut parts: Vec<libc::iovec> = batch
            .chunks_exact(frames.len)
            .map(|frame| libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: mmsghdr is plain integers and pointers, for which zero is valid.
                let mut message: libc::mmsghdr = unsafe { zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut sent = 0;
        while sent < messages.len() {
            let rest = &mut messages[sent..];
            // SAFETY: the messages point to frames that outlive the call, which only reads them.
            let now =
                unsafe { libc::sendmmsg(fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
            match now {
                1.. => sent += now as usize,
                // What a program at the sender drops counts as sent, and is told as this.
                _ if io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => sent += 1,
                _ => return Err(io::Error::last_os_error()).context("sendmmsg"),
            }
        }
    }
    Ok(())
}

/// What one slice of the flood took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Packets sent.
    pub packets: u64,
    /// CPU time of the thread, and of the kernel's thread for what the device left over, in ns.
    pub cpu_ns: u64,
    /// Real time, in ns.
    pub wall_ns: u64,
}

impl Slice {
    /// CPU time per packet, in ns.
    pub fn each(&self) -> f64 {
        self.cpu_ns as f64 / self.packets as f64
    }
}

/// What this thread has used so far.
struct Usage {
    at: Instant,
    thread: Duration,
    softirq: Duration,
}

impl Usage {
    fn now() -> Result<Self> {
        let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("clock_gettime")?;
        Ok(Self {
            at: Instant::now(),
            thread: used.into(),
            softirq: softirq_thread(),
        })
    }
}

/// The time that `ksoftirqd` of this thread's processor has run; zero where it can't be seen.
fn softirq_thread() -> Duration {
    thread_local! {
        static PATH: Option<String> = path_of_softirq_thread();
    }
    let nanoseconds = PATH.with(|path| {
        let text = fs::read_to_string(path.as_ref()?).ok()?;
        text.split_whitespace().next()?.parse().ok()
    });
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

fn path_of_softirq_thread() -> Option<String> {
    let wanted = format!("ksoftirqd/{}", processors().ok()?.first()?);
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        (name.trim_end() == wanted).then(|| path.join("schedstat").display().to_string())
    })
}
