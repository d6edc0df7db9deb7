//! A real Apache httpd, as a web server and as a reverse proxy, with Debian's defaults for threads
//! and kept connections. All it writes is in the topology's own folder in memory.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::nginx::GONE;
use crate::topology::{Place, SCRATCH, Topology};
use crate::{exe, listener, text};

/// The environment variable that names the apache2 to use.
pub const APACHE: &str = "GATE_TEST_APACHE";
/// The environment variable with the folder of its modules.
pub const APACHE_MODULES: &str = "GATE_TEST_APACHE_MODULES";
/// What a server answers a GET of `/healthz` and of `/` with.
const BODY: &str = "ok\n";
/// The size of `/slow` in bytes, which takes some 200 ms.
const SLOW: usize = 12 * 1024;
const MODULES: [&str; 11] = [
    "mpm_event",
    "authz_core",
    "setenvif",
    "ratelimit",
    "rewrite",
    "proxy",
    "proxy_http",
    "slotmem_shm",
    "proxy_balancer",
    "lbmethod_byrequests",
    "env",
];

/// How long Apache may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// A running Apache.
pub struct Apache<'a> {
    topology: &'a Topology,
    place: Place,
    listen: SocketAddr,
    program: String,
    folder: PathBuf,
}

impl<'a> Apache<'a> {
    /// Starts one that answers `/` and `/healthz` at once, and `/slow` over some 200 ms.
    pub fn serve(
        topology: &'a Topology,
        place: impl Into<Place>,
        name: &str,
        listen: SocketAddr,
    ) -> Result<Self> {
        Self::start(topology, place, name, listen, SERVER)
    }

    /// Starts one with `more` in its configuration; returns when it serves.
    pub fn start(
        topology: &'a Topology,
        place: impl Into<Place>,
        name: &str,
        listen: SocketAddr,
        more: &str,
    ) -> Result<Self> {
        let apache = Self {
            topology,
            place: place.into(),
            listen,
            program: exe::foreign_words("apache2", APACHE)?,
            folder: Path::new(SCRATCH).join(name),
        };
        apache.write(more)?;
        apache.shell(&apache.start_line())?;
        topology
            .run(apache.place.clone(), || {
                listener::wait_until(listen, true, LIMIT)?;
                apache.wait_until_it_runs()
            })
            .with_context(|| format!("start Apache {name}: {}", apache.errors()))?;
        Ok(apache)
    }

