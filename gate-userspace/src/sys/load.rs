//! Loading programs and their types, and what a program may rely on in a map.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use aya_obj::generated::{bpf_cmd, bpf_insn};

use super::{bpf, bpf_fd, zeroed_attr};

/// What is said of a program that is refused, at the most.
const LOG: usize = 1 << 20;

/// Loads types.
///
/// # Errors
/// The kernel's.
pub fn load_btf(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_7.btf_size = types.len() as u32;
    attr.__bindgen_anon_7.btf = types.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_BTF_LOAD, &mut attr)
}

/// Loads a program of a type for a hook.
///
/// # Errors
/// The kernel's, with what the verifier says.
pub fn load_program(
    (kind, hook): (u32, u32),
    name: &str,
    code: &[bpf_insn],
    license: &CStr,
) -> Result<OwnedFd, (io::Error, String)> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_3.prog_type = kind;
    attr.__bindgen_anon_3.expected_attach_type = hook;
    attr.__bindgen_anon_3.insn_cnt = code.len() as u32;
    attr.__bindgen_anon_3.insns = code.as_ptr() as u64;
    attr.__bindgen_anon_3.license = license.as_ptr() as u64;
    // SAFETY: the attribute was zeroed, and a command's part of it is plain integers.
    let room = unsafe { &mut attr.__bindgen_anon_3.prog_name };
    // The last one stays 0.
    let last = room.len() - 1;
    for (room, byte) in room[..last].iter_mut().zip(name.bytes()) {
        *room = byte as libc::c_char;
    }
    let error = match bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    // Why is asked only now: writing it down takes longer than loading.
    let mut log = vec![0_u8; LOG];
    attr.__bindgen_anon_3.log_level = 1;
    attr.__bindgen_anon_3.log_size = LOG as u32;
    attr.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    match bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) {
        Ok(program) => Ok(program),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(LOG);
            Err((error, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

/// Writes the only value of an array, and lets nobody change it any more, so that the verifier can
/// rely on it.
///
/// # Errors
/// The kernel's.
pub fn settle_constants(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(&key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr).map(drop)
}
