//! Kernel features that a test can't do without. A skip must be earned: where the kernel ought to
//! have the feature, the test fails.
//!
//! ```no_run
//! use gate_tests::require::{Feature, has};
//! if !has(Feature::Tcx) {
//!     return;
//! }
//! ```

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gate_userspace::{sockets, sys};

mod probe;

/// The environment variable that names the file into which skipped tests are written, a line each;
/// without it they are told on stderr.
pub const SKIPS: &str = "GATE_SKIPS";

/// What not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// TC programs as links.
    Tcx,
    /// The kernel's own types.
    Btf,
    /// VLAN interfaces.
    Vlan,
    /// Bonded interfaces.
    Bonding,
    /// WireGuard interfaces.
    Wireguard,
    /// nftables.
    Nftables,
    /// A client's first SYNs a second apart.
    LinearSynTimeouts,
    /// Sockets that can be destroyed by netlink.
    SockDestroy,
    /// Numbers by which programs know network namespaces.
    NamespaceCookie,
    /// Test runs of XDP programs whose frames go on their way.
    LiveFrames,
    /// Maps that say how much memory they use, and not how much they may.
    MapUsage,
    /// Suspending the machine to memory.
    Suspend,
}

impl Feature {
    /// For people; the version that brought it; the option that builds it, where there is one.
    fn describe(self) -> (&'static str, Version, Option<&'static str>) {
        match self {
            Self::Tcx => ("TCX", Version(6, 6), Some("CONFIG_NET_XGRESS")),
            Self::Btf => ("BTF", Version(5, 4), Some("CONFIG_DEBUG_INFO_BTF")),
            Self::Vlan => ("VLAN interfaces", Version(2, 6), Some("CONFIG_VLAN_8021Q")),
            Self::Bonding => ("bonding", Version(2, 6), Some("CONFIG_BONDING")),
            Self::Wireguard => ("WireGuard", Version(5, 6), Some("CONFIG_WIREGUARD")),
            Self::Nftables => ("nftables", Version(3, 13), Some("CONFIG_NF_TABLES")),
            Self::LinearSynTimeouts => ("linear SYN timeouts", Version(6, 5), None),
            Self::SockDestroy => (
                "SOCK_DESTROY",
                Version(4, 5),
                Some("CONFIG_INET_DIAG_DESTROY"),
            ),
            Self::NamespaceCookie => ("SO_NETNS_COOKIE", Version(5, 14), None),
            Self::LiveFrames => ("XDP live frames", Version(5, 18), None),
            Self::MapUsage => ("the memory that maps use", Version(6, 4), None),
            Self::Suspend => ("suspend", Version(2, 6), Some("CONFIG_SUSPEND")),
        }
    }

    /// Asks the kernel, which may load a module for it.
    fn probe(self) -> Result<bool> {
        match self {
            Self::Tcx => probe::tcx(),
            Self::Btf => Ok(Path::new("/sys/kernel/btf/vmlinux").exists()),
            Self::Vlan => probe::interface("vlan"),
            Self::Bonding => probe::interface("bond"),
            Self::Wireguard => probe::interface("wireguard"),
            Self::Nftables => probe::nftables(),
            Self::SockDestroy => Ok(sockets::can_destroy()?),
            Self::NamespaceCookie => Ok(sys::namespace_cookie()?.is_some()),
            Self::LiveFrames => probe::live_frames(),
            Self::MapUsage => probe::map_usage(),
            Self::Suspend => probe::suspend(),
            Self::LinearSynTimeouts => {
                Ok(Path::new("/proc/sys/net/ipv4/tcp_syn_linear_timeouts").exists())
            }
        }
    }
}

/// Whether the test can go on. If not, it is counted as skipped and should return.
///
/// # Panics
/// Where the kernel lacks the feature though its version and its configuration promise it.
#[must_use]
#[track_caller]
pub fn has(feature: Feature) -> bool {
    match check(feature) {
        Ok(None) => true,
        Ok(Some(reason)) => {
            skip(&reason);
            false
        }
        Err(error) => panic!("{error:#}"),
    }
}

/// Whether the test can go on: not where the runner left a reason in this variable, which is what the
/// host, not the kernel, lacks.
#[must_use]
pub fn allowed_by(variable: &str) -> bool {
    let Ok(reason) = std::env::var(variable) else {
        return true;
    };
    skip(&reason);
    false
}

/// Notes that the test can't run, for a reason of the host's that no [`Feature`] is.
///
/// # Panics
/// Where it can't be noted.
pub fn skip(reason: &str) {
    let current = thread::current();
    let test = current.name().unwrap_or("a test");
    note(&format!("SKIPPED {test}: {reason}\n")).expect("note a skipped test");
}

