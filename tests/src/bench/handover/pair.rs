//! The two backends: A, which is the gate's own, and B, which new connections are handed to.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use nix::sys::signal::Signal;

use crate::nginx::Nginx;
use crate::topology::{Output, Process, Side, Topology, server_v4};
use crate::{backend, exe, listener};

/// What they may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(30);

/// What they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// `gate-lab backend`
    Lab,
    /// nginx with one worker
    Nginx,
}

impl Kind {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lab => "gate-lab",
            Self::Nginx => "nginx",
        }
    }
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The gate's own.
    A,
    /// The other.
    B,
}

impl Which {
    /// What it answers with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// Where it listens. A's is where connections are made to.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        match self {
            Self::A => server_v4(8080),
            Self::B => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8082),
        }
    }

    /// Gives it all new connections.
    pub fn hand_over(self, topology: &Topology) -> Result<Output> {
        topology.gate(self.command())?.ok()
    }

    /// The arguments of gate that do so.
    #[must_use]
    pub fn command(self) -> Vec<String> {
        let gate = Self::A.address().to_string();
        let words = match self {
            Self::A => vec!["--back".to_owned()],
            Self::B => vec!["--to".to_owned(), Self::B.address().to_string()],
        };
        [vec!["handover".to_owned(), gate], words].concat()
    }
}

/// A backend that runs.
pub enum Backend<'a> {
    /// `gate-lab backend`.
    Lab(Process),
    /// nginx.
    Nginx(Nginx<'a>),
}

impl<'a> Backend<'a> {
    /// Starts it; returns when it listens.
    pub fn start(topology: &'a Topology, kind: Kind, which: Which) -> Result<Self> {
        let (name, address) = (which.name(), which.address());
        match kind {
            Kind::Nginx => {
                let http = format!(
                    "    server {{ listen {address} backlog=4096; location = / {{ return 200 \
                     \"{name}\\n\"; }} }}\n"
                );
                let nginx = Nginx::start_with(topology, Side::Server, name, address, &http)?;
                Ok(Self::Nginx(nginx))
            }
            Kind::Lab => {
                let options = backend::Options {
                    name: name.to_owned(),
                    ..backend::Options::new(address)
                };
                let mut command = Command::new(exe::lab()?);
                command.arg("backend").args(options.to_args());
                let process = topology.spawn(Side::Server, &mut command)?;
                topology.run(Side::Server, || listener::wait_until_own(address, LIMIT))?;
                Ok(Self::Lab(process))
            }
        }
    }

    /// Tells it to end, and waits until it has.
    pub fn stop(&self) -> Result<()> {
        match self {
            Self::Nginx(nginx) => nginx.stop(),
            Self::Lab(process) => {
                process.signal(Signal::SIGTERM)?;
                process.wait(LIMIT)?.ok().map(drop)
            }
        }
    }
}
