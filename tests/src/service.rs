//! The lab's backend as a process of a topology, and how to restart it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::topology::{Process, SCRATCH, Side, Topology};
use crate::{backend, exe, listener, text};

/// How long a backend may take to listen.
const START_LIMIT: Duration = Duration::from_secs(5);

/// A backend in the server namespace.
pub struct Service {
    options: backend::Options,
    pid_file: PathBuf,
    first: Process,
}

impl Service {
    /// Starts the backend and returns when it listens.
    pub fn start(topology: &Topology, options: backend::Options) -> Result<Self> {
        let pid_file = Path::new(SCRATCH).join(format!("backend-{}.pid", options.listen[0].port()));
        let options = backend::Options {
            pid_file: Some(pid_file.clone()),
            ..options
        };
        topology.remove(Side::Server, &pid_file)?;
        let mut command = Command::new(exe::lab()?);
        let first = topology.spawn(Side::Server, command.arg("backend").args(options.to_args()))?;
        for &address in &options.listen {
            topology
                .run(Side::Server, || {
                    listener::wait_until(address, true, START_LIMIT)?;
                    // Where a gate is handed over, the kernel shows the other backend's listener.
                    wait_for(&pid_file)
                })
                .with_context(|| {
                    format!("start the backend: {}", first.stderr().unwrap_or_default())
                })?;
        }
        Ok(Self {
            options,
            pid_file,
            first,
        })
    }

    /// The process that [`start`](Self::start) started. After a restart it is another one.
    pub fn process(&self) -> &Process {
        &self.first
    }

    /// The process id of the backend that runs now, as soon as it has written it.
    pub fn pid(&self, topology: &Topology) -> Result<u32> {
        topology.run(Side::Server, || {
            wait_for(&self.pid_file)?;
            Ok(std::fs::read_to_string(&self.pid_file)?.trim().parse()?)
        })
    }

    /// The command that restarts it so that nothing listens for `outage`, from the old listener's
    /// closing to the new one's start. To be run in the server namespace.
    pub fn restart_command(&self, outage: Duration) -> Result<Vec<OsString>> {
        let mut words = vec![
            exe::lab()?.into_os_string(),
            "bounce".into(),
            "--pid-file".into(),
        ];
        words.push(self.pid_file.clone().into());
        words.extend([
            "--outage".into(),
            text::duration(outage).into(),
            "--".into(),
        ]);
        let options = backend::Options {
            pid_file: None,
            ..self.options.clone()
        };
        words.extend(options.to_args().into_iter().map(OsString::from));
        Ok(words)
    }
}

/// Waits for a file, which a backend writes once it listens.
fn wait_for(file: &Path) -> Result<()> {
    let late = Instant::now() + START_LIMIT;
    while !file.exists() {
        ensure!(Instant::now() < late, "no {}", file.display());
        sleep(Duration::from_millis(1));
    }
    Ok(())
}
