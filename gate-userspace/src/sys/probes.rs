//! Calls that show what the kernel has, and do nothing.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_info, bpf_prog_type};

use super::{bpf, bpf_fd, object_info, zeroed_attr};

/// No descriptor: a command that the kernel has answers `EBADF`, one that it has not `EINVAL`.
const NO_FD: u32 = u32::MAX;

/// A command of `bpf(2)` that is about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `BPF_MAP_LOOKUP_ELEM`.
    MapLookup,
    /// `BPF_MAP_LOOKUP_BATCH`.
    MapLookupBatch,
    /// `BPF_MAP_FREEZE`.
    MapFreeze,
    /// `BPF_PROG_TEST_RUN`.
    TestRun,
    /// `BPF_LINK_CREATE` with the attach type `BPF_XDP`.
    XdpLink,
    /// `BPF_LINK_UPDATE`.
    LinkUpdate,
    /// `BPF_LINK_DETACH`.
    LinkDetach,
}

/// Gives a command no object to work on.
///
/// # Errors
/// The kernel's, always.
pub fn try_command(command: Command) -> io::Result<()> {
    let mut attr = zeroed_attr();
    let command = match command {
        Command::MapLookup => {
            attr.__bindgen_anon_2.map_fd = NO_FD;
            bpf_cmd::BPF_MAP_LOOKUP_ELEM
        }
        Command::MapLookupBatch => {
            attr.batch.map_fd = NO_FD;
            bpf_cmd::BPF_MAP_LOOKUP_BATCH
        }
        Command::MapFreeze => {
            attr.__bindgen_anon_2.map_fd = NO_FD;
            bpf_cmd::BPF_MAP_FREEZE
        }
        Command::TestRun => {
            attr.test.prog_fd = NO_FD;
            bpf_cmd::BPF_PROG_TEST_RUN
        }
        Command::XdpLink => {
            attr.link_create.__bindgen_anon_1.prog_fd = NO_FD;
            attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
            bpf_cmd::BPF_LINK_CREATE
        }
        Command::LinkUpdate => {
            attr.link_update.link_fd = NO_FD;
            bpf_cmd::BPF_LINK_UPDATE
        }
        Command::LinkDetach => {
            attr.link_detach.link_fd = NO_FD;
            bpf_cmd::BPF_LINK_DETACH
        }
    };
    bpf(command, &mut attr).map(drop)
}

/// Loads a TC program that lets everything pass. It goes with its descriptor.
///
/// # Errors
/// The kernel's.
pub fn load_classifier() -> io::Result<OwnedFd> {
    const TC_ACT_OK: u64 = 0;
    load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, TC_ACT_OK)
}

/// Loads a program on the look-up of listening sockets that leaves all as it is. It goes with its
/// descriptor.
///
/// # Errors
/// The kernel's.
pub fn load_sk_lookup() -> io::Result<OwnedFd> {
    const SK_PASS: u64 = 1;
    let hook = bpf_attach_type::BPF_SK_LOOKUP as u32;
    load(bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP, hook, SK_PASS)
}

/// Loads a program that returns a number.
fn load(kind: bpf_prog_type, hook: u32, answer: u64) -> io::Result<OwnedFd> {
    // mov64 r0, answer; exit
    let code: [u64; 2] = [(answer << 32) | 0xb7, 0x95];
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_3.prog_type = kind as u32;
    attr.__bindgen_anon_3.expected_attach_type = hook;
    attr.__bindgen_anon_3.insn_cnt = code.len() as u32;
    attr.__bindgen_anon_3.insns = code.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

/// Asks for a descriptor of no process.
///
/// # Errors
/// The kernel's, always.
pub fn try_pidfd_getfd() -> io::Result<()> {
    const NONE: libc::c_int = -1;
    // SAFETY: the call takes integers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_pidfd_getfd, NONE, NONE, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether programs are compiled to machine code, as one was that is loaded for that.
///
/// # Errors
/// The kernel's.
pub fn has_jit() -> io::Result<bool> {
    let program = load_classifier()?;
    // SAFETY: bpf_prog_info is plain integers, for which zero is valid.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    object_info(program.as_fd(), &mut info)?;
    Ok(info.jited_prog_len != 0)
}

/// Whether [`rcu_barrier`](super::rcu_barrier) has its system call.
///
/// # Errors
/// The kernel's.
pub fn has_rcu_barrier() -> io::Result<bool> {
    const MEMBARRIER_CMD_QUERY: libc::c_int = 0;
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: the call takes integers and touches no memory of ours.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    if commands < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(commands & MEMBARRIER_CMD_GLOBAL != 0)
}
