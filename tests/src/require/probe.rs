//! Asking the kernel whether it has something. Needs root.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context, Result, bail};
use aya_obj::generated::{
    BPF_F_NO_PREALLOC, bpf_attach_type, bpf_cmd, bpf_map_type, bpf_prog_type,
};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};

use crate::bpf;

/// Lists the programs at the TCX hook of `lo`, which is the first interface everywhere.
pub(super) fn tcx() -> Result<bool> {
    let mut attr = bpf::attr();
    attr.query.__bindgen_anon_1.target_ifindex = 1;
    attr.query.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    // SAFETY: the attribute points to nothing.
    match unsafe { bpf::call(bpf_cmd::BPF_PROG_QUERY, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error).context("ask for the programs at a TCX hook"),
    }
}

/// Makes a map without entries, and asks whether it uses the memory of all that it may have.
pub(super) fn map_usage() -> Result<bool> {
    const ENTRIES: u32 = 1024;
    const VALUE: u32 = 1024;
    bpf::unlimited_memory();
    let mut attr = bpf::attr();
    // SAFETY: every bit pattern is a value of these fields.
    let map = unsafe { &mut attr.__bindgen_anon_1 };
    map.map_type = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
    map.key_size = 4;
    map.value_size = VALUE;
    map.max_entries = ENTRIES;
    map.map_flags = BPF_F_NO_PREALLOC;
    // SAFETY: the attribute points to nothing, and the command returns a descriptor.
    let map = unsafe { bpf::object(bpf_cmd::BPF_MAP_CREATE, &mut attr) }.context("make a map")?;
    let info = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let info = fs::read_to_string(&info).with_context(|| format!("read {info}"))?;
    let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes: u32 = bytes.context("find memlock")?.trim().parse()?;
    Ok(bytes < ENTRIES * VALUE)
}

/// Whether the machine can be suspended to memory.
pub(super) fn suspend() -> Result<bool> {
    match fs::read_to_string("/sys/power/state") {
        Ok(states) => Ok(states.split_whitespace().any(|state| state == "mem")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("read /sys/power/state"),
    }
}

/// Runs a program that drops its one frame.
pub(super) fn live_frames() -> Result<bool> {
    /// Of `enum xdp_action` of linux/bpf.h.
    const DROP: i32 = 1;
    let program = bpf::answering(bpf_prog_type::BPF_PROG_TYPE_XDP, DROP, "probe");
    let program = program.context("load a program")?;
    match bpf::run_live(&program, &[0; 64], 1) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error).context("run live frames"),
    }
}

/// Adds an interface of this kind in a network namespace that goes with it.
pub(super) fn interface(kind: &'static str) -> Result<bool> {
    let about_all = [0; size_of::<libc::ifinfomsg>()];
    let kind = attribute(libc::IFLA_INFO_KIND, kind.as_bytes());
    let message = [&about_all[..], &attribute(libc::IFLA_LINKINFO, &kind)].concat();
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match ask(NETLINK_ROUTE, libc::RTM_NEWLINK, flags, message)? {
        libc::EOPNOTSUPP => Ok(false),
        // It may have been refused for want of a parameter; the kind is known.
        _ => Ok(true),
    }
}

/// Asks for the generation of the rules.
pub(super) fn nftables() -> Result<bool> {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8) | libc::NFT_MSG_GETGEN;
    let about_all = vec![0; 4];
    match ask(NETLINK_NETFILTER, u16::try_from(kind)?, 0, about_all)? {
        0 => Ok(true),
        libc::EINVAL | libc::EPROTONOSUPPORT => Ok(false),
        error => bail!(
            "ask for nftables' generation: {}",
            io::Error::from_raw_os_error(error)
        ),
    }
}

/// One netlink attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let size = u16::try_from(4 + value.len()).expect("a short value");
    let mut bytes = [size.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one message in a new network namespace, and returns the error that it is answered with.
fn ask(protocol: isize, kind: u16, flags: libc::c_int, body: Vec<u8>) -> Result<libc::c_int> {
    let talk = move || -> Result<libc::c_int> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET); run as root")?;
        let socket = match Socket::new(protocol) {
            Ok(socket) => socket,
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                return Ok(libc::EPROTONOSUPPORT);
            }
            Err(error) => return Err(error).context("open a netlink socket"),
        };
        let size = u32::try_from(size_of::<libc::nlmsghdr>() + body.len())?;
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK)?;
        let mut message = size.to_ne_bytes().to_vec();
        message.extend([kind, flags].map(u16::to_ne_bytes).concat());
        // The message's number and the sender: the kernel fills in the latter.
        message.extend([0; 8]);
        message.extend(body);
        socket
            .send_to(&message, &SocketAddr::new(0, 0), 0)
            .context("send a netlink message")?;
        let (answer, _) = socket.recv_from_full().context("read netlink's answer")?;
        Ok(error_in(&answer))
    };
    // A thread of its own: the namespace goes with it.
    thread::spawn(talk)
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic))
}

/// The error in an answer, 0 if it is none.
fn error_in(answer: &[u8]) -> libc::c_int {
    const KIND: usize = 4;
    const BODY: usize = size_of::<libc::nlmsghdr>();
    let kind = answer.get(KIND..KIND + 2).map(|bytes| [bytes[0], bytes[1]]);
    if kind.map(u16::from_ne_bytes) != u16::try_from(libc::NLMSG_ERROR).ok() {
        return 0;
    }
    answer
        .get(BODY..BODY + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, |bytes| -libc::c_int::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_is_one() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![20, 0, 0, 0];
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(16, 0);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert_eq!(error_in(&answer(2, -libc::EOPNOTSUPP)), libc::EOPNOTSUPP);
        assert_eq!(error_in(&answer(2, 0)), 0);
        assert_eq!(error_in(&answer(16, -1)), 0);
        assert_eq!(error_in(&[]), 0);
    }

    #[test]
    fn attributes_are_padded() {
        assert_eq!(attribute(1, b"bond"), *b"\x08\0\x01\0bond");
        assert_eq!(attribute(1, b"vlan0"), *b"\x09\0\x01\0vlan0\0\0\0");
    }

    #[test]
    fn a_kind_that_nobody_has_is_missing_and_veth_is_there() {
        assert!(!interface("no-such-kind").unwrap());
        assert!(interface("veth").unwrap());
    }
}
