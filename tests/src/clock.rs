//! The machine's time of day, set for a while, by a process of its own (`gate-lab clock`) that sets it
//! back when whoever asked for it is gone, however that ended.
//!
//! No namespace has a time of day of its own, so the whole machine sees it.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::exe;
use crate::text::{duration, parse_duration};

/// The command line of `gate-lab clock`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// By how much it is set forward
    #[arg(long, value_parser = parse_duration)]
    pub by: Duration,
    /// Set it back instead
    #[arg(long)]
    pub back: bool,
}

/// Sets the time of day until its input ends, and then to what it would be without that.
pub fn keep(options: &Options) -> Result<()> {
    for ends in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: ignoring a signal runs no handler.
        unsafe { signal(ends, SigHandler::SigIgn) }.context("ignore a signal")?;
    }
    let right = Right(ahead()?);
    let other = match options.back {
        true => right.0.checked_sub(options.by),
        false => right.0.checked_add(options.by),
    };
    set(other.context("no such time")?)?;
    println!("set");
    stdout().flush().context("write to stdout")?;
    // An error is an end, too.
    let _end = stdin().read_to_end(&mut Vec::new());
    drop(right);
    Ok(())
}

/// How far the time of day is ahead of the time since boot, which nobody sets, and which goes on while
/// the machine is suspended.
pub fn ahead() -> Result<Duration> {
    let day = clock_gettime(ClockId::CLOCK_REALTIME).context("CLOCK_REALTIME")?;
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).context("CLOCK_BOOTTIME")?;
    Duration::from(day)
        .checked_sub(boot.into())
        .context("the machine was booted before 1970")
}

/// Sets the time of day so far ahead of the time since boot.
fn set(ahead: Duration) -> Result<()> {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).context("CLOCK_BOOTTIME")?;
    let day = TimeSpec::from(ahead + boot.into());
    clock_settime(ClockId::CLOCK_REALTIME, day).context("clock_settime(CLOCK_REALTIME)")
}

/// How far the time of day is ahead when it is right; set so again when this is dropped.
struct Right(Duration);

impl Drop for Right {
    fn drop(&mut self) {
        if let Err(error) = set(self.0) {
            eprintln!("gate-lab: the time of day is wrong: {error:#}");
        }
    }
}

/// The time of day is another for as long as this is there.
pub struct Elsewhen(Child);

impl Elsewhen {
    /// Sets it so much later, or earlier.
    pub fn start(by: Duration, back: bool) -> Result<Self> {
        let mut command = Command::new(exe::lab()?);
        command.args(["clock", "--by", &duration(by)]);
        if back {
            command.arg("--back");
        }
        // What ends the tests' group must not end it.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start gate-lab clock")?;
        let mut told = [0; 4];
        let out = child.stdout.as_mut().context("no stdout")?;
        let read = out.read_exact(&mut told);
        let one = Self(child);
        read.context("gate-lab clock did not set the time")?;
        ensure!(&told == b"set\n", "gate-lab clock said {told:?}");
        Ok(one)
    }
}

impl Drop for Elsewhen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It has gone already where this fails.
        let _gone = self.0.wait();
    }
}
