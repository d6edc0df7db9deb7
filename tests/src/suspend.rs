//! The machine, suspended to memory for a while: one that is there for nothing but tests.

use std::env;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};

use crate::require::{Feature, has, skip};

/// The environment variable that tells, by being set, that this machine may be suspended.
pub const ALLOWED: &str = "GATE_TEST_SUSPEND";

/// The alarm of the machine's battery-backed clock (rtc(4)), which wakes it.
const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";

/// How long the machine may take to be suspended, with the second by which its clocks differ then.
const FALLING_ASLEEP: Duration = Duration::from_secs(3);

/// Whether this machine can and may be suspended. If not, the test is counted as skipped and should
/// return.
///
/// # Panics
/// As [`has`].
#[must_use]
#[track_caller]
pub fn is_allowed() -> bool {
    if !has(Feature::Suspend) {
        return false;
    }
    let allowed = env::var_os(ALLOWED).is_some();
    if !allowed {
        skip("it would suspend this machine: `cargo xtask vm` has some for that");
    }
    allowed
}

/// Suspends the machine, and has it woken so much later, in whole seconds. It is an error if it was asleep
/// for less, but for the time that it takes to be suspended.
pub fn suspend(time: Duration) -> Result<()> {
    let before = asleep()?;
    // An alarm that is set already is not set anew.
    write(ALARM, "0")?;
    write(ALARM, &format!("+{}", time.as_secs()))?;
    write("/sys/power/state", "mem")?;
    let slept = asleep()?.saturating_sub(before);
    ensure!(
        slept + FALLING_ASLEEP >= time,
        "the machine was suspended for {slept:?} of {time:?}"
    );
    Ok(())
}

/// For how long the machine was suspended since it booted: only one of its clocks goes on then.
fn asleep() -> Result<Duration> {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).context("CLOCK_BOOTTIME")?;
    let awake = clock_gettime(ClockId::CLOCK_MONOTONIC).context("CLOCK_MONOTONIC")?;
    Ok(Duration::from(boot).saturating_sub(awake.into()))
}

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {text:?} to {path}"))
}