/// How long a module may take to load.
const LOADED: Duration = Duration::from_secs(10);

/// Why a test that needs the feature is skipped; nothing when it need not be.
fn check(feature: Feature) -> Result<Option<String>> {
    if feature.probe()? {
        return Ok(None);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the release")?;
    let release = release.trim();
    let version = Version::parse(release).with_context(|| format!("read {release}"))?;
    let late = Instant::now() + LOADED;
    loop {
        match excuse(feature, version, || configuration(release)) {
            Ok(reason) => return Ok(Some(reason)),
            // A module that another test's question loads at this moment is not found yet.
            Err(_) if feature.probe()? => return Ok(None),
            Err(error) if Instant::now() > late => return Err(error),
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}

/// Why the kernel need not have the feature.
fn excuse(
    feature: Feature,
    version: Version,
    configuration: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let (name, since, option) = feature.describe();
    if version < since {
        return Ok(format!("needs {name} (Linux {since}), this is {version}"));
    }
    let Some(option) = option else {
        bail!("Linux {since} brought {name}, this is {version} and lacks it");
    };
    if is_built(&configuration()?, option) {
        bail!("the kernel is built with {option} and lacks {name}: is a module missing?");
    }
    Ok(format!("needs {name} ({option})"))
}

/// Is the option set, as `y` or `m`?
fn is_built(configuration: &str, option: &str) -> bool {
    configuration.lines().any(|line| {
        line.strip_prefix(option)
            .is_some_and(|value| matches!(value, "=y" | "=m"))
    })
}

/// What the running kernel was built with.
fn configuration(release: &str) -> Result<String> {
    for path in [
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
    ] {
        if let Ok(text) = fs::read_to_string(path) {
            return Ok(text);
        }
    }
    let output = Command::new("gzip")
        .args(["-dc", "/proc/config.gz"])
        .output()
        .context("run gzip")?;
    if !output.status.success() {
        bail!("the kernel lacks a feature, and its configuration is nowhere to be found");
    }
    String::from_utf8(output.stdout).context("read /proc/config.gz")
}

fn note(line: &str) -> io::Result<()> {
    match std::env::var_os(SKIPS) {
        // One write at the end of the file: tests run at the same time.
        Some(path) => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?
            .write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    }
}

/// Of a kernel, without its patch level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    fn parse(release: &str) -> Option<Self> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(
            parts.next()?.parse().ok()?,
            parts.next()?.parse().ok()?,
        ))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excused(feature: Feature, release: &str, configuration: &str) -> Result<String, String> {
        let version = Version::parse(release).unwrap();
        excuse(feature, version, || Ok(configuration.to_owned())).map_err(|e| e.to_string())
    }

    #[test]
    fn an_older_kernel_is_an_excuse() {
        for release in ["5.10.0-46-cloud-amd64", "6.1.176", "6.5.0+deb"] {
            let reason = excused(Feature::Tcx, release, "CONFIG_NET_XGRESS=y").unwrap();
            assert!(
                reason.starts_with("needs TCX (Linux 6.6), this is "),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_kernel_that_should_have_it_is_none() {
        for release in ["6.6.1", "6.12.0-rc1", "7.2.13+deb14-cloud-amd64"] {
            for value in ["y", "m"] {
                let configuration = format!("CONFIG_X=n\nCONFIG_NET_XGRESS={value}\n");
                let error = excused(Feature::Tcx, release, &configuration).unwrap_err();
                assert!(error.contains("CONFIG_NET_XGRESS"), "{error}");
            }
        }
        assert!(excused(Feature::LinearSynTimeouts, "6.5.0", "").is_err());
    }

    #[test]
    fn an_option_that_is_not_set_is_an_excuse() {
        for configuration in ["# CONFIG_BONDING is not set", "CONFIG_BONDING_X=y", ""] {
            let reason = excused(Feature::Bonding, "6.1.0", configuration).unwrap();
            assert_eq!(reason, "needs bonding (CONFIG_BONDING)");
        }
    }

    #[test]
    fn the_running_kernel_keeps_its_promises() {
        // Not bonding: its module shows in every network namespace.
        for feature in [
            Feature::Tcx,
            Feature::Btf,
            Feature::Vlan,
            Feature::Wireguard,
            Feature::Nftables,
            Feature::LinearSynTimeouts,
            Feature::SockDestroy,
            Feature::Suspend,
        ] {
            check(feature).unwrap();
        }
    }
}
