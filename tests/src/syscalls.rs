//! A command that is traced call by call, and killed or stopped at one of them.
//!
//! It runs as a program of its own (`gate-lab trace`), because the kernel ties a traced process to the
//! thread that traces it.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options as Trace};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::exe;
use crate::text::{duration, parse_duration};
use crate::topology::{Output, Process, SCRATCH, Side, Topology};

/// The command line of `gate-lab trace`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// File to write what was seen to
    #[arg(long)]
    pub report: PathBuf,
    /// Kill the command when it is about to make its call of this number, counted from 1
    #[arg(long)]
    pub at: Option<usize>,
    /// Stop it there for a while, and let it go on, instead
    #[arg(long, value_parser = parse_duration, requires = "at")]
    pub pause: Option<Duration>,
    /// Count from when this file is there
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// Note which clocks it asks for; the kernel's fast way to them is hidden from it
    #[arg(long)]
    pub clocks: bool,
    /// The command
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// What was seen of a traced command.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Seen {
    /// The numbers of the calls that it made or was about to make, in order; reads in a row are one.
    pub calls: Vec<u64>,
    /// Whether it came to the call that it was to be killed or stopped at.
    pub reached: bool,
    /// The clocks that it asked for, where these were noted.
    pub clocks: BTreeSet<i32>,
}

impl Seen {
    /// The calls after which something may be different for others: their numbers, counted from 1.
    pub fn changing(&self) -> Vec<usize> {
        let changes = |(index, call): (usize, &u64)| is_changing(*call).then_some(index + 1);
        self.calls.iter().enumerate().filter_map(changes).collect()
    }
}

/// Whether a call of this number may change what outlives the process.
fn is_changing(call: u64) -> bool {
    const CHANGING: [libc::c_long; 20] = [
        libc::SYS_bpf,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_mkdirat,
        libc::SYS_unlinkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_symlinkat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_flock,
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_kill,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_membarrier,
        libc::SYS_exit_group,
    ];
    #[cfg(target_arch = "x86_64")]
    const OLDER: [libc::c_long; 9] = [
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_symlink,
        libc::SYS_fork,
        libc::SYS_vfork,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    const OLDER: [libc::c_long; 0] = [];
    let is_it = |known: &libc::c_long| known.cast_unsigned() == call;
    CHANGING.iter().any(is_it) || OLDER.iter().any(is_it)
}

/// What becomes of a traced command.
#[derive(Clone, Debug, Default)]
pub struct Fate<'a> {
    /// The call at which something happens; none to let it go on to its end.
    pub at: Option<usize>,
    /// How long it is stopped there; none to kill it.
    pub pause: Option<Duration>,
    /// The file since which the calls are counted; none from its start.
    pub from: Option<&'a Path>,
    /// Whether the clocks that it asks for are noted.
    pub clocks: bool,
}

impl Fate<'_> {
    /// It is killed when it is about to make this call.
    pub fn killed_at(call: usize) -> Self {
        Self {
            at: Some(call),
            ..Self::default()
        }
    }
}

/// A traced `gate`.
pub struct Traced {
    /// The process that traces it, which ends as it does.
    pub process: Process,
    report: PathBuf,
}

impl Traced {
    /// Starts `gate` with these arguments in the server namespace.
    pub fn start(topology: &Topology, fate: &Fate<'_>, args: &[&str]) -> Result<Self> {
        let report = Path::new(SCRATCH).join("trace.json");
        topology.remove(Side::Server, &report)?;
        let mut command = Command::new(exe::lab()?);
        command.args(["trace", "--report"]).arg(&report);
        if let Some(at) = fate.at {
            command.args(["--at", &at.to_string()]);
        }
        if let Some(pause) = fate.pause {
            command.args(["--pause", &duration(pause)]);
        }
        if let Some(from) = fate.from {
            command.arg("--from").arg(from);
        }
        if fate.clocks {
            command.arg("--clocks");
        }
        command.arg("--").arg(exe::gate()?).args(args);
        Ok(Self {
            process: topology.spawn(Side::Server, &mut command)?,
            report,
        })
    }

