//! The data path's clock, in user space.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use gate_common::state::BootTime;
use nix::time::{ClockId, clock_gettime};

/// The host's own time namespace (`PROC_TIME_INIT_INO` of linux/proc_ns.h).
const INITIAL: &str = "time:[4026531834]";

/// The time since boot, suspend included: the clock of leases and of arrival times. In a time namespace
/// (`time_namespaces(7)`, Linux 5.6) too: the data path's clock is the host's.
#[must_use]
pub fn now() -> BootTime {
    static OFFSET: OnceLock<i128> = OnceLock::new();
    let offset = OFFSET.get_or_init(|| {
        // The kernel tells the offsets of the namespace that children get (`unshare --time`), which
        // this process need not be in.
        if fs::read_link("/proc/self/ns/time").is_ok_and(|own| own == Path::new(INITIAL)) {
            return 0;
        }
        // Not there before Linux 5.6, nor without time namespaces.
        let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        offset(&offsets).unwrap_or(0)
    });
    // CLOCK_BOOTTIME is there since Linux 2.6.39, so this doesn't fail; zero would only
    // make a lease end early.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    to_host(time, *offset)
}

/// What a time namespace's clock says, in the host's.
fn to_host(time: Duration, offset: i128) -> BootTime {
    let time = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
    BootTime(u64::try_from(time.saturating_sub(offset).max(0)).unwrap_or(u64::MAX))
}

/// What a time namespace adds to the time since boot, in nanoseconds, as the kernel tells it: a line for
/// each clock, with its name, seconds, and nanoseconds.
fn offset(offsets: &str) -> Option<i128> {
    let line = offsets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("boottime")).then_some(words)
    });
    let mut words = line?;
    let seconds: i128 = words.next()?.parse().ok()?;
    let nanoseconds: i128 = words.next()?.parse().ok()?;
    Some(seconds * 1_000_000_000 + nanoseconds)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_adds_what_the_kernel_says() {
        let text = "monotonic        5000         0\nboottime       -3         500000000\n";
        assert_eq!(offset(text), Some(-2_500_000_000));
        assert_eq!(offset("boottime 100000 7\n"), Some(100_000_000_000_007));
        for text in ["", "monotonic 1 0\n", "boottime x 0\n", "boottime 1\n"] {
            assert_eq!(offset(text), None, "{text:?}");
        }
    }

    #[test]
    fn its_clock_is_told_in_the_hosts() {
        let time = Duration::from_secs(10);
        assert_eq!(to_host(time, 0), BootTime(10_000_000_000));
        assert_eq!(to_host(time, 4_000_000_000), BootTime(6_000_000_000));
        assert_eq!(to_host(time, -4_000_000_000), BootTime(14_000_000_000));
        assert_eq!(to_host(time, 11_000_000_000), BootTime(0));
    }
}
