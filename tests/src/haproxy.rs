//! A real HAProxy. All it writes is in the topology's own folder in memory.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::topology::{Place, Process, SCRATCH, Topology};
use crate::{exe, listener};

/// How long HAProxy may take to start.
const LIMIT: Duration = Duration::from_secs(10);

/// Which HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The system's.
    System,
    /// Debian 13's.
    Three,
}

impl Release {
    /// The variable that names the program.
    fn variable(self) -> &'static str {
        match self {
            Self::System => "GATE_TEST_HAPROXY",
            Self::Three => "GATE_TEST_HAPROXY_3",
        }
    }

    /// The program, without words. Debian 13's needs a newer C library than the system may have, and
    /// so that one's loader.
    pub(crate) fn command(self) -> Result<Command> {
        let variable = self.variable();
        let program = exe::foreign("haproxy", variable)?;
        let mut command = match std::env::var_os(format!("{variable}_LOADER")) {
            Some(loader) => Command::new(loader),
            None => Command::new("env"),
        };
        command.arg(program);
        if let Some(folders) = std::env::var_os(format!("{variable}_LIBS")) {
            command.env("LD_LIBRARY_PATH", folders);
        }
        Ok(command)
    }
}

/// What it does about a server that refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// It tries thrice more, a second apart, which is its default.
    Default,
    /// Nothing.
    None,
}

/// A running HAProxy with one frontend, `web`, and one backend.
pub struct HaProxy<'a> {
    topology: &'a Topology,
    place: Place,
    socket: PathBuf,
    process: Process,
}

impl<'a> HaProxy<'a> {
    /// Starts one at `listen` before these servers; returns when it listens.
    pub fn start(
        topology: &'a Topology,
        place: impl Into<Place>,
        release: Release,
        retries: Retries,
        listen: SocketAddr,
        servers: &[SocketAddr],
    ) -> Result<Self> {
        let (defaults, backend) = (retries.line(), balanced(servers));
        Self::start_with(topology, place, release, listen, defaults, &backend)
    }

    /// Starts one with room for so many connections, and these lines in the sections `defaults` and
    /// `backend app`.
    pub fn start_sized(
        topology: &'a Topology,
        place: impl Into<Place>,
        release: Release,
        listen: SocketAddr,
        connections: u32,
        defaults: &str,
        backend: &str,
    ) -> Result<Self> {
        let text = |socket: &Path| {
            configuration(socket, listen, connections, connections, defaults, backend)
        };
        Self::launch(topology, place.into(), release, listen, text)
    }

    /// As [`start`](Self::start), with these lines in the sections `defaults` and `backend app`.
    pub fn start_with(
        topology: &'a Topology,
        place: impl Into<Place>,
        release: Release,
        listen: SocketAddr,
        defaults: &str,
        backend: &str,
    ) -> Result<Self> {
        let text = |socket: &Path| configuration(socket, listen, 4_000, 3_000, defaults, backend);
        Self::launch(topology, place.into(), release, listen, text)
    }

