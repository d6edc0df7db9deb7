//! Asks the running kernel.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported};
use gate_common::abi::Direction;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Answer, Probe};
use crate::attach::NO_TCX;
use crate::endpoint::Endpoint;
use crate::filters;
use crate::interfaces::LOOPBACK;
use crate::sockets;
use crate::sys;
use crate::sys::probes::{self, Command};

/// Tries one thing. Whatever is made for that is gone when this returns.
pub fn ask(probe: Probe) -> Answer {
    let command = |command| probes::try_command(command).map(|()| true);
    let answer = match probe {
        Probe::Bpf => command(Command::MapLookup),
        Probe::XdpLink => command(Command::XdpLink),
        Probe::LinkDetach => command(Command::LinkDetach),
        Probe::LinkUpdate => command(Command::LinkUpdate),
        Probe::MapBatch => command(Command::MapLookupBatch),
        Probe::GlobalData => command(Command::MapFreeze),
        Probe::TestRun => command(Command::TestRun),
        Probe::RingBuffer => is_map_supported(MapType::RingBuf).map_err(syscall_error),
        Probe::BootClock => helper(ProgramType::Xdp, BpfHelper::BPF_FUNC_ktime_get_boot_ns),
        Probe::Jiffies => helper(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_jiffies64),
        Probe::FibLookup => helper(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_fib_lookup),
        Probe::CgroupMemory => helper(
            ProgramType::SchedClassifier,
            BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        ),
        // As attaching does it.
        Probe::Tcx if std::env::var_os(NO_TCX).is_some() => Ok(false),
        Probe::Tcx => {
            sys::tcx_programs(LOOPBACK, Direction::Ingress).map(|programs| programs.is_some())
        }
        Probe::Clsact => clsact(),
        Probe::SockDiag => {
            let any = Endpoint {
                address: None,
                port: 1,
            };
            sockets::listeners(any).map(|_| true)
        }
        Probe::SockDestroy => sockets::can_destroy(),
        Probe::RawSocket => {
            let raw = Some(Protocol::from(libc::IPPROTO_RAW));
            Socket::new(Domain::IPV4, Type::RAW, raw).map(|_| true)
        }
        Probe::SkLookup => probes::load_sk_lookup().map(|_| true),
        Probe::PidfdGetfd => probes::try_pidfd_getfd().map(|()| true),
        Probe::Barrier => probes::has_rcu_barrier(),
        Probe::Jit => probes::has_jit(),
        Probe::LinearSyn => Path::new("/proc/sys/net/ipv4/tcp_syn_linear_timeouts").try_exists(),
    };
    answer.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

fn helper(kind: ProgramType, helper: BpfHelper) -> io::Result<bool> {
    is_helper_supported(kind, helper).map_err(|error| match error {
        ProgramError::SyscallError(error) => syscall_error(error),
        other => io::Error::other(other),
    })
}

fn syscall_error(error: SyscallError) -> io::Error {
    error.io_error
}

/// Attaches a filter in a network namespace of its own, which goes with its only thread.
fn clsact() -> io::Result<bool> {
    let attach = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let program = probes::load_classifier()?;
        filters::make_qdisc(LOOPBACK)?;
        filters::add(LOOPBACK, Direction::Ingress, program.as_fd(), "probe")?;
        Ok(true)
    };
    std::thread::Builder::new()
        .spawn(attach)?
        .join()
        .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}
