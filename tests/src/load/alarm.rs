//! Waking at a given time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Wakes at a given time, to some 50 µs; the runtime's own timer knows only milliseconds.
pub(super) struct Alarm(AsyncFd<Timer>);

/// What the runtime needs to know of a timer.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    pub(super) fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("timerfd_create")?;
        // SAFETY: the timer owns its descriptor, and nobody closes or replaces it while it does.
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) };
        Ok(Self(
            timer.map_err(io::Error::from).context("watch a timer")?,
        ))
    }

    pub(super) async fn wait(&self, time: Instant) -> Result<()> {
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Behind the schedule: let the connections work, then go on at once.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        let timer = &self.0.get_ref().0;
        timer
            .set(once, TimerSetTimeFlags::empty())
            .context("timerfd_settime")?;
        self.0
            .readable()
            .await
            .context("wait for a timer")?
            .clear_ready();
        Ok(())
    }
}