    fn launch(
        topology: &'a Topology,
        place: Place,
        release: Release,
        listen: SocketAddr,
        text: impl Fn(&Path) -> String,
    ) -> Result<Self> {
        let folder = Path::new(SCRATCH).join("haproxy");
        let (file, socket) = (folder.join("haproxy.cfg"), folder.join("admin.sock"));
        let text = text(&socket);
        topology.run(place.clone(), || {
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("create {}", folder.display()))?;
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))
        })?;
        let mut command = release.command()?;
        let process = topology.spawn(place.clone(), command.arg("-f").arg(&file))?;
        topology
            .run(place.clone(), || {
                listener::wait_until(listen, true, LIMIT)?;
                wait_for(&socket)
            })
            .with_context(|| format!("start HAProxy: {}", process.stderr().unwrap_or_default()))?;
        Ok(Self {
            topology,
            place,
            socket,
            process,
        })
    }

    /// Gives it a command by its socket, and returns its answer.
    pub fn ask(&self, command: &str) -> Result<String> {
        self.topology.run(self.place.clone(), || {
            let mut stream = UnixStream::connect(&self.socket)
                .with_context(|| format!("connect to {}", self.socket.display()))?;
            stream.write_all(format!("{command}\n").as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.trim().to_owned())
        })
    }

    /// The connections that clients have to the frontend.
    pub fn clients(&self) -> Result<u64> {
        let table = self.ask("show stat")?;
        cell(&table, "web,FRONTEND,", "scur")
            .and_then(|clients| clients.parse().ok())
            .with_context(|| format!("no frontend in {table}"))
    }

    /// Whether it has ever had as many connections from clients as the frontend may have.
    pub fn was_full(&self) -> Result<bool> {
        let table = self.ask("show stat")?;
        was_full(&table).with_context(|| format!("no frontend in {table}"))
    }

    /// Does it take this server for one that is there, by its checks?
    pub fn is_up(&self, server: &str) -> Result<bool> {
        let table = self.ask("show stat")?;
        let status = cell(&table, &format!("app,{server},"), "status");
        let status = status.with_context(|| format!("no server {server} in {table}"))?;
        Ok(status.starts_with("UP") || status == "no check")
    }

    /// How it ended, if it did by itself.
    pub fn fate(&self) -> Result<Option<String>> {
        if !self.process.has_ended()? {
            return Ok(None);
        }
        Ok(Some(self.process.wait(LIMIT)?.status.to_string()))
    }
}

/// HAProxy gives its socket a name before it listens.
fn wait_for(socket: &Path) -> Result<()> {
    let late = Instant::now() + LIMIT;
    while UnixStream::connect(socket).is_err() {
        ensure!(
            Instant::now() < late,
            "nobody listens on {}",
            socket.display()
        );
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The most connections that the frontend had, against its limit.
fn was_full(table: &str) -> Option<bool> {
    let count = |column| cell(table, "web,FRONTEND,", column)?.parse::<u64>().ok();
    Some(count("smax")? >= count("slim")?)
}

/// This column of the row that begins so.
fn cell<'a>(table: &'a str, row: &str, column: &str) -> Option<&'a str> {
    let mut lines = table.lines();
    let column = lines.next()?.split(',').position(|name| name == column)?;
    let row = lines.find(|line| line.starts_with(row))?;
    row.split(',').nth(column)
}

impl Retries {
    /// Its line in the section `defaults`.
    fn line(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::None => "    retries 0\n",
        }
    }
}

/// Servers that are asked in turn, and checked as often as HAProxy does by default.
fn balanced(servers: &[SocketAddr]) -> String {
    let servers: String = (1..)
        .zip(servers)
        .map(|(number, address)| format!("    server app{number} {address} check\n"))
        .collect();
    format!("    balance roundrobin\n{servers}")
}

/// HAProxy's documentation calls these timeouts usual.
fn configuration(
    socket: &Path,
    listen: SocketAddr,
    whole: u32,
    frontend: u32,
    defaults: &str,
    backend: &str,
) -> String {
    format!(
        "global\n    \
             stats socket {} mode 600 level admin\n    \
             maxconn {whole}\n\
         defaults\n    \
             mode http\n    \
             timeout connect 20s\n    \
             timeout client 30s\n    \
             timeout server 30s\n\
         {defaults}\
         frontend web\n    \
             bind {listen}\n    \
             maxconn {frontend}\n    \
             default_backend app\n\
         backend app\n\
         {backend}",
        socket.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_found() {
        let table = "# pxname,svname,qcur,qmax,scur,smax\n\
                     app,app1,0,0,7,8\nweb,FRONTEND,,,12,40\n";
        assert_eq!(cell(table, "web,FRONTEND,", "scur"), Some("12"));
        assert_eq!(cell(table, "app,app1,", "scur"), Some("7"));
        assert_eq!(cell("# pxname,svname,scur\n", "app,app1,", "scur"), None);
    }

    #[test]
    fn a_frontend_was_full_when_its_limit_was_reached() {
        let table = |most| format!("# pxname,svname,smax,slim\nweb,FRONTEND,{most},750\n");
        assert_eq!(was_full(&table(749)), Some(false));
        assert_eq!(was_full(&table(750)), Some(true));
        assert_eq!(was_full("# pxname,svname,smax\nweb,FRONTEND,7\n"), None);
    }
}
