//! bpf(2) itself, for what aya does not make.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info, bpf_prog_type};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// An attribute with nothing in it.
pub fn attr() -> bpf_attr {
    // SAFETY: bpf_attr is a union of plain integers and arrays, for which zero is valid.
    unsafe { zeroed() }
}

/// Calls bpf(2); what it returns.
///
/// # Safety
/// The pointers in the attribute are to buffers as large as it says, which live through the call.
///
/// # Errors
/// The kernel's.
pub unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is a valid bpf_attr of the size that is passed; the caller sees to
    // the pointers in it.
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
    Ok(result)
}

/// As [`call`], for commands that return a descriptor.
///
/// # Safety
/// As for [`call`], and the command returns a new descriptor.
///
/// # Errors
/// The kernel's.
pub unsafe fn object(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { call(command, attr)? };
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Loads a program of this name that answers every packet with this code.
///
/// # Errors
/// As [`load`].
pub fn answering(kind: bpf_prog_type, code: i32, name: &str) -> io::Result<OwnedFd> {
    // mov64 r0, code; exit
    load(
        kind,
        &[insn(0xb7, 0, 0, 0, code), insn(0x95, 0, 0, 0, 0)],
        name,
    )
}

/// One instruction (`struct bpf_insn` of linux/bpf.h): code, registers, offset, immediate.
pub const fn insn(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

/// Loads a program of this name. A longer name than 15 bytes is cut.
///
/// # Errors
/// The kernel's.
pub fn load(kind: bpf_prog_type, instructions: &[u64], name: &str) -> io::Result<OwnedFd> {
    let mut attr = attr();
    attr.__bindgen_anon_3.prog_type = kind as u32;
    attr.__bindgen_anon_3.insn_cnt = instructions.len() as u32;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    attr.__bindgen_anon_3.prog_name = bytes;
    unlimited_memory();
    // SAFETY: the instructions and the licence live through the call.
    unsafe { object(bpf_cmd::BPF_PROG_LOAD, &mut attr) }
}

/// Runs an XDP program this often on copies of a frame, and does with each what it says
/// (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18).
///
/// # Errors
/// The kernel's.
pub fn run_live(program: &OwnedFd, frame: &[u8], count: u32) -> io::Result<()> {
    const LIVE_FRAMES: u32 = 1 << 1;
    /// Frames that the kernel makes before it hands them on.
    const BATCH: u32 = 64;
    let mut attr = attr();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.repeat = count;
    attr.test.batch_size = BATCH;
    attr.test.flags = LIVE_FRAMES;
    // SAFETY: the frame is as long as the attribute says, and lives through the call.
    unsafe { call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// What a test run came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// What the program returned.
    pub answer: u32,
    /// What one run took, the kernel's own mean.
    pub nanoseconds: f64,
}

/// Runs a program on a frame so many times.
///
/// # Errors
/// The kernel's.
pub fn timed(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Run> {
    let mut attr = attr();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.repeat = repeat;
    // SAFETY: the frame is of the size that is passed, and lives through the call.
    unsafe { call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)? };
    // SAFETY: the call was a test run, so the union holds its answer.
    let test = unsafe { attr.test };
    Ok(Run {
        answer: test.retval,
        nanoseconds: f64::from(test.duration),
    })
}

/// Opens what is pinned there.
///
/// # Errors
/// The kernel's; also where nothing is pinned, or a folder is there.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path ends with a zero and lives through the call, which returns a descriptor.
    unsafe { object(bpf_cmd::BPF_OBJ_GET, &mut attr) }
}

/// How often a program has run while the kernel kept statistics (`BPF_ENABLE_STATS`, Linux 5.8).
///
/// # Errors
/// The kernel's.
pub fn runs(program: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: bpf_prog_info is plain integers, for which zero is valid.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    let mut attr = attr();
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    // SAFETY: the info is of the size that is passed, and lives through the call.
    unsafe { call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info.run_cnt)
}

/// Lifts the limit on locked memory, to which programs and maps count before Linux 5.11. Where that
/// is refused, what needs it fails.
pub fn unlimited_memory() {
    let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}
