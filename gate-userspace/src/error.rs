//! What can go wrong, each with its cause, the remedy and the exit code.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigError;
use crate::endpoint::Endpoint;
use crate::gates::GateName;
use crate::handover::Refusal;

mod alias;
mod backend;

pub use alias::AliasError;
pub use backend::BackendError;

/// The exit codes of `gate`. A failed command of `gate restart` passes its own on.
pub mod exit {
    /// Done, or already so.
    pub const DONE: u8 = 0;
    /// It failed.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong, or the configuration.
    pub const USAGE: u8 = 2;
    /// Something isn't in the state that the command needs.
    pub const STATE: u8 = 3;
    /// Rights are missing.
    pub const RIGHTS: u8 = 4;
    /// Another program sits on the hook.
    pub const TAKEN: u8 = 5;
    /// The lease ran out.
    pub const LEASE: u8 = 124;
    /// The command of a restart was found, but can't be run.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command of a restart was not found.
    pub const NOT_FOUND: u8 = 127;
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the library. Its text is one line: the cause, then the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the kernel failed.
    #[error("{call} {object}")]
    Call {
        /// The call.
        call: &'static str,
        /// What it was about.
        object: String,
        /// Why.
        source: io::Error,
    },
    /// The effective user lacks capabilities.
    #[error("missing rights ({missing}): run it as root")]
    Rights {
        /// The capabilities.
        missing: String,
    },
    /// The effective user may not lock the memory of maps, which count to that before Linux 5.11.
    #[error(
        "maps count as locked memory, of which this process may have {kib} KiB: raise that by \
         `ulimit -l unlimited`, or by LimitMEMLOCK=infinity in a unit"
    )]
    LockedMemory {
        /// How many KiB it may have.
        kib: u64,
    },
    /// No bpffs where the pins go.
    #[error(
        "no bpffs at {path}: mount it with `mount -t bpf bpf {path}` (under `ip netns exec` it is \
         hidden: use `nsenter --net=/run/netns/NAME` instead)"
    )]
    NoBpffs {
        /// Where it should be.
        path: PathBuf,
    },
    /// The pin folder isn't ours alone.
    #[error("{path} is not a folder of root's with mode 0700: remove it, then run `gate up`")]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Nothing is attached in this network namespace.
    #[error("gate is not up in this network namespace: run `gate up INTERFACE` first")]
    NotUp,
    /// Something that is only for terminals.
    #[error("`gate top` needs a terminal at stdin and stdout: `gate status` prints the same, once")]
    NoTerminal,
    /// No attached hook sees an endpoint's connections.
    #[error("no connection to {endpoint} goes by what is attached: run {remedy} first")]
    NotCovered {
        /// The endpoint.
        endpoint: Endpoint,
        /// What would help.
        remedy: String,
    },
    /// The interfaces of a configured gate don't see its connections.
    #[error(
        "{gate}: no connection to {endpoint} goes by its interfaces: name the right ones, or leave \
         `interfaces` out"
    )]
    GateNotCovered {
        /// The gate.
        gate: GateName,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// An endpoint's sockets are another host's.
    #[error(
        "{endpoint} is no address of this host, so whether a socket listens can't be seen here: run \
         `gate guard` on the backend's host, or close it here with `gate hold {endpoint}`"
    )]
    NotHere {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Nothing leads to an endpoint.
    #[error("no route leads to {endpoint}: `ip route get` tells what the kernel knows")]
    NoRoute {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// No gate has that name.
    #[error(
        "there is no gate {name}: `gate define {name} ENDPOINT...` makes one, `gate status` lists them"
    )]
    NoGate {
        /// The name.
        name: GateName,
    },
    /// An endpoint that closes and opens with others only.
    #[error("{endpoint} belongs to gate {name}: use the name, or `gate forget {name}` first")]
    Member {
        /// The endpoint.
        endpoint: Endpoint,
        /// The gate that it was defined with.
        name: GateName,
    },
    /// A gate can't be changed while it is closed.
    #[error("{gate} is closed: `gate open {gate}` first")]
    Closed {
        /// The gate.
        gate: String,
    },
    /// A guarded gate can't be forgotten, nor lose its endpoint to another.
    #[error("{gate} is guarded: `gate guard {gate} --off` first")]
    Guarded {
        /// The gate.
        gate: String,
    },
    /// One endpoint of a gate stands for another as well.
    #[error("{endpoint} is one of the addresses that {wildcard} stands for: leave one of them out")]
    Overlap {
        /// The endpoint with an address.
        endpoint: Endpoint,
        /// The wildcard.
        wildcard: Endpoint,
    },
    /// A drain would use the whole lease up.
    #[error(
        "--drain {} leaves nothing of --max-hold {} for the restart itself: make --max-hold longer",
        humantime::format_duration(*drain),
        humantime::format_duration(*max_hold)
    )]
    DrainTooLong {
        /// How long the drain may take.
        drain: Duration,
        /// The lease.
        max_hold: Duration,
    },
    /// Pins made by a version with other maps.
    #[error(
        "{path} was made by another version of gate (its maps are {found}, mine {expected}): run \
         `gate down`, then `gate up` again"
    )]
    OtherAbi {
        /// The folder or pin.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What this version has.
        expected: String,
    },
    /// A pin of a namespace that is up is gone.
    #[error("{path} is missing: run `gate down`, then `gate up` again")]
    MissingPin {
        /// The pin.
        path: PathBuf,
    },
    /// The lock was not to be had.
    #[error("another gate command is at work (it holds {path}): try again when it is done")]
    Locked {
        /// The locked folder.
        path: PathBuf,
    },
    /// The daemon would undo what was asked for.
    #[error(
        "the gate daemon runs (it answers at {socket}) and would attach anew: stop it first with \
         `systemctl stop gate`, or say `--force`"
    )]
    DaemonRuns {
        /// Its socket.
        socket: PathBuf,
    },
    /// A gate is already under a restart.
    #[error("{gate} is being restarted by another gate command: wait for it, or stop it")]
    RestartUnderWay {
        /// The gate.
        gate: String,
    },
    /// No such interface.
    #[error("no interface {name} in this network namespace: `ip link` lists them")]
    UnknownInterface {
        /// The name.
        name: String,
    },
    /// An interface can't take a hook.
    #[error("{interface} can't take that hook: {why}; {instead}")]
    Impossible {
        /// The interface.
        interface: String,
        /// Why.
        why: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// Another program is attached.
    #[error(
        "{interface} has another XDP program, {program} (id {id}), which gate never replaces: \
         `gate up {interface}` takes TC then, or detach it (`ip link set dev {interface} xdp off`)"
    )]
    HookTaken {
        /// The interface.
        interface: String,
        /// The foreign program's name.
        program: String,
        /// Its id.
        id: u32,
    },
    /// Another filter has the first place, and decides what later ones see.
    #[error(
        "{interface} has another {direction} filter of preference 1, which would decide what gate \
         sees: give it a later one (`tc filter show dev {interface} {direction}`)"
    )]
    FilterTaken {
        /// The interface.
        interface: String,
        /// `ingress` or `egress`.
        direction: &'static str,
    },
    /// The driver can't do what was asked.
    #[error("{interface}: {why}: use `gate up {interface}`, which takes TC then")]
    NoNativeXdp {
        /// The interface.
        interface: String,
        /// Why.
        why: String,
    },
    /// The kernel lacks something.
    #[error("this kernel ({release}) lacks {feature}, which came with Linux {since}: upgrade it")]
    Kernel {
        /// The running kernel's release.
        release: String,
        /// The feature.
        feature: &'static str,
        /// The first version that has it.
        since: &'static str,
    },
    /// No cgroup v2 hierarchy.
    #[error(
        "no cgroup v2 hierarchy is mounted, and the connect hook needs one: mount it with `mount -t \
         cgroup2 cgroup2 FOLDER`, or hand over on the backend's host (`--hook sk-lookup`)"
    )]
    NoCgroups,
    /// A path that is no cgroup.
    #[error(
        "{path} is no folder of a cgroup v2 hierarchy: `--cgroup` takes one below {root}, or leave it \
         out for all processes"
    )]
    NotCgroup {
        /// As given.
        path: PathBuf,
        /// The hierarchy.
        root: PathBuf,
    },
    /// The connect hook is attached to another cgroup.
    #[error(
        "connections of another cgroup than {path} are handed over already: name the same `--cgroup` as \
         then, or take that back first (`gate handover GATE --back`)"
    )]
    OtherCgroup {
        /// What was asked for.
        path: PathBuf,
    },
    /// The kernel can't destroy sockets.
    #[error(
        "this kernel ({release}) can't reset connections: it is built without \
         CONFIG_INET_DIAG_DESTROY; wait for them with `gate drain`, or restart who has them"
    )]
    NoDestroy {
        /// The running kernel's release.
        release: String,
    },
    /// The kernel has no memory for the maps, or the command's control group allows no more.
    #[error(
        "not enough memory for the data path ({text}): allow it more, or take less with \
         `gate up --held COUNT`"
    )]
    NoMemory {
        /// aya's error with all its sources.
        text: String,
    },
    /// Other sizes than asked for.
    #[error(
        "the table of held SYNs has room for {actual}, not {asked}: run `gate down`, then \
         `gate up --held {asked}` again"
    )]
    OtherSize {
        /// What is pinned.
        actual: u32,
        /// What was asked for.
        asked: u32,
    },
    /// The tables are full.
    #[error("{what} is full ({max} entries): open gates that are no longer needed, or `gate down`")]
    Full {
        /// The table.
        what: &'static str,
        /// Its size.
        max: u32,
    },
    /// An aya call failed.
    #[error("{what}: {text}")]
    Aya {
        /// What was being done.
        what: String,
        /// aya's error with all its sources.
        text: String,
    },
    /// A restart's command doesn't exist.
    #[error("no command {command} in PATH: nothing was changed; check its name")]
    NoCommand {
        /// As given.
        command: String,
    },
    /// A restart's command can't be run.
    #[error("{command} can't be run: {cause}; nothing was changed; check its permissions")]
    NotExecutable {
        /// As given.
        command: String,
        /// Why.
        cause: io::Error,
    },
    /// A restart's command could not be started after all.
    #[error(
        "{command} can't be run: {cause}; the gate was opened again; check what it is, and the \
         interpreter in its first line"
    )]
    NotStarted {
        /// As found.
        command: String,
        /// Why.
        cause: io::Error,
    },
    /// An interface is attached in another way than asked for.
    #[error(
        "{interface} is attached with {actual} already, not {asked}: run `gate down` first to change \
         the hook"
    )]
    OtherHook {
        /// The interface.
        interface: String,
        /// How it is attached.
        actual: String,
        /// What was asked for.
        asked: String,
    },
    /// A backend's socket can't be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A gate isn't handed over.
    #[error(transparent)]
    Handover(#[from] Refusal),
    /// The configuration is wrong: a line for each mistake.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A status port can't be had.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// A lease had run out before the gate was opened.
    #[error(
        "{gate}: the lease ran out {ago:.1?} ago and opened the gate then; a longer `--for` \
         or `--max-hold` holds longer"
    )]
    LeaseOver {
        /// The gate.
        gate: String,
        /// How long ago.
        ago: Duration,
    },
}

