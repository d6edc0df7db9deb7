//! What keeps the daemon from running.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::{Error, exit};

/// Why the daemon can't run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon serves the socket.
    #[error(
        "another gate daemon answers at {path}: stop it (`systemctl stop gate`), or give this one another socket"
    )]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has the socket's path.
    #[error(
        "{path} is there and is no socket: remove it, or set another `socket` in the configuration"
    )]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket can't be made.
    #[error("can't make the socket {path} ({source}): look at its folder")]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The metrics can't be served.
    #[error(
        "can't serve metrics at {address} ({source}): set another `metrics` in the configuration, or none"
    )]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The library's.
    #[error(transparent)]
    Gate(#[from] Error),
}

impl DaemonError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Running { .. } | Self::NoSocket { .. } => exit::STATE,
            Self::Socket { source, .. } | Self::Metrics { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => exit::RIGHTS,
                _ => exit::FAILURE,
            },
            Self::Gate(error) => error.exit_code(),
        }
    }
}