    /// Whether it came to the call at which it is stopped, or to its end.
    pub fn has_come(&self, topology: &Topology) -> Result<bool> {
        topology.run(Side::Server, || Ok(fs::exists(&self.report)?))
    }

    /// Waits until it ends; what it wrote, and what was seen.
    pub fn wait(self, topology: &Topology, limit: Duration) -> Result<(Output, Seen)> {
        let output = self.process.wait(limit)?;
        let text = topology
            .run(Side::Server, || Ok(fs::read_to_string(&self.report)?))
            .with_context(|| format!("read the report of: {output}"))?;
        let seen = serde_json::from_str(&text).context("read what was traced")?;
        Ok((output, seen))
    }
}

/// Runs `gate` under the tracer to its end.
pub fn traced(
    topology: &Topology,
    fate: &Fate<'_>,
    args: &[&str],
    limit: Duration,
) -> Result<(Output, Seen)> {
    Traced::start(topology, fate, args)?.wait(topology, limit)
}

/// Traces a command, writes the report, and ends as the command did.
pub fn trace(options: &Options) -> Result<ExitCode> {
    let mut tracer = Tracer::start(options)?;
    let code = tracer.run()?;
    tracer.report()?;
    Ok(ExitCode::from(code))
}

struct Tracer<'a> {
    options: &'a Options,
    leader: Pid,
    threads: HashSet<Pid>,
    counts: bool,
    seen: Seen,
}

impl<'a> Tracer<'a> {
    /// Starts the command, which stops before its first instruction.
    fn start(options: &'a Options) -> Result<Self> {
        let [program, args @ ..] = &options.command[..] else {
            bail!("no command");
        };
        let mut command = Command::new(program);
        command.args(args);
        // SAFETY: ptrace(2) is one system call, and the closure does nothing else.
        unsafe {
            command.pre_exec(|| Ok(ptrace::traceme()?));
        }
        // Whoever waits for it is `run`, by its id.
        let leader = Pid::from_raw(command.spawn().context("start")?.id().cast_signed());
        for ends in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            // What is sent to the group is meant for the command.
            // SAFETY: ignoring a signal runs no handler.
            unsafe { signal(ends, SigHandler::SigIgn) }.context("ignore a signal")?;
        }
        let first = waitpid(leader, None).context("wait for the first stop")?;
        ensure!(
            matches!(first, WaitStatus::Stopped(_, Signal::SIGTRAP)),
            "it began with {first:?}"
        );
        let follow = Trace::PTRACE_O_TRACESYSGOOD
            | Trace::PTRACE_O_TRACECLONE
            | Trace::PTRACE_O_TRACEEXEC
            | Trace::PTRACE_O_EXITKILL;
        ptrace::setoptions(leader, follow).context("set what is followed")?;
        if options.clocks {
            hide_fast_clocks(leader)?;
        }
        ptrace::syscall(leader, None).context("let it go")?;
        Ok(Self {
            options,
            leader,
            threads: HashSet::from([leader]),
            counts: options.from.is_none(),
            seen: Seen::default(),
        })
    }

    /// Follows it to its end; the exit code, as a shell says it.
    fn run(&mut self) -> Result<u8> {
        loop {
            let status = waitpid(None, Some(WaitPidFlag::__WALL)).context("wait")?;
            match status {
                WaitStatus::Exited(process, code) if process == self.leader => {
                    return Ok(u8::try_from(code).unwrap_or(u8::MAX));
                }
                WaitStatus::Signaled(process, signal, _) if process == self.leader => {
                    return Ok(128 + signal as u8);
                }
                WaitStatus::PtraceSyscall(thread) => {
                    if is_entry(thread) {
                        self.enter(thread)?;
                    }
                    go_on(thread, None)?;
                }
                WaitStatus::PtraceEvent(thread, _, _) => go_on(thread, None)?,
                WaitStatus::Stopped(thread, signal) => {
                    // A new thread begins with a stop that nobody sent.
                    let is_new = self.threads.insert(thread);
                    go_on(thread, (!is_new).then_some(signal))?;
                }
                WaitStatus::Exited(..)
                | WaitStatus::Signaled(..)
                | WaitStatus::Continued(_)
                | WaitStatus::StillAlive => {}
            }
        }
    }

    /// Writes what was seen so far.
    fn report(&self) -> Result<()> {
        let report = serde_json::to_string(&self.seen).context("write the report")?;
        let path = &self.options.report;
        fs::write(path, report).with_context(|| format!("write {}", path.display()))
    }

    /// A thread is about to make a call.
    fn enter(&mut self, thread: Pid) -> Result<()> {
        if !self.counts {
            self.counts = self.options.from.as_ref().is_some_and(|file| file.exists());
            if !self.counts {
                return Ok(());
            }
        }
        let Some((call, first)) = asked(thread) else {
            return Ok(());
        };
        if self.options.clocks && call == libc::SYS_clock_gettime.cast_unsigned() {
            // A clockid_t is an int.
            self.seen.clocks.insert(first as i32);
        }
        // Among reads in a row one is like another: the kernel's types are read in thousands of them.
        let read = libc::SYS_read.cast_unsigned();
        if call == read && self.seen.calls.last() == Some(&read) {
            return Ok(());
        }
        self.seen.calls.push(call);
        if self.options.at != Some(self.seen.calls.len()) {
            return Ok(());
        }
        self.seen.reached = true;
        match self.options.pause {
            // All its threads wait at their next call, because nobody lets them go on.
            Some(pause) => {
                self.report()?;
                sleep(pause);
            }
            None => kill(self.leader, Signal::SIGKILL).context("kill it")?,
        }
        Ok(())
    }
}

