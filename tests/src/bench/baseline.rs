//! An XDP program of two instructions that passes every packet: what anything costs at the least.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};

/// `r0 = XDP_PASS; exit`, in the kernel's encoding (struct bpf_insn).
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The loaded program.
pub struct Baseline(OwnedFd);

impl Baseline {
    /// Loads it. Needs root.
    pub fn load() -> Result<Self> {
        let license = c"GPL";
        // SAFETY: bpf_attr is a union of integers and arrays, for which zero is valid.
        let mut attr: bpf_attr = unsafe { zeroed() };
        attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
        attr.__bindgen_anon_3.insns = PASS.as_ptr() as u64;
        attr.__bindgen_anon_3.insn_cnt = PASS.len() as u32;
        attr.__bindgen_anon_3.license = license.as_ptr() as u64;
        let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("BPF_PROG_LOAD")?;
        // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
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
