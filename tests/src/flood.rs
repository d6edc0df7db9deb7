//! SYNs from spoofed sources, up to millions a second: an XDP program makes each anew in the frame of
//! a test run and redirects it into a veth device (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18), so a
//! frame costs its sender no socket buffer and no system call.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya_obj::generated::bpf_prog_type;
use gate_userspace::sys;
use nix::net::if_::if_nametoindex;

use crate::bpf::{self, insn};
use crate::packet::Spec;
use crate::topology::{INTERFACE, Side, Topology};

/// Where SYNs say that they come from. Ports and sequence numbers are made by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Any address.
    Anywhere,
    /// A /24.
    Prefix([u8; 3]),
}

/// A flood to be.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// From where.
    pub sources: Sources,
    /// To where.
    pub destination: (Ipv4Addr, u16),
    /// SYNs a second, as far as the machine can.
    pub rate: u64,
}

/// Frames of one turn of the loop through the kernel.
const TURN: Duration = Duration::from_millis(10);

/// A flood under way.
pub struct Flooding {
    wanted: Arc<AtomicBool>,
    thread: JoinHandle<Result<Sent>>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// SYNs.
    pub syns: u64,
    /// In this time.
    pub took: Duration,
}

impl Sent {
    /// SYNs a second.
    pub fn rate(&self) -> f64 {
        self.syns as f64 / self.took.as_secs_f64()
    }
}

impl Flood {
    /// Starts it from the client's namespace over the cable. The server's end must take frames that
    /// are redirected: an XDP program there, or [`Topology::enable_gro`].
    pub fn start(self, topology: &Topology) -> Result<Flooding> {
        let wanted = Arc::new(AtomicBool::new(true));
        let mine = Arc::clone(&wanted);
        let thread = topology.start(Side::Client, move || self.run(&mine))?;
        Ok(Flooding { wanted, thread })
    }

    fn run(self, wanted: &AtomicBool) -> Result<Sent> {
        let out = if_nametoindex(INTERFACE)?;
        let program = bpf::load(
            bpf_prog_type::BPF_PROG_TYPE_XDP,
            &self.program(out),
            "flood",
        );
        let program = program.context("load the flood's program")?;
        let _kept = keep(&program)?;
        let frame = self.frame();
        let begin = Instant::now();
        let mut syns = 0;
        while wanted.load(Ordering::Relaxed) {
            let due = (begin.elapsed().as_secs_f64() * self.rate as f64) as u64;
            let most = (self.rate as f64 * TURN.as_secs_f64()) as u64;
            // What could not be sent in its time is not made up for.
            let now = due.saturating_sub(syns).min(2 * most);
            if now < most {
                thread::sleep(TURN / 10);
                continue;
            }
            bpf::run_live(&program, &frame, now as u32).context("make SYNs")?;
            syns += now;
        }
        Ok(Sent {
            syns,
            took: begin.elapsed(),
        })
    }

    /// A SYN whose checksums are right once what the program puts in is there.
    fn frame(&self) -> Vec<u8> {
        let spec = Spec {
            source: Ipv4Addr::UNSPECIFIED.into(),
            destination: self.destination.0.into(),
            source_port: 0,
            destination_port: self.destination.1,
            isn: u32::MAX,
            ..Spec::default()
        };
        let mut frame = spec.build();
        frame[..6].copy_from_slice(&Side::Server.mac());
        frame[6..12].copy_from_slice(&Side::Client.mac());
        frame
    }

