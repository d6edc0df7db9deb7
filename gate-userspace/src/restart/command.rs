//! The restart's command: found, started, waited for, stopped.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::CommandEnd;
use super::driver::Request;
use crate::clock;
use crate::error::{Error, Result};

/// Between two looks at a command that is being stopped.
const STOP_POLL: Duration = Duration::from_millis(10);

/// What a stopped command gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Finds the command's program as a shell would, so that a wrong name changes nothing.
pub(super) fn find(command: &[OsString]) -> Result<PathBuf> {
    let name = command.first().map_or(Path::new(""), Path::new);
    let shown = || name.display().to_string();
    if name.components().count() > 1 || name.has_root() {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoCommand { command: shown() })
            }
            Err(cause) => Err(Error::NotExecutable {
                command: shown(),
                cause,
            }),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut refused = None;
    for candidate in std::env::split_paths(&path).map(|folder| folder.join(name)) {
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                refused.get_or_insert(error);
            }
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(cause) => Error::NotExecutable {
            command: shown(),
            cause,
        },
        None => Error::NoCommand { command: shown() },
    })
}

fn executable(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    access(path, AccessFlags::X_OK).map_err(io::Error::from)
}

/// Starts the command in a process group of its own, so that it can be stopped whole and a
/// Ctrl-C reaches gate first.
pub(super) fn spawn(program: &Path, request: &Request) -> Result<Child> {
    let refused = |cause| Error::NotStarted {
        command: program.display().to_string(),
        cause,
    };
    let mut command = Command::new(program);
    command
        .args(request.command.iter().skip(1))
        .process_group(0);
    if let Some(name) = request.command.first() {
        command.arg0(name);
    }
    if io::stdin().is_terminal() {
        // A background group that reads the terminal would be stopped, and hang.
        command.stdin(Stdio::null());
    }
    if request.reserve_stdout {
        let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(refused)?;
        command.stdout(stderr);
    }
    command.spawn().map_err(refused)
}

pub(super) async fn ended(child: &mut Option<Child>) -> CommandEnd {
    match child {
        Some(running) => {
            let status = running.wait().await;
            *child = None;
            // A child that can't be waited for is gone; that counts as a failure.
            status.map_or(CommandEnd::Code(1), end_of)
        }
        None => std::future::pending().await,
    }
}

fn end_of(status: ExitStatus) -> CommandEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => CommandEnd::Code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => CommandEnd::Signal(signal.unwrap_or(0)),
    }
}

/// Stops the command and its process group.
pub(super) async fn stop(child: &mut Child) {
    let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) else {
        return;
    };
    let group = Pid::from_raw(group);
    // An error means that the group is gone, which is what is wanted.
    let _gone = killpg(group, Signal::SIGTERM);
    // It may have been stopped for reading the terminal, and would not see the signal.
    let _gone = killpg(group, Signal::SIGCONT);
    // The leader is reaped last, so that nobody else can get the group's number.
    let until = clock::after(clock::now(), GRACE);
    while clock::now() < until && lives(group) {
        sleep(STOP_POLL).await;
    }
    let _gone = killpg(group, Signal::SIGKILL);
    let _status = child.wait().await;
}

/// Whether a process of the group still runs. One that waits to be reaped doesn't.
fn lives(group: Pid) -> bool {
    let runs = |stat: String| {
        // Behind the name, which is in brackets and may hold anything: state, parent, group.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        let same = fields.nth(1)?.parse() == Ok(group.as_raw());
        (same && !matches!(state, "Z" | "X")).then_some(())
    };
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return killpg(group, None).is_ok();
    };
    processes
        .filter_map(|process| std::fs::read_to_string(process.ok()?.path().join("stat")).ok())
        .any(|stat| runs(stat).is_some())
}
