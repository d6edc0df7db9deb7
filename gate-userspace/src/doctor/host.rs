//! What the files of `/proc` and `/sys` tell of this host.

use std::fs;
use std::path::PathBuf;

use crate::attach::NO_TCX;
use crate::error::Result;
use crate::features;
use crate::rights;

/// The host, as its files show it.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The kernel's release.
    pub release: String,
    /// Where bpffs is mounted, as this process sees it.
    pub bpffs: Vec<PathBuf>,
    /// The mode of the kernel's lockdown; none where it has no such thing.
    pub lockdown: Option<String>,
    /// How often clients on this host send a SYN again each second before they wait longer; none
    /// where they wait longer each time.
    pub linear_syns: Option<u32>,
    /// Whether the environment asks to do without TCX.
    pub no_tcx: bool,
    /// The bytes that this process can lock in memory; none for any number.
    pub locked_memory: Option<u64>,
}

impl Host {
    /// Reads them.
    ///
    /// # Errors
    /// When the kernel doesn't tell this process's rights.
    pub fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let linear = read("/proc/sys/net/ipv4/tcp_syn_linear_timeouts");
        Ok(Self {
            release: features::release(),
            bpffs: bpffs(&read("/proc/self/mountinfo")),
            lockdown: lockdown(&read("/sys/kernel/security/lockdown")),
            linear_syns: linear.trim().parse().ok(),
            no_tcx: std::env::var_os(NO_TCX).is_some(),
            locked_memory: rights::locked_memory()?,
        })
    }
}

/// The mount points of bpffs in a `mountinfo` (proc_pid_mountinfo(5)).
fn bpffs(mountinfo: &str) -> Vec<PathBuf> {
    let mount_point = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let is_bpffs = kind.split(' ').next() == Some("bpf");
        let point = mount.split(' ').nth(4).filter(|_| is_bpffs)?;
        Some(PathBuf::from(point))
    };
    let mut points: Vec<PathBuf> = mountinfo.lines().filter_map(mount_point).collect();
    points.sort();
    points.dedup();
    points
}

/// The mode that is in brackets among all that there are.
fn lockdown(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpffs_is_found_among_the_mounts() {
        let mountinfo = "\
            22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            36 22 0:31 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n\
            37 22 0:31 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n\
            40 28 0:35 / /run/bpf rw - bpf none rw\n\
            41 28 0:36 / /bpf rw - tmpfs bpf rw\n";
        let found = bpffs(mountinfo);
        assert_eq!(found, ["/run/bpf", "/sys/fs/bpf"].map(PathBuf::from));
        assert_eq!(bpffs("nonsense\n - bpf\n"), [] as [PathBuf; 0]);
    }

    #[test]
    fn the_mode_of_lockdown_is_the_one_in_brackets() {
        for (modes, mode) in [
            ("[none] integrity confidentiality\n", Some("none")),
            ("none [integrity] confidentiality\n", Some("integrity")),
            ("", None),
            ("none [", None),
        ] {
            assert_eq!(lockdown(modes).as_deref(), mode);
        }
    }
}
