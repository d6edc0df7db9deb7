//! Why a listening socket can't be had.

use std::fmt;
use std::net::SocketAddr;

use super::exit;
use crate::endpoint::Endpoint;
use crate::sockets::Process;

/// Why there is no backend whose socket could be taken. Its text is one line: the cause, then the
/// remedy.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// No TCP socket listens there.
    #[error(
        "nothing listens on {address}{}: nothing was changed; start the backend first, and see \
         where with `ss -ltnp`",
        but_on(elsewhere)
    )]
    NothingListens {
        /// Where it was looked for.
        address: Endpoint,
        /// Where something listens on this port.
        elsewhere: Vec<SocketAddr>,
    },
    /// No TCP socket listens there, but a UDP socket is bound there.
    #[error(
        "nothing listens on {address} but UDP: only TCP connections can be handed over; nothing was \
         changed; start the backend's TCP listener first"
    )]
    OnlyUdp {
        /// Where it was looked for.
        address: Endpoint,
    },
    /// No process has that id.
    #[error(
        "there is no process {id}: nothing was changed; `ss -ltnp` tells which processes listen"
    )]
    NoProcess {
        /// The id.
        id: u32,
    },
    /// A process has no listening TCP socket.
    #[error(
        "{process} listens on no TCP port: nothing was changed; give the process that does (`ss \
         -ltnp`), its parent or child, say"
    )]
    ListensNowhere {
        /// The process.
        process: Process,
    },
    /// A process listens, but not there.
    #[error(
        "{process} does not listen on {address}, but on {}: nothing was changed; give one of those, \
         or the process that listens there (`ss -ltnp`)",
        list(at)
    )]
    ListensElsewhere {
        /// The process.
        process: Process,
        /// Where it was looked for.
        address: Endpoint,
        /// Where it listens.
        at: Vec<Endpoint>,
    },
    /// A process listens at several addresses.
    #[error(
        "{process} listens on {}: say which one with `--to`; nothing was changed",
        list(at)
    )]
    ListensAtSeveral {
        /// The process.
        process: Process,
        /// Where it listens.
        at: Vec<Endpoint>,
    },
    /// A process is in another network namespace.
    #[error(
        "{process} is in another network namespace, whose sockets get no connections of this one: \
         nothing was changed; run it in there with `nsenter --net=/proc/{}/ns/net gate ...`",
        process.id
    )]
    OtherNamespace {
        /// The process.
        process: Process,
    },
    /// The socket is another user's, and the right to trace is missing.
    #[error(
        "what listens on {address} is {user}'s, and its socket is not to be had without \
         CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: nothing was changed; run it as root, with both"
    )]
    OtherUser {
        /// Where it listens.
        address: Endpoint,
        /// Who made the socket, by name where the user has one.
        user: String,
    },
    /// Another user's process can't be looked into.
    #[error(
        "{process} is {user}'s, and its sockets are not to be had without CAP_SYS_PTRACE and \
         CAP_DAC_READ_SEARCH: nothing was changed; run it as root, with both"
    )]
    OtherUsersProcess {
        /// The process.
        process: Process,
        /// Whose it is, by name where the user has one.
        user: String,
    },
    /// The right to trace is there, and does not suffice.
    #[error(
        "the kernel does not let go of the socket of {process}, though CAP_SYS_PTRACE is there:          {why}; nothing was changed"
    )]
    NoTracing {
        /// The process.
        process: Process,
        /// Why.
        why: &'static str,
    },
    /// None of the processes that can be seen has the socket.
    #[error(
        "a socket listens on {address}, but no process that can be looked into has it: nothing was \
         changed; run it where its process is in /proc, outside of a container, say"
    )]
    NoHolder {
        /// Where it listens.
        address: Endpoint,
    },
    /// The process listens with Multipath TCP, whose socket the kernel's hooks don't take.
    #[error(
        "{process} listens on {address} with Multipath TCP, whose connections can't be handed over: \
         nothing was changed; start it with plain TCP (a Go program with GODEBUG=multipathtcp=0)"
    )]
    Multipath {
        /// Where it listens.
        address: Endpoint,
        /// The process.
        process: Process,
    },
}

impl BackendError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ListensAtSeveral { .. } => exit::USAGE,
            Self::OtherUser { .. } | Self::OtherUsersProcess { .. } | Self::NoTracing { .. } => {
                exit::RIGHTS
            }
            Self::NothingListens { .. }
            | Self::OnlyUdp { .. }
            | Self::NoProcess { .. }
            | Self::ListensNowhere { .. }
            | Self::ListensElsewhere { .. }
            | Self::OtherNamespace { .. }
            | Self::NoHolder { .. }
            | Self::Multipath { .. } => exit::STATE,
        }
    }
}

fn but_on(elsewhere: &[SocketAddr]) -> String {
    match elsewhere {
        [] => String::new(),
        _ => format!(", but on {}", list(elsewhere)),
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}
