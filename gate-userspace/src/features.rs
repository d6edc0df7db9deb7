//! What the kernel has of what gate needs or profits from: each thing is tried by a call that does
//! nothing, never guessed from the version.

mod running;

use nix::sys::utsname::uname;

use crate::error::{Error, Result};

/// What can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `bpf(2)` itself.
    Bpf,
    /// `BPF_LINK_CREATE` for XDP.
    XdpLink,
    /// `BPF_LINK_DETACH`.
    LinkDetach,
    /// A map of type `BPF_MAP_TYPE_RINGBUF`.
    RingBuffer,
    /// The helper `bpf_ktime_get_boot_ns`, in an XDP program.
    BootClock,
    /// `BPF_LINK_UPDATE`.
    LinkUpdate,
    /// The helper `bpf_jiffies64`, in a TC program.
    Jiffies,
    /// `BPF_MAP_LOOKUP_BATCH`; those that update and delete came with it.
    MapBatch,
    /// `BPF_MAP_FREEZE`, which came with global data.
    GlobalData,
    /// The helper `bpf_fib_lookup`, in a TC program.
    FibLookup,
    /// `BPF_PROG_TEST_RUN`.
    TestRun,
    /// A query of loopback's TCX hook.
    Tcx,
    /// A BPF filter in a `clsact` qdisc, in a network namespace made for that.
    Clsact,
    /// A query of the listening TCP sockets.
    SockDiag,
    /// A request to destroy a TCP socket that can't be.
    SockDestroy,
    /// A raw IP socket.
    RawSocket,
    /// A program on the look-up of listening sockets.
    SkLookup,
    /// `pidfd_getfd(2)`.
    PidfdGetfd,
    /// A query of `membarrier(2)`.
    Barrier,
    /// A program is loaded, and its machine code looked for.
    Jit,
    /// The helper `bpf_ktime_get_coarse_ns`, which came in the same version as maps that are
    /// accounted to cgroups.
    CgroupMemory,
    /// The sysctl `tcp_syn_linear_timeouts`.
    LinearSyn,
}

/// What a feature is to gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing goes without it.
    Required,
    /// Something is worse without it: what, and how.
    Wanted(&'static str),
    /// Something else does as well: what.
    Replaceable(&'static str),
}

/// A kernel feature.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// How it is tried.
    pub probe: Probe,
    /// Its name for machines.
    pub id: &'static str,
    /// Its name for people, to be read after "lacks".
    pub name: &'static str,
    /// The first version that has it.
    pub since: &'static str,
    /// What it is to gate.
    pub need: Need,
}

/// All of them: those that are required first, of these `bpf(2)` itself and then the newest, so that
/// the first that is missing tells how new a kernel it takes.
pub const FEATURES: [Feature; 22] = [
    required(Probe::Bpf, "bpf", "the bpf(2) call", "3.18"),
    required(Probe::XdpLink, "xdp-link", "XDP links", "5.9"),
    required(
        Probe::LinkDetach,
        "link-detach",
        "detaching of links",
        "5.9",
    ),
    required(Probe::RingBuffer, "ring-buffer", "BPF ring buffers", "5.8"),
    required(
        Probe::BootClock,
        "boot-clock",
        "bpf_ktime_get_boot_ns",
        "5.8",
    ),
    required(
        Probe::LinkUpdate,
        "link-update",
        "replacing of a link's program",
        "5.7",
    ),
    required(Probe::Jiffies, "jiffies", "bpf_jiffies64", "5.6"),
    required(Probe::MapBatch, "map-batch", "batch calls on maps", "5.6"),
    required(
        Probe::GlobalData,
        "global-data",
        "global data of programs",
        "5.2",
    ),
    required(Probe::FibLookup, "fib-lookup", "bpf_fib_lookup", "4.18"),
    required(Probe::TestRun, "test-run", "test runs of programs", "4.12"),
    Feature {
        probe: Probe::Tcx,
        id: "tcx",
        name: "TCX",
        since: "6.6",
        need: Need::Replaceable("clsact filters are used instead, and work the same"),
    },
    Feature {
        probe: Probe::Clsact,
        id: "clsact",
        name: "BPF filters in clsact",
        since: "4.5",
        need: Need::Wanted("no TC hook: only a NIC with native XDP can be attached to"),
    },
    Feature {
        probe: Probe::SockDiag,
        id: "sock-diag",
        name: "sock_diag for TCP",
        since: "3.3",
        need: Need::Wanted(
            "`gate restart` can't see the accept queue and the listener, and goes by the checks \
             alone",
        ),
    },
    Feature {
        probe: Probe::SockDestroy,
        id: "sock-destroy",
        name: "destroying of TCP sockets",
        since: "4.5",
        need: Need::Wanted("`gate flush` can't reset connections"),
    },
    Feature {
        probe: Probe::RawSocket,
        id: "raw-socket",
        name: "raw IP sockets",
        since: "2.2",
        need: Need::Wanted(
            "`gate restart` of an address of this host, and whatever holds while loopback is attached, \
             is refused",
        ),
    },
    Feature {
        probe: Probe::SkLookup,
        id: "sk-lookup",
        name: "sk_lookup programs",
        since: "5.9",
        need: Need::Wanted(
            "`gate alias` can't answer at other addresses, and `gate handover` can't work on the              backend's host",
        ),
    },
    Feature {
        probe: Probe::PidfdGetfd,
        id: "pidfd-getfd",
        name: "pidfd_getfd",
        since: "5.6",
        need: Need::Wanted(
            "`gate alias` and `gate handover` can't have the listening sockets of other processes",
        ),
    },
    Feature {
        probe: Probe::Barrier,
        id: "membarrier",
        name: "the global memory barrier",
        since: "4.3",
        need: Need::Wanted("a release takes 20 ms longer"),
    },
    Feature {
        probe: Probe::Jit,
        id: "jit",
        name: "the BPF JIT compiler",
        since: "3.16",
        need: Need::Wanted("programs are interpreted: each packet costs several times as much"),
    },
    Feature {
        probe: Probe::CgroupMemory,
        id: "cgroup-memory",
        name: "maps accounted to cgroups",
        since: "5.11",
        need: Need::Replaceable("maps count as locked memory, whose limit gate raises for itself"),
    },
    Feature {
        probe: Probe::LinearSyn,
        id: "linear-syn",
        name: "linear SYN timeouts",
        since: "6.5",
        need: Need::Replaceable(
            "clients on this host send a dropped SYN again after 1, 3 and 7 s, not each second",
        ),
    },
];

