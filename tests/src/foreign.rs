//! BPF programs that are not gate's, by bpf(2) itself: aya makes none of its own.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type};
use gate_common::abi::Direction;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// Loads a TC program with the name `foreign` that answers every packet with this code.
pub fn classifier(code: i32) -> Result<OwnedFd> {
    program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, code)
}

fn program(kind: bpf_prog_type, code: i32) -> Result<OwnedFd> {
    // mov64 r0, code; exit
    let instructions: [u64; 2] = [
        0xb7 | u64::from(code.cast_unsigned()) << 32,
        0x0000_0000_0000_0095,
    ];
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(b"foreign") {
        *to = from.cast_signed();
    }
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_3.prog_type = kind as u32;
    attr.__bindgen_anon_3.insn_cnt = instructions.len() as u32;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    attr.__bindgen_anon_3.prog_name = name;
    unlimited_memory();
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("load a foreign program")
}

/// Lifts the limit on locked memory, to which programs and maps count before Linux 5.11. Where that
/// is refused, what needs it fails.
pub fn unlimited_memory() {
    let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// Attaches a TC program by a TCX link, behind all that are there; it stays for as long as the link
/// is held.
pub fn attach_behind(
    program: BorrowedFd<'_>,
    ifindex: u32,
    direction: Direction,
) -> Result<OwnedFd> {
    /// `BPF_F_AFTER` of linux/bpf.h.
    const AFTER: u32 = 1 << 4;
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = match direction {
        Direction::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
        Direction::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
    };
    attr.link_create.flags = AFTER;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).context("attach a foreign program")
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: bpf_attr is a union of plain integers and arrays, for which zero is valid.
    unsafe { zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is a valid bpf_attr of the size that is passed; the pointers in it are
    // the callers', from buffers that live through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
