//! A real nginx in the server namespace, and one in front of it. All they write is in the
//! topology's own folder in memory.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::topology::{Place, SCRATCH, Side, Topology, server_v4, server_v6};
use crate::{exe, listener, text};

/// The environment variable that names the nginx to use.
pub const NGINX: &str = "GATE_TEST_NGINX";
/// The port it listens on, over IPv4 and over IPv6.
pub const PORT: u16 = 8080;

/// Where the proxy listens, on loopback only.
pub const PROXY: SocketAddr = loopback(8000);
/// Where the proxy connects to: the server over loopback.
pub const UPSTREAM: SocketAddr = loopback(PORT);

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// How long nginx may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// A running nginx.
pub struct Nginx<'a> {
    topology: &'a Topology,
    place: Place,
    program: String,
    folder: PathBuf,
}

impl<'a> Nginx<'a> {
    /// Writes a configuration for one worker and starts it; returns when it listens.
    pub fn start(topology: &'a Topology) -> Result<Self> {
        let nginx = Self::run(topology, Side::Server, "nginx", &server())?;
        for address in nginx.addresses() {
            topology.run(Side::Server, || listener::wait_until(address, true, LIMIT))?;
        }
        Ok(nginx)
    }

    /// Starts one at [`PROXY`] that makes a new connection to [`UPSTREAM`] for each request, tries
    /// no other and forgives none that fails.
    pub fn start_proxy(topology: &'a Topology) -> Result<Self> {
        let proxy = Self::run(topology, Side::Server, "proxy", &proxy())?;
        topology.run(Side::Server, || listener::wait_until(PROXY, true, LIMIT))?;
        Ok(proxy)
    }

    /// Starts one at [`PROXY`] that keeps its connections to [`UPSTREAM`] for the next requests, and
    /// repeats a request whose kept connection turns out to be dead, as nginx does by default.
    pub fn start_keeping_proxy(topology: &'a Topology) -> Result<Self> {
        let proxy = Self::run(topology, Side::Server, "proxy", &keeping_proxy())?;
        topology.run(Side::Server, || listener::wait_until(PROXY, true, LIMIT))?;
        Ok(proxy)
    }

    /// Starts one anywhere with this `http` block, which listens on `address`.
    pub fn start_with(
        topology: &'a Topology,
        place: impl Into<Place>,
        name: &str,
        address: SocketAddr,
        http: &str,
    ) -> Result<Self> {
        let nginx = Self::run(topology, place, name, http)?;
        let listens = || listener::wait_until(address, true, LIMIT);
        topology.run(nginx.place.clone(), listens)?;
        Ok(nginx)
    }

    fn run(
        topology: &'a Topology,
        place: impl Into<Place>,
        name: &str,
        http: &str,
    ) -> Result<Self> {
        let nginx = Self {
            topology,
            place: place.into(),
            program: exe::foreign_words("nginx", NGINX)?,
            folder: Path::new(SCRATCH).join(name),
        };
        nginx.configure("nginx.conf", http)?;
        nginx.shell(&nginx.start_line())?;
        Ok(nginx)
    }

    /// Starts it anew after it was stopped. nginx listens before it goes into the background.
    pub fn start_again(&self) -> Result<()> {
        self.shell(&self.start_line())
    }

    /// Writes a configuration into its folder, and returns where.
    pub fn configure(&self, name: &str, http: &str) -> Result<PathBuf> {
        let file = self.folder.join(name);
        self.topology.run(self.place.clone(), || {
            std::fs::create_dir_all(&self.folder)
                .with_context(|| format!("create {}", self.folder.display()))?;
            std::fs::write(&file, configuration(&self.folder, http))
                .with_context(|| format!("write {}", file.display()))
        })?;
        Ok(file)
    }

