//! What this process takes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// What a process takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub resident: u64,
    /// Open descriptors.
    pub open_fds: usize,
    /// When it began, since 1970 in UTC.
    pub start: Duration,
}

impl Process {
    /// This process.
    ///
    /// # Errors
    /// Where `/proc` can't be read.
    pub fn own() -> Result<Self> {
        const STAT: &str = "/proc/self/stat";
        const FDS: &str = "/proc/self/fd";
        let stat = std::fs::read_to_string(STAT).map_err(Error::call("read", STAT))?;
        let fds = std::fs::read_dir(FDS).map_err(Error::call("read", FDS))?;
        let (hz, page) = (
            configured(libc::_SC_CLK_TCK),
            configured(libc::_SC_PAGESIZE),
        );
        let Figures {
            ticks,
            started,
            pages,
        } = figures(&stat);
        let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / hz as f64);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let up = Duration::from_nanos(crate::clock::now().0);
        let booted = wall.unwrap_or_default().saturating_sub(up);
        Ok(Self {
            cpu: time(ticks),
            resident: pages * page,
            // One is that of the listing itself.
            open_fds: fds.count().saturating_sub(1),
            start: booted + time(started),
        })
    }
}

fn configured(name: libc::c_int) -> u64 {
    // SAFETY: the call takes an integer and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).unwrap_or(1).max(1)
}

#[derive(Debug, PartialEq, Eq)]
struct Figures {
    /// CPU time.
    ticks: u64,
    /// When it began, since boot.
    started: u64,
    /// Resident.
    pages: u64,
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)); zero for what is not there.
fn figures(stat: &str) -> Figures {
    // The name, in brackets, may have spaces and brackets in it.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<&str> = after.split_whitespace().collect();
    // The third field is the first behind the name.
    let field = |number: usize| {
        let text = fields.get(number - 3);
        text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
    };
    Figures {
        ticks: field(14) + field(15),
        started: field(22),
        pages: field(24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_is_skipped() {
        let stat =
            "7 (a b) c)) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 1 0 1234 9000000 555 1";
        let expected = Figures {
            ticks: 42,
            started: 1234,
            pages: 555,
        };
        assert_eq!(figures(stat), expected);
    }

    #[test]
    fn this_process_takes_something() {
        let own = Process::own().unwrap();
        assert!(own.resident > 1 << 20 && own.open_fds >= 3, "{own:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.checked_sub(own.start).unwrap();
        assert!(age < Duration::from_secs(3600), "{own:?}");
    }
}
