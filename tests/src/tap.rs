//! A packet socket: sends frames as they are, and sees what passes an interface, with the VLAN tag
//! that comes beside a frame.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

/// A frame that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The tag beside it: EtherType and tag control information.
    pub tag: Option<(u16, u16)>,
    /// Its bytes, from the Ethernet header on.
    pub frame: Vec<u8>,
    /// Whether it was on its way out.
    pub outgoing: bool,
}

/// A packet socket on one interface.
pub struct Tap(OwnedFd);

/// `SOL_PACKET`'s option that asks for [`Auxiliary`].
const PACKET_AUXDATA: libc::c_int = 8;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// `struct tpacket_auxdata` of linux/if_packet.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Auxiliary {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

impl Tap {
    /// Opens it in the calling thread's network namespace.
    pub fn open(interface: &str) -> Result<Self> {
        let index = if_nametoindex(interface).with_context(|| format!("find {interface}"))?;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: socket(2) takes no pointers.
        let fd = checked(unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol.into(),
            )
        })
        .context("open a packet socket")?;
        // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: sockaddr_ll is plain integers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the address is of the length that is passed, and outlives the call.
        checked(unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        })
        .with_context(|| format!("bind a packet socket to {interface}"))?;
        let on: libc::c_int = 1;
        // SAFETY: the value is of the length that is passed, and outlives the call.
        checked(unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_AUXDATA,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        })
        .context("setsockopt(PACKET_AUXDATA)")?;
        Ok(Self(fd))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the bytes are readable for the length that is passed.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error()).context("send a frame");
        }
        Ok(())
    }

    /// The next frame for which `wanted` holds, or none after `limit`.
    pub fn next(&self, limit: Duration, wanted: impl Fn(&Seen) -> bool) -> Result<Option<Seen>> {
        let late = Instant::now() + limit;
        loop {
            match self.receive() {
                Ok(seen) if wanted(&seen) => return Ok(Some(seen)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > late {
                        return Ok(None);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error).context("receive a frame"),
            }
        }
    }

    fn receive(&self) -> io::Result<Seen> {
        let mut bytes = vec![0_u8; 10_000];
        let mut control = [0_u64; 16];
        // SAFETY: sockaddr_ll and msghdr are plain integers and pointers, for which zero is valid.
        let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (zeroed(), zeroed()) };
        let mut part = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: all that the message points to has the lengths that it says, and outlives the
        // call.
        let len =
            unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        if len < 0 {
            return Err(io::Error::last_os_error());
        }
        bytes.truncate(len as usize);
        let mut tag = None;
        // SAFETY: the kernel filled in the message, whose control buffer is still there.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !header.is_null() {
            // SAFETY: it is a whole header within the control buffer, as CMSG_NXTHDR checks; the
            // data of this kind is an `Auxiliary`.
            unsafe {
                if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_PACKET, PACKET_AUXDATA)
                {
                    let auxiliary: Auxiliary =
                        libc::CMSG_DATA(header).cast::<Auxiliary>().read_unaligned();
                    tag = auxiliary.tag();
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
        Ok(Seen {
            tag,
            frame: bytes,
            outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
        })
    }
}

impl Auxiliary {
    fn tag(&self) -> Option<(u16, u16)> {
        let both = TP_STATUS_VLAN_VALID | TP_STATUS_VLAN_TPID_VALID;
        (self.status & both == both).then_some((self.vlan_tpid, self.vlan_tci))
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
