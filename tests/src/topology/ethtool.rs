//! A few ethtool settings, by the old ioctl: that needs no other tool and works on every kernel.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

/// `ETHTOOL_SGRO` of linux/ethtool.h.
const ETHTOOL_SGRO: u32 = 0x2c;

/// What an interface may do in the processor's stead, or put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Packets that come in are put together.
    Gro,
    /// Packets are taken apart as late as can be.
    Gso,
    /// TCP's, by the interface.
    Tso,
    /// It makes checksums.
    TxChecksum,
    /// It checks them.
    RxChecksum,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Gro,
        Self::Gso,
        Self::Tso,
        Self::TxChecksum,
        Self::RxChecksum,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gro => "GRO",
            Self::Gso => "GSO",
            Self::Tso => "TSO",
            Self::TxChecksum => "TX checksums",
            Self::RxChecksum => "RX checksums",
        }
    }

    /// `ETHTOOL_GGRO` and so on, of linux/ethtool.h.
    fn command(self) -> u32 {
        match self {
            Self::Gro => 0x2b,
            Self::Gso => 0x23,
            Self::Tso => 0x1e,
            Self::TxChecksum => 0x16,
            Self::RxChecksum => 0x14,
        }
    }
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// Switches generic receive offload on at an interface of the thread's network namespace.
pub(super) fn enable_gro(interface: &str) -> Result<()> {
    ioctl(interface, ETHTOOL_SGRO, 1).map(drop)
}

/// Whether an interface of the thread's network namespace does this.
pub(super) fn is_on(interface: &str, offload: Offload) -> Result<bool> {
    Ok(ioctl(interface, offload.command(), 0)? != 0)
}

/// Gives the kernel a value, and returns the one that it leaves there.
fn ioctl(interface: &str, command: u32, value: u32) -> Result<u32> {
    // Any socket of the namespace will do to reach its interfaces.
    let socket = UdpSocket::bind("127.0.0.1:0").context("open a socket for ethtool")?;
    let mut value = EthtoolValue { command, value };
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
    Errno::result(result).with_context(|| format!("ethtool {command:#x} on {interface}"))?;
    Ok(value.value)
}
