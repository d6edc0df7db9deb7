//! A program of two instructions that passes every packet: what anything costs at the least.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_cmd, bpf_prog_type};
use gate_common::abi::Direction;
use gate_userspace::hooks::Slot;
use gate_userspace::sys;
use nix::net::if_::if_nametoindex;

use crate::bpf;

/// Of `enum xdp_action` of linux/bpf.h.
const XDP_PASS: i32 = 2;
/// Of linux/pkt_cls.h.
const TC_ACT_UNSPEC: i32 = -1;

/// The loaded program.
pub struct Baseline(OwnedFd);

impl Baseline {
    /// Loads the one for a hook. Needs root.
    pub fn load(slot: Slot) -> Result<Self> {
        let (kind, pass) = match slot {
            Slot::Xdp => (bpf_prog_type::BPF_PROG_TYPE_XDP, XDP_PASS),
            Slot::TcIngress | Slot::TcEgress => {
                (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, TC_ACT_UNSPEC)
            }
        };
        let program = bpf::answering(kind, pass, "baseline").context("BPF_PROG_LOAD")?;
        Ok(Self(program))
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
        let mut attr = bpf::attr();
        attr.test.prog_fd = self.0.as_raw_fd() as u32;
        attr.test.data_in = frame.as_ptr() as u64;
        attr.test.data_size_in = frame.len() as u32;
        attr.test.repeat = repeat;
        // SAFETY: the frame is of the size that is passed, and lives through the call.
        unsafe { bpf::call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.context("BPF_PROG_TEST_RUN")?;
        // SAFETY: the call was a test run, so the union holds its answer.
        Ok(f64::from(unsafe { attr.test.duration }))
    }
}
