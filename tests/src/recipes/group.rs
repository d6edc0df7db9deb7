//! Three servers behind one HAProxy, upgraded at once with the database that they share.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::host::Host;
use super::{LIMIT, Run, Schedule};
use crate::exe;
use crate::haproxy::{HaProxy, Release, Retries};
use crate::listener::Watch;
use crate::load::Load;
use crate::nginx::Nginx;
use crate::topology::{SCRATCH, Side, Topology, command, server_v4};

/// How many servers there are.
const SERVERS: u8 = 3;
/// The port of HAProxy.
const FRONTEND: u16 = 8000;
/// The gate's name.
pub const GATE: &str = "web";

/// The options of `gate restart` for a proxy that keeps connections for a client's next request.
pub const DRAIN: &[&str] = &["--drain", "5s", "--flush-idle", "100ms"];

/// What is done about the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    Nothing,
    /// One gate for the three, on HAProxy's host, with these options of `gate restart`.
    Gate(&'static [&'static str]),
    /// `set maxconn frontend web 0` on HAProxy's socket.
    Maxconn(Release),
}

/// Three servers, each on a host of its own, with HAProxy on a fourth.
pub struct Site<'a> {
    topology: &'a Topology,
    servers: Vec<Server<'a>>,
    folder: PathBuf,
}

struct Server<'a> {
    nginx: Nginx<'a>,
    host: Host,
}

impl<'a> Site<'a> {
    /// Wires the hosts to the topology's server side and starts the servers.
    pub fn start(topology: &'a Topology) -> Result<Self> {
        let folder = Path::new(SCRATCH).join("database");
        topology.run(Side::Server, || {
            std::fs::create_dir_all(&folder)?;
            Ok(std::fs::write(folder.join("v1"), "")?)
        })?;
        let servers = (1..=SERVERS)
            .map(|number| Server::start(topology, number, &folder))
            .collect::<Result<_>>()?;
        Ok(Self {
            topology,
            servers,
            folder,
        })
    }

    /// Where the servers listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers
            .iter()
            .map(|server| server.host.address)
            .collect()
    }

    /// The command that stops all three, has the database migrated, which takes `outage`, and
    /// starts three that know nothing but the new one. To be run anywhere in the topology.
    pub fn upgrade_command(&self, to: Version, outage: Duration) -> Vec<OsString> {
        let stop: Vec<String> = self
            .servers
            .iter()
            .map(|server| server.nginx.stop_and_wait_line())
            .collect();
        let start: Vec<String> = self
            .servers
            .iter()
            .map(|server| {
                format!(
                    "cp '{}/{}.conf' '{}' && nsenter --net=/proc/{}/ns/net env {}",
                    server.nginx.configuration().with_file_name("").display(),
                    to.name(),
                    server.nginx.configuration().display(),
                    server.host.namespace.name(),
                    server.nginx.start_line()
                )
            })
            .collect();
        let line = format!(
            "{} && sleep {} && mv '{folder}/{}' '{folder}/{}' && {}",
            stop.join(" && "),
            outage.as_secs_f64(),
            to.other().name(),
            to.name(),
            start.join(" && "),
            folder = self.folder.display(),
        );
        ["sh".into(), "-c".into(), line.into()].to_vec()
    }
}

/// Which version of the application, and of its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The first.
    One,
    /// The second.
    Two,
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::One => "v1",
            Self::Two => "v2",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two => Self::One,
        }
    }
}

impl<'a> Server<'a> {
    fn start(topology: &'a Topology, number: u8, database: &Path) -> Result<Self> {
        let host = Host::new(topology, number)?;
        let address = host.address;
        let http = |version| application(address, database, version);
        let name = format!("app{number}");
        let first = http(Version::One);
        let nginx = Nginx::start_with(topology, &host.namespace, &name, address, &first)?;
        for version in [Version::One, Version::Two] {
            nginx.configure(&format!("{}.conf", version.name()), &http(version))?;
        }
        Ok(Self { nginx, host })
    }
}

/// An application that fails each request that finds the database of another version.
fn application(address: SocketAddr, database: &Path, version: Version) -> String {
    format!(
        "    server {{\n        \
             listen {address} backlog=4096;\n        \
             location / {{\n            \
                 if (!-f {}/{version}) {{ return 500; }}\n            \
                 return 200 \"{version}\\n\";\n        \
             }}\n    \
         }}\n",
        database.display(),
        version = version.name(),
    )
}

/// Upgrades the three as often as the schedule says.
pub fn run(how: How, retries: Retries, schedule: Schedule) -> Result<Run> {
    let topology = Topology::new()?;
    let site = Site::start(&topology)?;
    let addresses = site.addresses();
    let release = match how {
        How::Maxconn(release) => release,
        How::Nothing | How::Gate(_) => Release::System,
    };
    let listen = server_v4(FRONTEND);
    let haproxy = HaProxy::start(
        &topology,
        Side::Server,
        release,
        retries,
        listen,
        &addresses,
    )?;
    if let How::Gate(_) = how {
        let mut words = vec!["define".to_owned(), GATE.to_owned()];
        words.extend(addresses.iter().map(ToString::to_string));
        topology
            .gate(["up", "--hook", "tc-egress", "app1", "app2", "app3"])?
            .ok()?;
        topology.gate(words)?.ok()?;
    }
    let mut version = Version::One;
    let watch = Watch::start_at(&topology, &site.servers[0].host.namespace, addresses[0])?;
    let load = Load::new(listen, schedule.rate, Duration::ZERO);
    let load = load.start_endless(&topology, Side::Client)?;
    schedule.each(load.begin(), || {
        version = version.other();
        let words = site.upgrade_command(version, schedule.outage);
        upgrade(&site, &haproxy, how, &words, schedule.outage + LIMIT)
            .or_else(|error| blame(&haproxy, error))
    })?;
    let (_, requests) = load.finish()?;
    Ok(Run::new(&requests, &watch.finish()?))
}

fn upgrade(
    site: &Site,
    haproxy: &HaProxy,
    how: How,
    words: &[OsString],
    limit: Duration,
) -> Result<()> {
    let run = |mut command: Command| -> Result<()> {
        site.topology
            .output(Side::Server, &mut command, limit)?
            .ok()?;
        Ok(())
    };
    match how {
        How::Nothing => run(command(words)),
        How::Gate(options) => {
            let mut gate = Command::new(exe::gate()?);
            gate.args(["restart", GATE]).args(options).arg("--");
            gate.args(words);
            run(gate)
        }
        How::Maxconn(_) => {
            haproxy.ask("set maxconn frontend web 0")?;
            let late = Instant::now() + limit;
            while haproxy.clients()? > 0 {
                if Instant::now() > late {
                    bail!("HAProxy's clients stay");
                }
                sleep(Duration::from_millis(5));
            }
            run(command(words))?;
            haproxy.ask("set maxconn frontend web 3000").map(drop)
        }
    }
}

/// A HAProxy that died is why it does not answer.
fn blame(haproxy: &HaProxy, error: anyhow::Error) -> Result<()> {
    sleep(Duration::from_millis(200));
    match haproxy.fate()? {
        Some(fate) => bail!("HAProxy died ({fate})"),
        None => Err(error),
    }
}
