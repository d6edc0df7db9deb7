//! BPF programs and maps that are not gate's.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_map_type, bpf_prog_type};
use gate_common::abi::Direction;

use crate::bpf;

/// Loads a TC program with the name `foreign` that answers every packet with this code.
pub fn classifier(code: i32) -> Result<OwnedFd> {
    program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, code)
}

/// Loads a TC program of this name that passes everything on.
pub fn named(name: &str) -> Result<OwnedFd> {
    /// Of linux/pkt_cls.h.
    const TC_ACT_UNSPEC: i32 = -1;
    let kind = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS;
    bpf::answering(kind, TC_ACT_UNSPEC, name).with_context(|| format!("load {name}"))
}

/// Loads an XDP program with the name `foreign` that passes everything.
pub fn xdp() -> Result<OwnedFd> {
    /// Of `enum xdp_action` of linux/bpf.h.
    const PASS: i32 = 2;
    program(bpf_prog_type::BPF_PROG_TYPE_XDP, PASS)
}

fn program(kind: bpf_prog_type, code: i32) -> Result<OwnedFd> {
    bpf::answering(kind, code, "foreign").context("load a foreign program")
}

/// Makes an array with values of this many bytes.
pub fn array(value_size: u32, max_entries: u32) -> Result<OwnedFd> {
    let mut attr = bpf::attr();
    attr.__bindgen_anon_1.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    attr.__bindgen_anon_1.key_size = 4;
    attr.__bindgen_anon_1.value_size = value_size;
    attr.__bindgen_anon_1.max_entries = max_entries;
    bpf::unlimited_memory();
    // SAFETY: the attribute points to nothing, and the command returns a descriptor.
    unsafe { bpf::object(bpf_cmd::BPF_MAP_CREATE, &mut attr) }.context("make a foreign map")
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
    let mut attr = bpf::attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = match direction {
        Direction::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
        Direction::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
    };
    attr.link_create.flags = AFTER;
    // SAFETY: the attribute points to nothing, and the command returns a descriptor.
    unsafe { bpf::object(bpf_cmd::BPF_LINK_CREATE, &mut attr) }.context("attach a foreign program")
}
