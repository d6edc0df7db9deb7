//! Where the traffic of a benchmark goes.

use clap::ValueEnum;

use crate::topology::{INTERFACE, Side};

/// From the client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Path {
    /// Over the cable from one namespace to the other
    Veth,
    /// Within the server's namespace
    Loopback,
}

impl Path {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Loopback => "loopback",
        }
    }

    /// The server's interface on it.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::Veth => INTERFACE,
            Self::Loopback => "lo",
        }
    }

    /// Where the clients are.
    #[must_use]
    pub fn client(self) -> Side {
        match self {
            Self::Veth => Side::Client,
            Self::Loopback => Side::Server,
        }
    }
}
