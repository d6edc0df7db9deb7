//! One ethtool setting, by the old ioctl: that needs no other tool and works on every kernel.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

/// `ETHTOOL_SGRO` of linux/ethtool.h.
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// Switches generic receive offload on at an interface of the thread's network namespace.
pub(super) fn enable_gro(interface: &str) -> Result<()> {
    // Any socket of the namespace will do to reach its interfaces.
    let socket = UdpSocket::bind("127.0.0.1:0").context("open a socket for ethtool")?;
    let mut value = EthtoolValue {
        command: ETHTOOL_SGRO,
        value: 1,
    };
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        bail!("interface name {interface:?} is too long");
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // SAFETY: the request names an interface by a string that ends in zero and points to an
    // ethtool_value, as SIOCETHTOOL wants; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw const request) };
    Errno::result(result).with_context(|| format!("ioctl(ETHTOOL_SGRO) on {interface}"))?;
    Ok(())
}
