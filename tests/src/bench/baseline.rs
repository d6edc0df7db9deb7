//! A program of two instructions that passes every packet: what anything costs at the least.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};
use gate_common::abi::Direction;
use gate_userspace::hooks::Slot;
use gate_userspace::sys;
use nix::net::if_::if_nametoindex;

use crate::foreign::unlimited_memory;

/// `r0 = XDP_PASS; exit`, in the kernel's encoding (struct bpf_insn).
const XDP_PASS: [u64; 2] = [0x0000_0002_0000_00b7, EXIT];
/// `r0 = TC_ACT_UNSPEC; exit`.
const TC_PASS: [u64; 2] = [0xffff_ffff_0000_00b7, EXIT];
const EXIT: u64 = 0x0000_0000_0000_0095;

/// The loaded program.
pub struct Baseline(OwnedFd);

impl Baseline {
    /// Loads the one for a hook. Needs root.
    pub fn load(slot: Slot) -> Result<Self> {
        let (kind, program) = match slot {
            Slot::Xdp => (bpf_prog_type::BPF_PROG_TYPE_XDP, XDP_PASS),
            Slot::TcIngress | Slot::TcEgress => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, TC_PASS),
        };
        let license = c"GPL";
        // SAFETY: bpf_attr is a union of integers and arrays, for which zero is valid.
        let mut attr: bpf_attr = unsafe { zeroed() };
        attr.__bindgen_anon_3.prog_type = kind as u32;
        attr.__bindgen_anon_3.insns = program.as_ptr() as u64;
        attr.__bindgen_anon_3.insn_cnt = program.len() as u32;
        attr.__bindgen_anon_3.license = license.as_ptr() as u64;
        unlimited_memory();
        let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("BPF_PROG_LOAD")?;
        // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it by TCX to an interface of the calling thread's network namespace, until what is
    /// returned is dropped; none where the kernel has no TCX.
    pub fn attach(&self, interface: &str, direction: Direction) -> Result<Option<OwnedFd>> {
        let index = if_nametoindex(interface).with_context(|| format!("find {interface}"))?;
        if sys::tcx_programs(index, direction)?.is_none() {
            return Ok(None);
        }
        let link = sys::attach_tcx(self.0.as_fd(), index, direction);
        Ok(Some(
            link.with_context(|| format!("attach to {interface}"))?,
        ))
    }

    /// The nanoseconds that one run takes, the kernel's own mean over `repeat` runs.
    pub fn run(&self, frame: &[u8], repeat: u32) -> Result<f64> {
        // SAFETY: as above.
        let mut attr: bpf_attr = unsafe { zeroed() };
        attr.test.prog_fd = self.0.as_raw_fd() as u32;
        attr.test.data_in = frame.as_ptr() as u64;
        attr.test.data_size_in = frame.len() as u32;
        attr.test.repeat = repeat;
        bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).context("BPF_PROG_TEST_RUN")?;
        // SAFETY: the call was a test run, so the union holds its answer.
        Ok(f64::from(unsafe { attr.test.duration }))
    }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the attribute is a valid bpf_attr of the size that is passed, and lives through
    // the call, as do the buffers that the callers put into it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}
