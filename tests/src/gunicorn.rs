//! A real gunicorn, which a supervisor starts anew whenever it ends. All it writes is in the
//! topology's own folder in memory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::topology::{Place, Process, SCRATCH, Topology};
use crate::{exe, listener};

/// The environment variable that names the gunicorn to use.
pub const GUNICORN: &str = "GATE_TEST_GUNICORN";
/// The environment variable with the home of its Python, if that is not the system's.
pub const GUNICORN_PYTHON: &str = "GATE_TEST_GUNICORN_PYTHON";

/// How long it may take to start: Python is slow at that.
const LIMIT: Duration = Duration::from_secs(20);

const APPLICATION: &str = "\
def app(environ, start_response):
    start_response('200 OK', [('Content-Length', '3')])
    return [b'ok\\n']
";

/// A gunicorn and its supervisor.
pub struct Gunicorn<'a> {
    topology: &'a Topology,
    place: Place,
    folder: PathBuf,
    supervisor: Process,
}

impl<'a> Gunicorn<'a> {
    /// Starts both; returns when gunicorn listens. `pause` is what the supervisor waits before it
    /// starts another.
    pub fn start(
        topology: &'a Topology,
        place: impl Into<Place>,
        listen: SocketAddr,
        pause: Duration,
    ) -> Result<Self> {
        let (place, folder) = (place.into(), Path::new(SCRATCH).join("gunicorn"));
        let application = folder.join("app.py");
        topology.run(place.clone(), || {
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("create {}", folder.display()))?;
            std::fs::write(&application, APPLICATION)
                .with_context(|| format!("write {}", application.display()))
        })?;
        // In a session of its own, so that one signal reaches all its processes.
        let line = format!(
            "cd '{}' && while :; do \
             setsid sh -c 'echo $$ > pid && exec \"$@\"' sh {program} --workers 2 \
             --backlog 2048 --no-sendfile --bind {listen} app:app; sleep {pause}; done",
            folder.display(),
            program = program()?,
            pause = pause.as_secs_f64(),
        );
        let mut shell = Command::new("sh");
        let supervisor = topology.spawn(place.clone(), shell.args(["-c", &line]))?;
        let gunicorn = Self {
            topology,
            place,
            folder,
            supervisor,
        };
        topology
            .run(gunicorn.place.clone(), || {
                listener::wait_until(listen, true, LIMIT)
            })
            .with_context(|| format!("start gunicorn: {}", gunicorn.log()))?;
        Ok(gunicorn)
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        self.supervisor.stderr().unwrap_or_default()
    }

    /// Ends all its processes by SIGKILL, and leaves the supervisor alone.
    pub fn kill(&self) -> Result<()> {
        let pid = self.folder.join("pid");
        let line = format!("read pid < '{}' && kill -KILL -$pid", pid.display());
        let mut shell = Command::new("sh");
        self.topology
            .output(self.place.clone(), shell.args(["-c", &line]), LIMIT)?
            .ok()?;
        Ok(())
    }
}

/// The shell words that run it. Debian's unpacked one needs its own Python, and writes no compiled
/// files beside it.
fn program() -> Result<String> {
    let words = exe::foreign_words("gunicorn", GUNICORN)?;
    let Ok(home) = std::env::var(GUNICORN_PYTHON) else {
        return Ok(format!("env {words}"));
    };
    let (variables, program) = words.rsplit_once(' ').unwrap_or(("", &words));
    Ok(format!(
        "env {variables} PYTHONHOME='{home}' PYTHONPATH='{home}/lib/python3/dist-packages' \
         PYTHONDONTWRITEBYTECODE=1 '{home}/bin/python3' {program}"
    ))
}