    /// It listens before its modules have what they need, and writes its process id after that.
    fn wait_until_it_runs(&self) -> Result<()> {
        let pid = self.folder.join("apache2.pid");
        let late = Instant::now() + LIMIT;
        while !pid.exists() {
            ensure!(Instant::now() < late, "no {}", pid.display());
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Writes the files that it serves, and the configuration, with `more` in it.
    fn write(&self, more: &str) -> Result<()> {
        let modules = std::env::var_os(APACHE_MODULES)
            .map_or_else(|| "/usr/lib/apache2/modules".into(), PathBuf::from);
        let text = configuration(&self.folder, &modules, self.listen, more);
        self.topology.run(self.place.clone(), || {
            let pages = self.folder.join("pages");
            std::fs::create_dir_all(&pages)
                .with_context(|| format!("create {}", pages.display()))?;
            for (name, body) in [
                ("pages/index", BODY.to_owned()),
                ("pages/healthz", BODY.to_owned()),
                ("pages/slow", "x".repeat(SLOW)),
                ("apache2.conf", text),
            ] {
                let path = self.folder.join(name);
                std::fs::write(&path, body).with_context(|| format!("write {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Has it read another configuration, as `apachectl graceful` does: the processes that it has
    /// end when they have answered what they were asked.
    pub fn reconfigure(&self, more: &str) -> Result<()> {
        self.write(more)?;
        self.shell(&self.signal_line("USR1"))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// What it has written to its log of errors.
    pub fn errors(&self) -> String {
        let log = self.folder.join("error.log");
        let read = || Ok(std::fs::read_to_string(&log)?);
        self.topology
            .run(self.place.clone(), read)
            .unwrap_or_default()
    }

    /// The shell line that lets it finish the requests it has, as Debian's unit does, and returns
    /// when its processes are gone.
    pub fn stop_line(&self) -> String {
        format!("{} && {GONE}", self.signal_line("WINCH"))
    }

    /// The shell line that starts it.
    pub fn start_line(&self) -> String {
        let file = self.folder.join("apache2.conf");
        format!("{} -f '{}' -k start", self.program, file.display())
    }

    /// The shell line that ends it and all its processes at once, as an out-of-memory killer would
    /// end each.
    pub fn kill_line(&self) -> String {
        let pid = self.folder.join("apache2.pid");
        // The children die first; a parent that lives would replace them.
        format!(
            "read pid < '{pid}' && kill -STOP $pid && \
             kill -KILL $(cat /proc/$pid/task/$pid/children) $pid && rm -f '{pid}' && {GONE}",
            pid = pid.display()
        )
    }

    /// The command that restarts it so that nothing listens for `outage`, from the old listener's
    /// closing to the start. To be run in its own namespace.
    pub fn restart_command(&self, outage: Duration) -> Result<Vec<OsString>> {
        let line = format!(
            "{stop} && '{lab}' away {address} --for {outage} && {GONE} && {start}",
            stop = self.signal_line("WINCH"),
            lab = exe::lab()?.display(),
            address = self.listen,
            outage = text::duration(outage),
            start = self.start_line(),
        );
        Ok(["sh".into(), "-c".into(), line.into()].to_vec())
    }

    /// Notes the parent's process id, for [`GONE`], and sends it a signal.
    fn signal_line(&self, signal: &str) -> String {
        let pid = self.folder.join("apache2.pid");
        format!("read pid < '{}' && kill -{signal} $pid", pid.display())
    }

    /// Runs a shell line where Apache is.
    pub fn shell(&self, line: &str) -> Result<()> {
        let mut command = Command::new("sh");
        self.topology
            .output(self.place.clone(), command.args(["-c", line]), LIMIT)?
            .ok()?;
        Ok(())
    }
}

/// What answers by itself. 40 KiB/s is what a client with a slow line takes.
const SERVER: &str = "\
    RewriteEngine On\n\
    RewriteRule ^/$ /index [PT]\n\
    <Location /slow>\n\
    SetOutputFilter RATE_LIMIT\n\
    SetEnv rate-limit 40\n\
    </Location>\n";

/// A configuration that touches nothing outside `folder`.
fn configuration(folder: &Path, modules: &Path, listen: SocketAddr, more: &str) -> String {
    let loaded: String = MODULES
        .iter()
        .map(|name| {
            let file = modules.join(format!("mod_{name}.so"));
            format!("LoadModule {name}_module {}\n", file.display())
        })
        .collect();
    format!(
        "{loaded}\
         ServerName localhost\n\
         ServerRoot {folder}\n\
         DefaultRuntimeDir {folder}\n\
         PidFile {folder}/apache2.pid\n\
         ErrorLog {folder}/error.log\n\
         Listen {listen}\n\
         User nobody\n\
         Group nogroup\n\
         StartServers 2\n\
         MinSpareThreads 25\n\
         MaxSpareThreads 75\n\
         ThreadLimit 64\n\
         ThreadsPerChild 25\n\
         MaxRequestWorkers 150\n\
         KeepAlive On\n\
         MaxKeepAliveRequests 100\n\
         KeepAliveTimeout 5\n\
         DocumentRoot {folder}/pages\n\
         {more}",
        folder = folder.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_stays_in_its_folder() {
        let listen = "10.0.0.5:8080".parse().unwrap();
        let text = configuration(Path::new("/run/a"), Path::new("/modules"), listen, "");
        let paths: Vec<_> = text
            .split_whitespace()
            .filter(|word| word.starts_with('/') && !word.starts_with("/modules/"))
            .collect();
        assert_eq!(paths.len(), 5, "{text}");
        let inside = |path: &&str| *path == "/run/a" || path.starts_with("/run/a/");
        assert!(paths.iter().all(inside), "{paths:?}");
    }
}