const fn required(
    probe: Probe,
    id: &'static str,
    name: &'static str,
    since: &'static str,
) -> Feature {
    Feature {
        probe,
        id,
        name,
        since,
        need: Need::Required,
    }
}

/// What the kernel answers to a probe: whether the feature is there, or an error's number, of which
/// [`State::of`] knows what it means.
pub type Answer = std::result::Result<bool, i32>;

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Present,
    /// It is not.
    Absent,
    /// This process may not try it, or not use it.
    Forbidden,
    /// The kernel answered with an error that tells neither.
    Unknown(i32),
    /// It was not tried, because nothing needs it.
    Unneeded,
}

impl State {
    /// What the answer to a probe means.
    #[must_use]
    pub const fn of(probe: Probe, answer: Answer) -> Self {
        let errno = match answer {
            Ok(true) => return Self::Present,
            Ok(false) => return Self::Absent,
            Err(errno) => errno,
        };
        match (probe, errno) {
            (_, libc::EPERM | libc::EACCES) => Self::Forbidden,
            (_, libc::ENOSYS) => Self::Absent,
            // Asked with no descriptor: a command that is there has missed it.
            (
                Probe::Bpf
                | Probe::XdpLink
                | Probe::LinkDetach
                | Probe::LinkUpdate
                | Probe::MapBatch
                | Probe::GlobalData
                | Probe::TestRun
                | Probe::PidfdGetfd,
                libc::EBADF,
            ) => Self::Present,
            (
                Probe::Bpf
                | Probe::XdpLink
                | Probe::LinkDetach
                | Probe::LinkUpdate
                | Probe::MapBatch
                | Probe::GlobalData
                | Probe::TestRun
                | Probe::SkLookup,
                libc::EINVAL | libc::E2BIG,
            ) => Self::Absent,
            // No such qdisc, filter or socket family.
            (
                Probe::Clsact | Probe::SockDiag | Probe::SockDestroy | Probe::RawSocket,
                libc::ENOENT | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP,
            ) => Self::Absent,
            _ => Self::Unknown(errno),
        }
    }
}

/// A feature, and whether it is there.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The feature.
    pub feature: &'static Feature,
    /// Its state.
    pub state: State,
}

/// Tries everything.
#[must_use]
pub fn survey() -> Vec<Found> {
    survey_by(running::ask)
}

fn survey_by(ask: impl Fn(Probe) -> Answer) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for feature in &FEATURES {
        let is_present = |probe| has(&found, probe);
        let state = match feature.probe {
            Probe::Clsact if is_present(Probe::Tcx) => State::Unneeded,
            probe => State::of(probe, ask(probe)),
        };
        found.push(Found { feature, state });
    }
    found
}

/// Whether something is there.
#[must_use]
pub fn has(found: &[Found], probe: Probe) -> bool {
    found
        .iter()
        .any(|found| found.feature.probe == probe && found.state == State::Present)
}

/// Fails where something required is known to be missing.
///
/// # Errors
/// [`Error::Kernel`].
pub fn require() -> Result<()> {
    let required = FEATURES
        .iter()
        .filter(|feature| feature.need == Need::Required);
    let found = required.map(|feature| Found {
        feature,
        state: State::of(feature.probe, running::ask(feature.probe)),
    });
    match refusals(found, &release()).next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Fails where one thing is known to be missing.
///
/// # Errors
/// [`Error::Kernel`].
pub fn require_one(probe: Probe) -> Result<()> {
    let mut all = FEATURES.iter();
    match all.find(|feature| feature.probe == probe && is_absent(probe)) {
        Some(feature) => Err(lacking(feature, &release())),
        None => Ok(()),
    }
}

fn is_absent(probe: Probe) -> bool {
    State::of(probe, running::ask(probe)) == State::Absent
}

/// Whether maps count as locked memory. Where that is used up the kernel can't be asked, and its release
/// tells.
#[must_use]
pub fn counts_locked_memory() -> bool {
    let probe = Probe::CgroupMemory;
    match State::of(probe, running::ask(probe)) {
        State::Present => false,
        State::Absent => true,
        State::Forbidden | State::Unknown(_) | State::Unneeded => is_before(&release(), (5, 11)),
    }
}

/// Whether a release, as `5.10.0-32-amd64`, is older than this version.
fn is_before(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < version,
        _ => false,
    }
}

fn lacking(feature: &Feature, release: &str) -> Error {
    Error::Kernel {
        release: release.to_owned(),
        feature: feature.name,
        since: feature.since,
    }
}

/// An error for each required feature that is missing.
pub fn refusals(
    found: impl IntoIterator<Item = Found>,
    release: &str,
) -> impl Iterator<Item = Error> {
    found
        .into_iter()
        .filter(|found| found.feature.need == Need::Required && found.state == State::Absent)
        .map(|found| lacking(found.feature, release))
}

/// The running kernel's release.
#[must_use]
pub fn release() -> String {
    uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests;
