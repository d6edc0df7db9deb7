//! The restart command of the lab's backend: stop the old one, stay away for a while, start the new.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, FromArgMatches};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::text::parse_duration;
use crate::{backend, exe, listener};

/// How long the old backend may take to close its listener, and then to end.
const LIMIT: Duration = Duration::from_secs(10);

/// The command line of `gate-lab bounce`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the old backend wrote its process id, and where the new one will
    #[arg(long)]
    pub pid_file: PathBuf,
    /// How long nothing listens, from the old listener's closing
    #[arg(long, default_value = "300ms", value_parser = parse_duration)]
    pub outage: Duration,
    /// Arguments of the new backend
    #[arg(last = true, required = true)]
    pub backend: Vec<OsString>,
}

/// Restarts the backend, and returns as soon as the new one is started.
pub fn bounce(options: &Options) -> Result<()> {
    let backend = parse(&options.backend)?;
    let old = read_pid(&options.pid_file)?;
    // So that the next restart finds none before the new one has written its own.
    std::fs::remove_file(&options.pid_file)
        .with_context(|| format!("remove {}", options.pid_file.display()))?;
    kill(old, Signal::SIGTERM).with_context(|| format!("send SIGTERM to process {old}"))?;
    let mut closed = Instant::now();
    for &address in &backend.listen {
        closed = listener::wait_until(address, false, LIMIT)?;
    }
    wait_until_gone(old)?;
    sleep(options.outage.saturating_sub(closed.elapsed()));
    start(&backend::Options {
        pid_file: Some(options.pid_file.clone()),
        ..backend
    })
}

fn parse(args: &[OsString]) -> Result<backend::Options> {
    let command =
        backend::Options::augment_args(clap::Command::new("backend")).no_binary_name(true);
    let matches = command
        .try_get_matches_from(args)
        .context("read the backend's arguments")?;
    backend::Options::from_arg_matches(&matches).context("read the backend's arguments")
}

/// Waits for the file: a backend listens before it writes it.
fn read_pid(path: &Path) -> Result<Pid> {
    let late = Instant::now() + LIMIT;
    while !path.exists() && Instant::now() < late {
        sleep(Duration::from_millis(1));
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let pid = text
        .trim()
        .parse()
        .with_context(|| format!("read {}", path.display()))?;
    Ok(Pid::from_raw(pid))
}

fn wait_until_gone(process: Pid) -> Result<()> {
    let late = Instant::now() + LIMIT;
    while is_alive(&std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default()) {
        if Instant::now() > late {
            bail!("process {process} still runs {LIMIT:?} after its listener closed");
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Is this the stat line of a process that has not ended? One that waits to be reaped has.
fn is_alive(stat: &str) -> bool {
    // The name before the state is in brackets, and may hold brackets and spaces itself.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Starts a backend that is nobody's child and holds on to nobody's files.
fn start(options: &backend::Options) -> Result<()> {
    let mut command = Command::new(exe::lab()?);
    command.arg("backend").args(options.to_args());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid(2) is async-signal-safe, and the closure does nothing else.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(())
        });
    }
    command.spawn().context("start the new backend")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_is_not_alive() {
        assert!(is_alive("12 (a) b) S 1 12"));
        assert!(!is_alive("12 (gate-lab) Z 1 12"));
        assert!(!is_alive(""));
    }

    #[test]
    fn backend_arguments_are_read() {
        let args = ["--listen", "10.0.0.5:80", "--service-time", "5ms"].map(OsString::from);
        let options = parse(&args).unwrap();
        assert_eq!(options.service_time, Duration::from_millis(5));
        assert!(parse(&[]).is_err());
    }
}