/// Whether a thread stopped before a call, and not after it.
fn is_entry(thread: Pid) -> bool {
    ptrace::syscall_info(thread).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY)
}

/// The number of the call that a thread is about to make, and its first argument; none where it was
/// killed meanwhile.
fn asked(thread: Pid) -> Option<(u64, u64)> {
    let info = ptrace::syscall_info(thread).ok()?;
    // SAFETY: the kernel said that this is an entry, so it wrote this member of the union.
    let entry = unsafe { info.u.entry };
    Some((entry.nr, entry.args[0]))
}

/// Hides the vDSO from a process that has not run yet, so that it asks for clocks by system calls: its
/// place is told in the list of words (type and value) behind the environment on the stack.
fn hide_fast_clocks(process: Pid) -> Result<()> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).context("read its maps")?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]"));
    let bounds = stack.and_then(|line| line.split(' ').next()?.split_once('-'));
    let (low, high) = bounds.context("it has no stack")?;
    let bound = |text| usize::from_str_radix(text, 16).context("read its maps");
    let (low, high) = (bound(low)?, bound(high)?);
    let list = fs::read(format!("/proc/{process}/auxv")).context("read its auxv")?;
    let word = size_of::<usize>();
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{process}/mem"))
        .context("open its memory")?;
    let mut bytes = vec![0; high - low];
    memory
        .read_exact_at(&mut bytes, low as u64)
        .context("read its stack")?;
    let is_list = |at: &usize| bytes[*at..].starts_with(&list);
    let start = (0..bytes.len()).step_by(word).find(is_list);
    let start = start.context("its auxv is not on its stack")?;
    for entry in (start..start + list.len()).step_by(2 * word) {
        let kind = libc::AT_SYSINFO_EHDR.to_ne_bytes();
        if bytes[entry..].starts_with(&kind) {
            let ignored = libc::AT_IGNORE.to_ne_bytes();
            let at = (low + entry) as u64;
            memory
                .write_all_at(&ignored, at)
                .context("write to its stack")?;
        }
    }
    Ok(())
}

fn go_on(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(thread, signal) {
        // It was killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).context("let it go on"),
    }
}
