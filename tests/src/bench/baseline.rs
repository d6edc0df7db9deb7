//! A program of two instructions that answers every packet alike: what anything costs at the least.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::generated::bpf_prog_type;
use gate_common::abi::Direction;
use gate_userspace::hooks::Slot;
use gate_userspace::sys;
use nix::net::if_::if_nametoindex;

use crate::bpf;

/// Of `enum xdp_action` of linux/bpf.h.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
/// Of linux/pkt_cls.h.
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

/// Of linux/if_link.h: where XDP runs.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The loaded program.
pub struct Baseline(OwnedFd);

impl Baseline {
    /// Loads the one for a hook that passes every packet. Needs root.
    pub fn load(slot: Slot) -> Result<Self> {
        Self::answering(slot, XDP_PASS, TC_ACT_UNSPEC)
    }

    /// Loads the one for a hook that drops every packet. Needs root.
    pub fn dropping(slot: Slot) -> Result<Self> {
        Self::answering(slot, XDP_DROP, TC_ACT_SHOT)
    }

    fn answering(slot: Slot, xdp: i32, tc: i32) -> Result<Self> {
        let (kind, answer) = match slot {
            Slot::Xdp => (bpf_prog_type::BPF_PROG_TYPE_XDP, xdp),
            Slot::TcIngress | Slot::TcEgress => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, tc),
        };
        let program = bpf::answering(kind, answer, "baseline").context("BPF_PROG_LOAD")?;
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

    /// Attaches it by XDP, in the driver or in the stack, to an interface of the calling thread's
    /// network namespace, until what is returned is dropped.
    pub fn attach_xdp(&self, interface: &str, is_generic: bool) -> Result<OwnedFd> {
        let index = if_nametoindex(interface).with_context(|| format!("find {interface}"))?;
        let flags = match is_generic {
            true => XDP_FLAGS_SKB_MODE,
            false => XDP_FLAGS_DRV_MODE,
        };
        sys::attach_xdp(self.0.as_fd(), index, flags)
            .with_context(|| format!("attach to {interface} by XDP"))
    }

    /// How often it has run while the kernel kept statistics.
    pub fn runs(&self) -> Result<u64> {
        bpf::runs(self.0.as_fd()).context("ask how often a program ran")
    }

    /// The nanoseconds that one run takes, the kernel's own mean over `repeat` runs.
    pub fn run(&self, frame: &[u8], repeat: u32) -> Result<f64> {
        bpf::timed(self.0.as_fd(), frame, repeat)
            .map(|run| run.nanoseconds)
            .context("BPF_PROG_TEST_RUN")
    }
}
