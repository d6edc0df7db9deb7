//! A process inside a topology, and what it wrote.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigHandler, Signal, kill, killpg, signal};
use nix::unistd::Pid;

use super::lock;

/// How often a process that is waited for is looked at.
const GLANCE: Duration = Duration::from_millis(2);

/// A process started by [`super::Topology::spawn`]. Dropping the handle leaves it running; the
/// topology ends it.
pub struct Process {
    name: String,
    child: Arc<Mutex<Child>>,
    stdout: File,
    stderr: File,
    started: Instant,
}

impl Process {
    /// Starts the command where the calling thread is.
    pub(super) fn spawn(command: &mut Command) -> Result<Self> {
        let name = describe(command);
        // Files in memory, not pipes: a daemon that keeps one open holds up nobody.
        let (stdout, stderr) = (memory("stdout")?, memory("stderr")?);
        // SAFETY: sigaction(2) is async-signal-safe, and the closure does nothing else.
        unsafe {
            // Tests that run under nohup must not hand that on.
            command.pre_exec(|| Ok(signal(Signal::SIGHUP, SigHandler::SigDfl).map(drop)?));
        }
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().context("dup stdout")?)
            .stderr(stderr.try_clone().context("dup stderr")?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let child = Arc::new(Mutex::new(child));
        Ok(Self {
            name,
            child,
            stdout,
            stderr,
            started,
        })
    }

    pub(super) fn child(&self) -> Arc<Mutex<Child>> {
        Arc::clone(&self.child)
    }

    /// Right before it was forked.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The process id as this process sees it. Inside the topology it has another.
    pub fn id(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.send(signal, kill)
    }

    /// Sends a signal to the process and those it started in its group.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        self.send(signal, killpg)
    }

    fn send<S>(&self, signal: S, how: fn(Pid, S) -> nix::Result<()>) -> Result<()> {
        let mut child = lock(&self.child);
        // Once it is reaped its id may be anybody's.
        if let Some(status) = child.try_wait().context("wait for a process")? {
            bail!("{} has ended already: {status}", self.name);
        }
        how(Pid::from_raw(child.id().cast_signed()), signal)
            .with_context(|| format!("signal {}", self.name))
    }

    /// Has it ended?
    pub fn has_ended(&self) -> Result<bool> {
        Ok(self.status()?.is_some())
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> Result<String> {
        read(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> Result<String> {
        read(&self.stderr)
    }

    /// Where each of its threads is, looked at twice: the system call with its arguments, and the kernel's
    /// function that it waits in (proc(5)).
    fn stuck(&self) -> String {
        let mut text = String::new();
        for _ in 0..2 {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id()));
            for task in tasks.into_iter().flatten().flatten() {
                let read = |name| std::fs::read_to_string(task.path().join(name));
                let [call, at] = ["syscall", "wchan"].map(|name| read(name).unwrap_or_default());
                text += &format!("\n{}: {} in {at}", task.path().display(), call.trim());
            }
            sleep(Duration::from_millis(20));
        }
        text
    }

    /// Waits until it ends. If it takes longer than `limit`, its group is killed and that is an
    /// error, with what it wrote.
    pub fn wait(&self, limit: Duration) -> Result<Output> {
        let late = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.status()? {
                break status;
            }
            if Instant::now() > late {
                let stuck = self.stuck();
                self.signal_group(Signal::SIGKILL)?;
                bail!(
                    "{} took longer than {limit:?}: {}{}{stuck}",
                    self.name,
                    self.stdout()?,
                    self.stderr()?
                );
            }
            sleep(GLANCE);
        };
        Ok(Output {
            name: self.name.clone(),
            status,
            stdout: self.stdout()?,
            stderr: self.stderr()?,
            took: self.started.elapsed(),
        })
    }

    fn status(&self) -> Result<Option<ExitStatus>> {
        lock(&self.child)
            .try_wait()
            .with_context(|| format!("wait for {}", self.name))
    }
}

/// What a process left when it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The program and its arguments.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// From its start until its end was noticed, to 2 ms.
    pub took: Duration,
}

impl Output {
    /// Its exit code, or as a shell says it, 128 and the number of the signal that ended it.
    pub fn code(&self) -> i32 {
        let by_signal = || 128 + self.status.signal().unwrap_or(0);
        self.status.code().unwrap_or_else(by_signal)
    }

    /// An error that says what it wrote, unless it exited with 0.
    pub fn ok(self) -> Result<Self> {
        if self.code() != 0 {
            bail!("{self}");
        }
        Ok(self)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.status)?;
        for text in [&self.stdout, &self.stderr] {
            if !text.trim().is_empty() {
                write!(f, "; {}", text.trim())?;
            }
        }
        Ok(())
    }
}

/// The command that these words are: a program and its arguments.
///
/// # Panics
///
/// When there are none.
pub fn command<S: AsRef<OsStr>>(words: &[S]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// The program's own name, without its folder, and its arguments.
fn describe(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let words: Vec<_> = [name]
        .into_iter()
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

fn memory(name: &str) -> Result<File> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
    Ok(File::from(fd))
}

/// Reads from the start, and leaves the offset, which the process shares, where it is.
fn read(file: &File) -> Result<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match file.read_at(&mut chunk, bytes.len() as u64) {
            Ok(0) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read what a process wrote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(status: i32) -> Output {
        Output {
            name: "gate up".into(),
            status: ExitStatus::from_raw(status),
            stdout: String::new(),
            stderr: "no such interface\n".into(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(output(0).code(), 0);
        assert_eq!(output(3 << 8).code(), 3);
        assert_eq!(output(9).code(), 137);
    }

    #[test]
    fn a_failure_says_what_was_written() {
        let error = output(1 << 8).ok().unwrap_err().to_string();
        assert_eq!(error, "gate up: exit status: 1; no such interface");
        assert!(output(0).ok().is_ok());
    }

    #[test]
    fn a_command_is_named_without_its_folder() {
        assert_eq!(
            describe(Command::new("/opt/x/gate").arg("up").arg("eth0")),
            "gate up eth0"
        );
    }
}
