//! One backend behind Apache as a reverse proxy, restarted under load.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{LIMIT, Run, Schedule, ensure_away};
use crate::apache::Apache;
use crate::exe;
use crate::iptables::Iptables;
use crate::listener::{self, Watch};
use crate::load::Load;
use crate::nginx::{Nginx, PORT, UPSTREAM};
use crate::topology::{CLIENT_V4, SCRATCH, SERVER_V4, Side, Topology, command, server_v4};

/// The port of the proxy.
const PROXY_PORT: u16 = 8000;
/// While this file is there, the proxy keeps no connection to the backend.
const DRAIN: &str = "drain";
/// From the opening until the proxy may keep connections again: a backend that has just started has
/// few idle threads, and Apache then closes the connections that it kept.
const SETTLE: Duration = Duration::from_secs(1);

/// Where the two are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// The proxy on one, with the clients; the backend on another.
    Two,
    /// Both on one, the backend over loopback.
    One,
}

/// The backend's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Apache, stopped by SIGWINCH.
    Apache,
    /// nginx, stopped by SIGQUIT.
    Nginx,
}

/// What the proxy does with its connections to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Keeps them: mod_proxy's default.
    Kept,
    /// `ping=1`.
    Ping,
    /// Keeps them until it is told to close each after its next response.
    Drained,
    /// `disablereuse=On`.
    Never,
}

/// What is done about the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    Nothing,
    /// iptables drops SYNs.
    Iptables,
    /// `gate restart` with these options.
    Gate(&'static [&'static str]),
}

/// One way to restart it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Where the proxy and the backend are.
    pub hosts: Hosts,
    /// The backend's program.
    pub backend: Backend,
    /// The proxy's connections.
    pub reuse: Reuse,
    /// The clients.
    pub how: How,
}

enum Server<'a> {
    Apache(Apache<'a>),
    Nginx(Nginx<'a>),
}

impl Case {
    fn proxy(self) -> (Side, SocketAddr) {
        match self.hosts {
            Hosts::Two => (Side::Client, SocketAddr::new(CLIENT_V4.into(), PROXY_PORT)),
            Hosts::One => (Side::Server, SocketAddr::new(SERVER_V4.into(), PROXY_PORT)),
        }
    }

    fn upstream(self) -> SocketAddr {
        match self.hosts {
            Hosts::Two => server_v4(PORT),
            Hosts::One => UPSTREAM,
        }
    }

    /// The proxy's part of Apache's configuration.
    fn proxy_configuration(self) -> String {
        let (options, more) = match self.reuse {
            Reuse::Kept => ("", String::new()),
            Reuse::Ping => (" ping=1", String::new()),
            Reuse::Never => (" disablereuse=On", String::new()),
            Reuse::Drained => {
                let file = Path::new(SCRATCH).join(DRAIN);
                let test = format!(
                    "SetEnvIfExpr \"-f '{}'\" proxy-nokeepalive\n",
                    file.display()
                );
                ("", test)
            }
        };
        format!("{more}ProxyPass / http://{}/{options}\n", self.upstream())
    }

    /// Restarts the backend as often as the schedule says.
    pub fn run(self, schedule: Schedule) -> Result<Run> {
        let topology = Topology::new()?;
        let upstream = self.upstream();
        let server = match self.backend {
            Backend::Apache => {
                Server::Apache(Apache::serve(&topology, Side::Server, "backend", upstream)?)
            }
            Backend::Nginx => Server::Nginx(Nginx::start(&topology)?),
        };
        let (side, address) = self.proxy();
        let more = self.proxy_configuration();
        let _proxy = Apache::start(&topology, side, "proxy", address, &more)?;
        let words = match &server {
            Server::Apache(apache) => apache.restart_command(schedule.outage)?,
            Server::Nginx(nginx) => nginx.restart_command(schedule.outage)?,
        };
        let watch = Watch::start(&topology, upstream)?;
        let load = Load {
            paths: match self.backend {
                Backend::Apache => &["/", "/", "/", "/slow"],
                Backend::Nginx => &["/"],
            },
            ..Load::new(address, schedule.rate, Duration::ZERO)
        };
        let load = load.start_endless(&topology, Side::Client)?;
        schedule.each(load.begin(), || self.restart(&topology, &words, &schedule))?;
        let (_, requests) = load.finish()?;
        let gaps = watch.finish()?;
        ensure_away(&gaps, schedule.times)?;
        Ok(Run::new(&requests, &gaps))
    }

    fn restart(self, topology: &Topology, words: &[OsString], schedule: &Schedule) -> Result<()> {
        let upstream = self.upstream();
        let drain = Path::new(SCRATCH).join(DRAIN);
        if self.reuse == Reuse::Drained {
            topology.run(Side::Server, || Ok(std::fs::write(&drain, "")?))?;
        }
        let run = |mut command: Command| -> Result<()> {
            let limit = schedule.outage + LIMIT;
            topology.output(Side::Server, &mut command, limit)?.ok()?;
            topology.run(Side::Server, || {
                listener::wait_until(upstream, true, LIMIT)?;
                Ok(())
            })
        };
        match self.how {
            How::Nothing => run(command(words))?,
            How::Iptables => {
                let firewall = Iptables::drop_new(topology, Side::Server, upstream.port())?;
                run(command(words))?;
                firewall.flush()?;
            }
            How::Gate(options) => {
                let check = format!("http://{upstream}/healthz");
                let mut gate = Command::new(exe::gate()?);
                gate.args(["restart", &upstream.to_string(), "--check", &check]);
                gate.args(options).arg("--").args(words);
                run(gate)?;
            }
        }
        if self.reuse == Reuse::Drained {
            std::thread::sleep(SETTLE);
            topology.run(Side::Server, || Ok(std::fs::remove_file(&drain)?))?;
        }
        Ok(())
    }
}
