//! The restart of a backend: a pure state machine, and the loop that drives it.

use std::fmt;
use std::time::Duration;

mod command;
mod draining;
pub mod driver;
mod gates;
pub mod machine;
mod phases;
mod watch;

pub use draining::Drained;

/// How the restart's command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl CommandEnd {
    /// The exit code that a shell would give.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal_code(signal),
        }
    }
}

impl fmt::Display for CommandEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
        }
    }
}

fn signal_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// What the restart is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The gate is closed; the accept queues are to become empty.
    Quiesce,
    /// The established connections are to end.
    Drain,
    /// The command runs.
    Command,
    /// The command is done; the backend is to listen and pass its checks.
    Health,
}

impl Phase {
    /// One word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quiesce => "quiesce",
            Self::Drain => "drain",
            Self::Command => "command",
            Self::Health => "health",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiesce => "waiting for the accept queue",
            Self::Drain => "waiting for connections to end",
            Self::Command => "the command was running",
            Self::Health => "the backend was not healthy",
        })
    }
}

/// What becomes of the connections that are left when a drain's time is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// They stay, and end as the backend ends them.
    #[default]
    Leave,
    /// They are reset.
    Flush,
}

/// How established connections are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// For how long.
    pub timeout: Duration,
    /// Connections over which nothing went for that long are reset meanwhile; none for no such.
    pub idle: Option<Duration>,
    /// And then.
    pub then: Then,
}

/// What becomes of the gate when the restart fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// It opens, and what is held is released.
    #[default]
    Open,
    /// New connections are rejected, for another lease; so are those that are held, when they
    /// retransmit.
    Reject,
    /// It stays closed for what is left of the lease.
    Keep,
}

/// How a restart is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// The longest that the queues are waited for.
    pub quiesce: Duration,
    /// How established connections are waited for, if they are.
    pub drain: Option<Drain>,
    /// What becomes of the gate when it fails.
    pub on_failure: OnFailure,
}

/// What ends a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend is healthy.
    Healthy,
    /// The command failed.
    CommandFailed(CommandEnd),
    /// The lease ran out in this phase.
    LeaseOver(Phase),
    /// A signal asked to stop.
    Interrupted(i32),
}

impl Outcome {
    /// The exit code of `gate restart`.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Healthy => crate::error::exit::DONE,
            Self::CommandFailed(end) => end.exit_code(),
            Self::LeaseOver(_) => crate::error::exit::LEASE,
            Self::Interrupted(signal) => signal_code(signal),
        }
    }

    /// What becomes of the gate. Whoever interrupts a restart wants it open; and a lease that ran out
    /// has opened it already.
    #[must_use]
    pub const fn gate(self, on_failure: OnFailure) -> AtEnd {
        match (self, on_failure) {
            (Self::Healthy | Self::Interrupted(_), _)
            | (_, OnFailure::Open)
            | (Self::LeaseOver(_), OnFailure::Keep) => AtEnd::Opens,
            (_, OnFailure::Reject) => AtEnd::Rejects,
            (Self::CommandFailed(_), OnFailure::Keep) => AtEnd::Stays,
        }
    }

    /// One word for machines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::CommandFailed(_) => "command_failed",
            Self::LeaseOver(_) => "lease_over",
            Self::Interrupted(_) => "interrupted",
        }
    }
}

/// What becomes of the gate when a restart ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// It opens.
    Opens,
    /// It rejects new connections, for another lease.
    Rejects,
    /// It stays closed, for the rest of its lease.
    Stays,
}