    /// The configuration that it reads when it starts.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("nginx.conf")
    }

    /// Where it listens.
    pub fn addresses(&self) -> [SocketAddr; 2] {
        [server_v4(PORT), server_v6(PORT)]
    }

    /// The command that restarts it so that nothing listens for `outage`, from the old listener's
    /// closing to the new nginx's start. To be run in the server namespace.
    pub fn restart_command(&self, outage: Duration) -> Result<Vec<OsString>> {
        let line = format!(
            "{stop} && '{lab}' away {address} --for {outage} && {gone} && {start}",
            stop = self.stop_line(),
            lab = exe::lab()?.display(),
            address = server_v4(PORT),
            outage = text::duration(outage),
            gone = GONE,
            start = self.start_line(),
        );
        Ok(["sh".into(), "-c".into(), line.into()].to_vec())
    }

    /// What it has written to its log of errors.
    pub fn errors(&self) -> String {
        let log = self.folder.join("error.log");
        let read = || Ok(std::fs::read_to_string(&log)?);
        self.topology
            .run(self.place.clone(), read)
            .unwrap_or_default()
    }

    /// Stops it; returns when its processes are gone.
    pub fn stop(&self) -> Result<()> {
        self.shell(&self.stop_and_wait_line())
    }

    /// Ends all its processes by SIGKILL.
    pub fn kill(&self) -> Result<()> {
        // The master first: one that lives would start other workers.
        self.shell(&format!(
            "{} && workers=$(cat /proc/$pid/task/$pid/children) && \
             kill -KILL $pid $workers && {GONE}",
            self.pid_line()
        ))
    }

    /// The shell line that stops it, and returns when its processes are gone.
    pub fn stop_and_wait_line(&self) -> String {
        format!("{} && {GONE}", self.stop_line())
    }

    /// Notes the master's process id, for [`GONE`], and tells it to finish what it has and end,
    /// by the signal that Debian's unit sends.
    fn stop_line(&self) -> String {
        format!("{} && kill -QUIT $pid", self.pid_line())
    }

    /// Notes the master's process id as `$pid`. The master writes it after its parent has ended.
    fn pid_line(&self) -> String {
        let pid = self.folder.join("nginx.pid");
        let pid = pid.display();
        format!("until [ -s '{pid}' ]; do sleep 0.01; done && read pid < '{pid}'")
    }

    /// The shell line that starts nginx.
    pub fn start_line(&self) -> String {
        let (program, folder) = (&self.program, self.folder.display());
        format!("{program} -p '{folder}' -e error.log -c nginx.conf")
    }

    fn shell(&self, line: &str) -> Result<()> {
        let mut command = Command::new("sh");
        self.topology
            .output(self.place.clone(), command.args(["-c", line]), LIMIT)?
            .ok()?;
        Ok(())
    }
}

/// Waits until the process `$pid` is gone. It is nobody's child here, so no zombie stays.
pub(crate) const GONE: &str = "while kill -0 $pid 2>/dev/null; do sleep 0.01; done";

/// A configuration that touches nothing outside `folder`.
fn configuration(folder: &Path, http: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", folder.display()))
        .concat();
    format!(
        "user root;\n\
         worker_processes 1;\n\
         pid {folder}/nginx.pid;\n\
         error_log {folder}/error.log;\n\
         events {{ worker_connections 8192; }}\n\
         worker_rlimit_nofile 20000;\n\
         http {{\n\
         {temporary}    \
             access_log off;\n\
         {http}\
         }}\n",
        folder = folder.display(),
    )
}

/// What answers by itself.
fn server() -> String {
    format!(
        "    server {{\n        \
             listen {PORT} backlog=4096;\n        \
             listen [::]:{PORT} backlog=4096 ipv6only=on;\n        \
             location = / {{ return 200 \"ok\\n\"; }}\n        \
             location = /healthz {{ return 200 \"ok\\n\"; }}\n    \
         }}\n"
    )
}

/// What asks the server.
fn proxy() -> String {
    format!(
        "    upstream backend {{ server {UPSTREAM} max_fails=0; }}\n    \
         server {{\n        \
             listen {PROXY} backlog=4096;\n        \
             location / {{\n            \
                 proxy_pass http://backend;\n            \
                 proxy_next_upstream off;\n            \
                 proxy_connect_timeout 60s;\n        \
             }}\n    \
         }}\n"
    )
}

/// What asks the server over connections that it keeps.
fn keeping_proxy() -> String {
    format!(
        "    upstream backend {{ server {UPSTREAM} max_fails=0; keepalive 64; }}\n    \
         server {{\n        \
             listen {PROXY} backlog=4096;\n        \
             location / {{\n            \
                 proxy_pass http://backend;\n            \
                 proxy_http_version 1.1;\n            \
                 proxy_set_header Connection \"\";\n        \
             }}\n    \
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_stays_in_its_folder() {
        for http in [server(), proxy(), keeping_proxy()] {
            let text = configuration(Path::new("/run/nginx"), &http);
            let paths: Vec<_> = text
                .split_whitespace()
                .filter(|word| word.starts_with("/") && word.len() > 1)
                .filter(|word| *word != "/healthz")
                .collect();
            assert_eq!(paths.len(), 7, "{text}");
            assert!(
                paths.iter().all(|path| path.starts_with("/run/nginx/")),
                "{paths:?}"
            );
        }
    }
}
