//! Whether this process may do what gate does.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::error::{Error, Result};
use crate::features;

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const CAP_BPF: (u32, &str) = (39, "CAP_BPF");

/// What gate needs, as [`missing`] names it.
pub const NEEDED: [&str; 4] = ["user root", CAP_BPF.1, CAP_PERFMON.1, CAP_NET_ADMIN.1];

/// Checks that nothing is [`missing`].
///
/// # Errors
/// [`Error::Rights`] with what is missing.
pub fn check() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Rights {
        missing: missing.join(", "),
    })
}

/// Checks that this process has `CAP_NET_ADMIN`, which is all that resetting connections takes.
///
/// # Errors
/// [`Error::Rights`].
pub fn check_net_admin() -> Result<()> {
    let (bit, name) = CAP_NET_ADMIN;
    match own()? & 1 << bit {
        0 => Err(Error::Rights {
            missing: name.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// What this process lacks: it must be root, who must own the pin folder, with the effective
/// capabilities `CAP_BPF` and `CAP_PERFMON` (or `CAP_SYS_ADMIN`, which includes both), without
/// which the verifier refuses the programs, and `CAP_NET_ADMIN`.
///
/// # Errors
/// When the kernel doesn't tell.
pub fn missing() -> Result<Vec<&'static str>> {
    let mut missing = missing_of(own()?);
    if !nix::unistd::geteuid().is_root() {
        missing.insert(0, NEEDED[0]);
    }
    Ok(missing)
}

/// Whether this process may raise its own limits above the hard ones.
///
/// # Errors
/// When the kernel doesn't tell.
pub fn may_raise_limits() -> Result<bool> {
    Ok(own()? & 1 << CAP_SYS_RESOURCE != 0)
}

/// Whether this thread may look into any process that its user namespace has, whoever owns it: into the
/// process by `CAP_SYS_PTRACE`, and into its folder of descriptors by one of the two others.
///
/// # Errors
/// When the kernel doesn't tell.
pub fn may_trace() -> Result<bool> {
    Ok(traces(own()?))
}

fn traces(mask: u64) -> bool {
    let reads = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH;
    mask & 1 << CAP_SYS_PTRACE != 0 && mask & reads != 0
}

/// How many bytes this process may lock, where that has a limit which it can't raise.
///
/// # Errors
/// When the kernel doesn't tell.
pub fn locked_memory() -> Result<Option<u64>> {
    if may_raise_limits()? {
        return Ok(None);
    }
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).ok();
    Ok(limit
        .map(|(_, hard)| hard)
        .filter(|hard| *hard != RLIM_INFINITY))
}

/// What `EPERM` from bpf(2) means.
pub(crate) fn refused() -> Error {
    let lacks_none = missing().is_ok_and(|missing| missing.is_empty());
    // Before Linux 5.11 that is said of too much memory, too.
    match locked_memory() {
        Ok(Some(bytes)) if lacks_none && features::counts_locked_memory() => {
            Error::LockedMemory { kib: bytes / 1024 }
        }
        _ => Error::Rights {
            missing: "CAP_BPF, CAP_NET_ADMIN".to_owned(),
        },
    }
}

/// This thread's effective capabilities.
fn own() -> Result<u64> {
    let path = "/proc/thread-self/status";
    let status = std::fs::read_to_string(path).map_err(Error::call("read", path))?;
    Ok(effective(&status))
}

/// The `CapEff` mask of a `/proc/PID/status`; none where it can't be read.
fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn missing_of(mask: u64) -> Vec<&'static str> {
    let has = |bit: u32| mask & 1 << bit != 0;
    let mut missing = Vec::new();
    for (bit, name) in [CAP_BPF, CAP_PERFMON] {
        if !has(bit) && !has(CAP_SYS_ADMIN) {
            missing.push(name);
        }
    }
    if !has(CAP_NET_ADMIN.0) {
        missing.push(CAP_NET_ADMIN.1);
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_trace_takes_two_capabilities() {
        assert!(traces(1 << 19 | 1 << 2) && traces(1 << 19 | 1 << 1));
        assert!(!traces(1 << 19) && !traces(1 << 1 | 1 << 2));
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(
            missing_of(effective("CapPrm:\tff\nCapEff:\t0000000000000000\n")),
            NEEDED[1..]
        );
        assert_eq!(missing_of(1 << 39 | 1 << 38 | 1 << 12), [] as [&str; 0]);
        assert_eq!(missing_of(1 << 39 | 1 << 12), ["CAP_PERFMON"]);
        assert_eq!(missing_of(1 << 21), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_of(effective("nothing")).len(), 3);
    }
}
