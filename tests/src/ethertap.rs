//! A tap device: what is written to it comes in on an interface, as from a NIC's driver, before the
//! write returns.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::mem::zeroed;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The device; it goes when this is dropped.
pub struct EtherTap(File);

impl EtherTap {
    /// Makes one with this name and Ethernet address in the calling thread's network namespace. It
    /// is down.
    pub fn open(name: &str, address: [u8; 6]) -> Result<Self> {
        let path = "/dev/net/tun";
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("open {path}"))?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        ioctl(&file, libc::TUNSETIFF, &mut request).context("ioctl(TUNSETIFF)")?;
        // SAFETY: sockaddr is plain integers, for which zero is valid.
        let mut own: libc::sockaddr = unsafe { zeroed() };
        own.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in own.sa_data.iter_mut().zip(address) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_hwaddr = own;
        ioctl(&file, libc::SIOCSIFHWADDR, &mut request).context("ioctl(SIOCSIFHWADDR)")?;
        Ok(Self(file))
    }

    /// Takes a frame in. An interface that is down refuses it (EIO).
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write(frame).map(drop)
    }
}

/// Sets an interface of the calling thread's network namespace up.
pub fn set_up(name: &str) -> Result<()> {
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("open a socket")?;
    let mut request = request(name);
    ioctl(&any, libc::SIOCGIFFLAGS, &mut request).context("ioctl(SIOCGIFFLAGS)")?;
    // SAFETY: the call above filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(&any, libc::SIOCSIFFLAGS, &mut request).context("ioctl(SIOCSIFFLAGS)")
}

/// A request about the interface of this name, of which 15 bytes count.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain integers and pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name[..15].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn ioctl(file: &impl AsRawFd, what: libc::c_ulong, request: &mut libc::ifreq) -> Result<()> {
    // SAFETY: the request names an interface by a string that ends in zero, and outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), what, std::ptr::from_mut(request)) };
    match done {
        -1 => Err(io::Error::last_os_error().into()),
        _ => Ok(()),
    }
}
