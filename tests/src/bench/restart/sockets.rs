//! A listening socket that stays while nobody accepts from it.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use super::rig::{LIMIT, PORT, Way, backend};
use crate::listener::{Gap, SAMPLE};
use crate::service::Service;
use crate::topology::{Process, SCRATCH, Side, Topology, server_v4};
use crate::{backend, exe};

/// A socket that this process made and keeps, as systemd does, and backends that inherit it.
pub struct Inherited<'a> {
    topology: &'a Topology,
    listener: TcpListener,
    ready: PathBuf,
    process: Process,
}

impl<'a> Inherited<'a> {
    /// Makes the socket and starts a backend with it.
    pub fn boxed(topology: &'a Topology, backlog: u32) -> Result<Box<dyn Way + 'a>> {
        let listener = topology.run(Side::Server, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("make a socket")?;
            socket.bind(&server_v4(PORT).into()).context("bind")?;
            socket.listen(backlog.cast_signed()).context("listen")?;
            Ok(TcpListener::from(socket))
        })?;
        let ready = Path::new(SCRATCH).join("inherited.pid");
        let process = start(topology, &listener, &ready)?;
        wait_for(topology, &ready)?;
        Ok(Box::new(Self {
            topology,
            listener,
            ready,
            process,
        }))
    }
}

impl Way for Inherited<'_> {
    fn restart(&mut self, outage: Duration) -> Result<Option<Gap>> {
        let forget = || Ok(std::fs::remove_file(&self.ready)?);
        self.topology.run(Side::Server, forget)?;
        let from = Instant::now();
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(LIMIT)?.ok()?;
        sleep(outage.saturating_sub(from.elapsed()));
        self.process = start(self.topology, &self.listener, &self.ready)?;
        let to = wait_for(self.topology, &self.ready)?;
        Ok(Some(Gap { from, to }))
    }
}

/// Starts a backend that inherits the listener, under the same number.
fn start(topology: &Topology, listener: &TcpListener, ready: &Path) -> Result<Process> {
    let fd = listener.as_raw_fd();
    let options = backend::Options {
        inherit: Some(fd),
        pid_file: Some(ready.to_owned()),
        ..backend()
    };
    let mut command = Command::new(exe::lab()?);
    command.arg("backend").args(options.to_args());
    let given = listener.try_clone().context("dup")?;
    // SAFETY: fcntl(2) is async-signal-safe, and the closure does nothing else; the file is open for
    // as long as the listener is, which the caller holds over the fork.
    unsafe {
        command.pre_exec(move || {
            let _open = &given;
            let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
            Ok(fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)?)
        });
    }
    topology.spawn(Side::Server, &mut command)
}

/// Waits until a backend has written its process id, and so accepts; returns when that was.
fn wait_for(topology: &Topology, ready: &Path) -> Result<Instant> {
    let late = Instant::now() + LIMIT;
    topology.run(Side::Server, || {
        while !ready.exists() {
            ensure!(Instant::now() < late, "the backend does not start");
            sleep(SAMPLE);
        }
        Ok(Instant::now())
    })
}

/// A backend that is stopped and goes on: the same process, with the same socket.
pub struct Paused(Service);

impl Paused {
    /// Starts the backend.
    pub fn boxed(topology: &Topology) -> Result<Box<dyn Way + '_>> {
        let service = Service::start(topology, backend())?;
        Ok(Box::new(Self(service)))
    }
}

impl Way for Paused {
    fn restart(&mut self, outage: Duration) -> Result<Option<Gap>> {
        let from = Instant::now();
        self.0.process().signal(Signal::SIGSTOP)?;
        sleep(outage);
        self.0.process().signal(Signal::SIGCONT)?;
        let to = Instant::now();
        Ok(Some(Gap { from, to }))
    }
}
