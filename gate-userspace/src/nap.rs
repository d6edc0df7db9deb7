//! Sleeps that are as long as is meant.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sleeps, to some 50 us, and by the clock of leases, which goes on while the machine is suspended. The
/// runtime's own timer stands still then, counts in milliseconds and rounds up, so that one lasts two or
/// three.
pub async fn nap(time: Duration) {
    if time.is_zero() {
        return tokio::task::yield_now().await;
    }
    if wait(time).await.is_err() {
        tokio::time::sleep(time).await;
    }
}

/// What the runtime needs to know of a timer.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

async fn wait(time: Duration) -> io::Result<()> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
    let once = Expiration::OneShot(TimeSpec::from_duration(time));
    timer.set(once, TimerSetTimeFlags::empty())?;
    // SAFETY: the timer owns its descriptor, and nobody closes or replaces it while it does.
    let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) };
    let ready = timer.map_err(io::Error::from)?;
    ready.readable().await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_nap_is_as_long_as_it_was_meant() {
        let nap_for = Duration::from_micros(300);
        let mut shortest = Duration::MAX;
        for _ in 0..50 {
            let start = Instant::now();
            nap(nap_for).await;
            shortest = shortest.min(start.elapsed());
        }
        // The runtime's own timer would take a millisecond or more each time.
        assert!(shortest >= nap_for, "{shortest:?}");
        assert!(shortest < Duration::from_micros(900), "{shortest:?}");
    }
}
