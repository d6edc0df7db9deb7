//! The data path's clock, in user space.

use std::time::Duration;

use gate_common::state::BootTime;
use nix::time::{ClockId, clock_gettime};

/// The time since boot, suspend included: the clock of leases and of arrival times.
#[must_use]
pub fn now() -> BootTime {
    // CLOCK_BOOTTIME is there since Linux 2.6.39, so this doesn't fail; zero would only
    // make a lease end early.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    BootTime(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// The time from `earlier` to `later`, zero where that is negative.
#[must_use]
pub fn between(earlier: BootTime, later: BootTime) -> Duration {
    Duration::from_nanos(later.0.saturating_sub(earlier.0))
}

/// The moment `span` after `start`.
#[must_use]
pub fn after(start: BootTime, span: Duration) -> BootTime {
    let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    BootTime(start.0.saturating_add(span))
}
