//! A cable of tun devices: interfaces whose packets have no Ethernet header.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::topology::{Side, Topology};

/// The device's name on either side.
pub const TUN: &str = "tun0";

/// How long the copying thread sleeps where nothing comes.
const GLANCE: u16 = 20;

/// A tun device on each side, and a thread that copies packets from one to the other.
pub struct Cable {
    wanted: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    /// Lays it. The devices have neither addresses nor are they up.
    pub fn new(topology: &Topology) -> Result<Self> {
        let ends = [Side::Client, Side::Server].map(|side| topology.run(side, open));
        let [client, server] = ends;
        let (mut client, mut server) = (client?, server?);
        let wanted = Arc::new(AtomicBool::new(true));
        let mine = Arc::clone(&wanted);
        let thread = thread::spawn(move || {
            while mine.load(Ordering::Relaxed) {
                let mut ready =
                    [&client, &server].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
                // An error shows again when reading.
                let _ = poll(&mut ready, PollTimeout::from(GLANCE));
                copy(&mut client, &mut server);
                copy(&mut server, &mut client);
            }
        });
        Ok(Self {
            wanted,
            thread: Some(thread),
        })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// Copies all that is there; what the other end can't take (it is down) is lost, as on a wire.
fn copy(from: &mut File, to: &mut File) {
    let mut packet = [0; 65_536];
    while let Ok(len) = from.read(&mut packet) {
        let _ = to.write(&packet[..len]);
    }
}

fn open() -> Result<File> {
    let path = "/dev/net/tun";
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("open {path}"))?;
    // SAFETY: ifreq is plain integers and pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TUN.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request names an interface by a string that ends in zero, and outlives the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    if made < 0 {
        return Err(io::Error::last_os_error()).context("ioctl(TUNSETIFF)");
    }
    Ok(file)
}
