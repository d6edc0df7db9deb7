//! Whether this process may do what gate does.

use crate::error::{Error, Result};

const CAP_NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: (u32, &str) = (39, "CAP_BPF");

/// Checks that this is root, who must own the pin folder, with the effective capabilities
/// `CAP_BPF` (or `CAP_SYS_ADMIN`, which includes it) and `CAP_NET_ADMIN`.
///
/// # Errors
/// [`Error::Rights`] with what is missing.
pub fn check() -> Result<()> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(Error::call("read", path))?;
    let mut missing = missing(effective(&status));
    if !nix::unistd::geteuid().is_root() {
        missing.insert(0, "user root");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Rights {
        missing: missing.join(", "),
    })
}

/// The `CapEff` mask of a `/proc/PID/status`; none where it can't be read.
fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn missing(mask: u64) -> Vec<&'static str> {
    let has = |bit: u32| mask & 1 << bit != 0;
    let mut missing = Vec::new();
    if !has(CAP_BPF.0) && !has(CAP_SYS_ADMIN) {
        missing.push(CAP_BPF.1);
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
    fn names_what_is_missing() {
        assert_eq!(
            missing(effective("CapPrm:\tff\nCapEff:\t0000000000000000\n")),
            ["CAP_BPF", "CAP_NET_ADMIN"]
        );
        assert_eq!(missing(1 << 39 | 1 << 12), [] as [&str; 0]);
        assert_eq!(missing(1 << 21), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(effective("nothing")).len(), 2);
    }
}