    /// The program. For each word of chance that it puts into the TCP segment or its pseudo-header it
    /// puts the complement into another field, so that the sum stays: address and port, sequence
    /// number and window. The IP header's sum it makes anew.
    fn program(&self, out: u32) -> Vec<u64> {
        const DATA: i16 = 0;
        const SOURCE: i16 = 26;
        const PORT: i16 = 34;
        const ISN: i16 = 38;
        const WINDOW: i16 = 48;
        const IP_SUM: i16 = 24;
        let (high, low) = match self.sources {
            Sources::Anywhere => ((0xffff, 0), (0xffff, 0)),
            Sources::Prefix([a, b, c]) => (
                (0, i32::from(u16::from_ne_bytes([a, b]))),
                // The host's part is the second byte of the word.
                (
                    i32::from(u16::from_ne_bytes([0, 0xff])),
                    i32::from(u16::from_ne_bytes([c, 0])),
                ),
            ),
        };
        let frame = self.frame();
        let whole = u16::from_ne_bytes([frame[24], frame[25]]);
        let chance = insn(0x85, 0, 0, 0, 7);
        let mut code = vec![
            // r6 = context; r7, r8 = bpf_get_prandom_u32()
            insn(0xbf, 6, 1, 0, 0),
            chance,
            insn(0xbf, 7, 0, 0, 0),
            chance,
            insn(0xbf, 8, 0, 0, 0),
            // r2 = data; if data + 54 > data_end, drop
            insn(0x61, 2, 6, DATA, 0),
            insn(0x61, 3, 6, DATA + 4, 0),
            insn(0xbf, 4, 2, 0, 0),
            insn(0x07, 4, 0, 0, 54),
            insn(0x2d, 4, 3, 34, 0),
            // The port is r7's upper half, and r7 becomes the address's lower half.
            insn(0xbf, 5, 7, 0, 0),
            insn(0x77, 5, 0, 0, 16),
            insn(0x57, 5, 0, 0, 0xffff),
            insn(0x57, 7, 0, 0, low.0),
            insn(0x47, 7, 0, 0, low.1),
            insn(0x57, 8, 0, 0, high.0),
            insn(0x47, 8, 0, 0, high.1),
            insn(0x6b, 2, 8, SOURCE, 0),
            insn(0x6b, 2, 7, SOURCE + 2, 0),
            insn(0x6b, 2, 5, PORT, 0),
            // Their complements.
            insn(0xa7, 5, 0, 0, -1),
            insn(0x6b, 2, 5, ISN, 0),
            insn(0xbf, 5, 7, 0, 0),
            insn(0xa7, 5, 0, 0, -1),
            insn(0x6b, 2, 5, ISN + 2, 0),
            insn(0xbf, 5, 8, 0, 0),
            insn(0xa7, 5, 0, 0, -1),
            insn(0x6b, 2, 5, WINDOW, 0),
        ];
        // r7 = the sum of the header without an address, and of the address; folded twice.
        code.push(insn(0x0f, 7, 8, 0, 0));
        code.push(insn(0x07, 7, 0, 0, i32::from(!whole)));
        for _ in 0..2 {
            code.push(insn(0xbf, 5, 7, 0, 0));
            code.push(insn(0x77, 5, 0, 0, 16));
            code.push(insn(0x57, 7, 0, 0, 0xffff));
            code.push(insn(0x0f, 7, 5, 0, 0));
        }
        code.extend([
            insn(0xa7, 7, 0, 0, -1),
            insn(0x6b, 2, 7, IP_SUM, 0),
            // return bpf_redirect(out, 0)
            insn(0xb7, 1, 0, 0, out.cast_signed()),
            insn(0xb7, 2, 0, 0, 0),
            insn(0x85, 0, 0, 0, 23),
            insn(0x95, 0, 0, 0, 0),
            // drop: return XDP_DROP
            insn(0xb7, 0, 0, 0, 1),
            insn(0x95, 0, 0, 0, 0),
        ]);
        // From behind the comparison to `drop`.
        let drop = code.len() as i16 - 2 - 10;
        code[9] = insn(0x2d, 4, 3, drop, 0);
        code
    }
}

impl Flooding {
    /// Ends it.
    pub fn finish(self) -> Result<Sent> {
        self.wanted.store(false, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Attaches the program where nothing comes in. Each run of many frames enters the program into the
/// kernel's XDP dispatcher, which waits for a grace period, unless it is there already.
fn keep(program: &OwnedFd) -> Result<OwnedFd> {
    /// `XDP_FLAGS_SKB_MODE` of linux/if_link.h.
    const GENERIC: u32 = 1 << 1;
    let loopback = if_nametoindex("lo")?;
    sys::attach_xdp(program.as_fd(), loopback, GENERIC).context("attach the flood's program")
}
