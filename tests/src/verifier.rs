//! What the kernel's verifier has to go through to accept the programs.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, bail};
use aya::EbpfLoader;
use aya::maps::Map;
use aya_obj::Object;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_insn, bpf_prog_type};
use gate_userspace::object;

use crate::bpf;

/// A program: its name, its type, and what it is to be attached to, where it is loaded for that.
pub type Program = (&'static str, bpf_prog_type, Option<bpf_attach_type>);

/// The programs on packets.
pub const PROGRAMS: [Program; 4] = [
    ("gate_xdp", bpf_prog_type::BPF_PROG_TYPE_XDP, None),
    (
        "gate_tc_ingress",
        bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
        None,
    ),
    (
        "gate_tc_egress",
        bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
        None,
    ),
    ("gate_replay", bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None),
];

/// The programs on sockets.
pub const STEERING: [Program; 5] = [
    (
        "gate_sk_lookup",
        bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP,
        Some(bpf_attach_type::BPF_SK_LOOKUP),
    ),
    of_cgroup("gate_connect4", bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    of_cgroup("gate_connect6", bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
    of_cgroup(
        "gate_getpeername4",
        bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
    ),
    of_cgroup(
        "gate_getpeername6",
        bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
    ),
];

const fn of_cgroup(name: &'static str, attached: bpf_attach_type) -> Program {
    let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
    (name, kind, Some(attached))
}

/// The instructions that the verifier processes for each program on packets, on interfaces with an
/// Ethernet header or without, in the order of [`PROGRAMS`].
///
/// # Errors
/// Where a program does not load.
pub fn processed(layer3: bool) -> Result<Vec<u64>> {
    let (level, layer3) = (0_u8, u32::from(layer3));
    let mut loader = EbpfLoader::new();
    loader
        .override_global("AYA_LOG_LEVEL", &level, true)
        .override_global("LAYER3", &layer3, true);
    by_verifier(&mut loader, object::OBJECT, &PROGRAMS)
}

/// The same for each program on sockets, in the order of [`STEERING`].
///
/// # Errors
/// Where a program does not load.
pub fn processed_on_sockets() -> Result<Vec<u64>> {
    by_verifier(&mut EbpfLoader::new(), object::STEER, &STEERING)
}

/// By the last line of the verifier's log, which every kernel since 5.2 writes; the program's info
/// has it since 5.16 only.
fn by_verifier(
    loader: &mut EbpfLoader<'_>,
    bytes: &[u8],
    programs: &[Program],
) -> Result<Vec<u64>> {
    // aya makes the maps, and fills and freezes the constants; the programs are loaded here,
    // because aya throws away what the verifier says of one that it accepts.
    let ebpf = loader.load(bytes).context("load the object")?;
    let mut object = Object::parse(bytes).context("parse the object")?;
    let texts: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    let known = std::mem::take(&mut object.maps);
    let mut maps = Vec::new();
    for (name, map) in &known {
        let made = ebpf.map(name).with_context(|| format!("no map {name}"))?;
        maps.push((name.as_str(), fd(made)?, map));
    }
    object.relocate_maps(maps.into_iter(), &texts)?;
    object.relocate_calls(&texts)?;
    programs
        .iter()
        .map(|program| {
            let (name, ..) = program;
            let function = &object.programs[*name];
            let code = &object.functions[&function.function_key()].instructions;
            let log = load(program, code).with_context(|| format!("load {name}"))?;
            parse(&log).with_context(|| format!("no figure in the verifier's log: {log}"))
        })
        .collect()
}

fn fd(map: &Map) -> Result<i32> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::RingBuf(data)
    | Map::SkStorage(data)
    | Map::SockHash(data)) = map
    else {
        bail!("a map of another type");
    };
    Ok(data.fd().as_fd().as_raw_fd())
}

/// Loads a program and lets it go again; what the verifier says.
fn load((_, kind, attached): &Program, code: &[bpf_insn]) -> io::Result<String> {
    /// `BPF_LOG_STATS` of linux/bpf_verifier.h.
    const STATS: u32 = 4;
    let mut log = vec![0_u8; 1 << 20];
    let mut attr = bpf::attr();
    attr.__bindgen_anon_3.prog_type = *kind as u32;
    attr.__bindgen_anon_3.expected_attach_type = attached.map_or(0, |kind| kind as u32);
    attr.__bindgen_anon_3.insn_cnt = code.len() as u32;
    attr.__bindgen_anon_3.insns = code.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"Dual MIT/GPL".as_ptr() as u64;
    attr.__bindgen_anon_3.log_level = STATS;
    attr.__bindgen_anon_3.log_size = log.len() as u32;
    attr.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    // SAFETY: the code, the licence and the log live through the call.
    let loaded = unsafe { bpf::object(bpf_cmd::BPF_PROG_LOAD, &mut attr) };
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]).into_owned();
    match loaded {
        Ok(_) => Ok(text),
        Err(error) => Err(io::Error::new(error.kind(), format!("{error}: {text}"))),
    }
}

/// The figure of `processed N insns (limit …)`.
fn parse(log: &str) -> Option<u64> {
    let (_, rest) = log.rsplit_once("processed ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_found() {
        let log = "verification time 7 usec\nstack depth 8\nprocessed 4781 insns (limit 1000000)\n";
        assert_eq!(parse(log), Some(4781));
        assert_eq!(parse("nothing"), None);
    }
}