/// An error with its sources, of which each is told once.
#[must_use]
pub fn line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !line.contains(&more) {
            line = format!("{line}: {more}");
        }
        source = inner.source();
    }
    line
}

impl Error {
    /// For `map_err`: a failed call about an object.
    pub fn call(call: &'static str, object: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let object = object.into();
        move |source| Self::Call {
            call,
            object,
            source,
        }
    }

    /// For `map_err`: a failed aya call, with its sources in one line.
    pub fn aya<E: std::error::Error>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| {
            let text = line(&error).lines().next().unwrap_or_default().to_owned();
            Self::Aya { what, text }
        }
    }

    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Rights { .. } | Self::LockedMemory { .. } => exit::RIGHTS,
            Self::Backend(error) => error.exit_code(),
            Self::Alias(error) => error.exit_code(),
            Self::Call { source, .. } if is_rights(source) => exit::RIGHTS,
            Self::NotUp
            | Self::NoTerminal
            | Self::NotCovered { .. }
            | Self::GateNotCovered { .. }
            | Self::NotHere { .. }
            | Self::NoGate { .. }
            | Self::DaemonRuns { .. }
            | Self::Member { .. }
            | Self::Closed { .. }
            | Self::Guarded { .. } => exit::STATE,
            Self::Overlap { .. }
            | Self::DrainTooLong { .. }
            | Self::NotCgroup { .. }
            | Self::Config(_) => exit::USAGE,
            Self::HookTaken { .. } | Self::FilterTaken { .. } => exit::TAKEN,
            Self::Handover(refusal) => refusal.exit_code(),
            Self::LeaseOver { .. } => exit::LEASE,
            Self::NoCommand { .. } => exit::NOT_FOUND,
            Self::NotExecutable { .. } | Self::NotStarted { .. } => exit::NOT_EXECUTABLE,
            Self::Call { .. }
            | Self::NoBpffs { .. }
            | Self::ForeignFolder { .. }
            | Self::OtherAbi { .. }
            | Self::MissingPin { .. }
            | Self::Locked { .. }
            | Self::RestartUnderWay { .. }
            | Self::UnknownInterface { .. }
            | Self::NoRoute { .. }
            | Self::Impossible { .. }
            | Self::NoNativeXdp { .. }
            | Self::Kernel { .. }
            | Self::NoCgroups
            | Self::OtherCgroup { .. }
            | Self::NoDestroy { .. }
            | Self::OtherHook { .. }
            | Self::OtherSize { .. }
            | Self::NoMemory { .. }
            | Self::Full { .. }
            | Self::Aya { .. } => exit::FAILURE,
        }
    }
}

fn is_rights(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}
