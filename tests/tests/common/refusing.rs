//! A kernel that refuses one request of sock_diag.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use gate_tests::exe;
use gate_tests::topology::{Output, Side, Topology};

use super::LIMIT;

/// `SOCK_DESTROY` of linux/sock_diag.h.
const SOCK_DESTROY: u16 = 21;
/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` of linux/seccomp.h.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// Runs `gate` in the server namespace as on a kernel without `CONFIG_INET_DIAG_DESTROY`: a seccomp
/// filter asks about each netlink request, and those to destroy a socket are answered with
/// `EOPNOTSUPP`.
#[track_caller]
pub fn without_sock_destroy(topology: &Topology, args: &[&str]) -> Output {
    let done = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let listener = told.recv().unwrap();
            while !done.load(Ordering::Relaxed) {
                answer(&listener).unwrap();
            }
        });
        // The filter is this thread's, and goes to the processes that it starts.
        let gate = scope.spawn(|| {
            tell.send(install().unwrap()).unwrap();
            let mut command = Command::new(exe::gate().unwrap());
            topology.output(Side::Server, command.args(args), LIMIT)
        });
        let output = gate.join();
        done.store(true, Ordering::Relaxed);
        output.unwrap().unwrap()
    })
}

fn install() -> io::Result<OwnedFd> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        // The call's number.
        step(LOAD, 0, 0, 0),
        step(EQUAL, libc::SYS_sendto as u32, 0, 1),
        step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the program and its steps live through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Answers the next call, if there is one within 10 ms.
fn answer(listener: &OwnedFd) -> io::Result<()> {
    let mut ready = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: it is one pollfd, and lives through the call.
    let count = unsafe { libc::poll(&raw mut ready, 1, 10) };
    if count <= 0 || ready.revents & libc::POLLIN == 0 {
        return Ok(());
    }
    // SAFETY: plain integers, for which zero is valid, and which the kernel wants zeroed.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is the one that this ioctl writes.
    if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut call) } != 0 {
        // Its process was killed.
        return Ok(());
    }
    let (error, flags) = match message_type(&call)? {
        SOCK_DESTROY => (-libc::EOPNOTSUPP, 0),
        _ => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let mut response = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error,
        flags,
    };
    // SAFETY: the structure is the one that this ioctl reads. An error means that the process is gone.
    let _gone = unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut response) };
    Ok(())
}

/// The type in the netlink header that a process sends.
fn message_type(call: &libc::seccomp_notif) -> io::Result<u16> {
    let mut bytes = [0; 2];
    let memory = File::open(format!("/proc/{}/mem", call.pid))?;
    memory.read_exact_at(&mut bytes, call.data.args[1] + 4)?;
    Ok(u16::from_ne_bytes(bytes))
}
