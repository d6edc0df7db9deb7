//! HAProxy before the backend, on the same host.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::rig::{DEEP, LIMIT, PORT, Valve};
use super::run::OTHER_FILES;
use crate::backend::most_files;
use crate::haproxy::{HaProxy, Release};
use crate::topology::{Side, Topology, server_v4};

/// HAProxy's port.
const FRONTEND: u16 = 8000;
/// Room for what comes in ten seconds of 2,000 a second, and a little more.
const CONNECTIONS: u64 = 30_000;
/// How often it tries again, a second apart: for longer than the backend is away.
const TRIES: &str = "    retries 20\n";

/// How many connections HAProxy can have: each takes two files, and it checks that when it starts.
fn connections() -> Result<u32> {
    let room = most_files()?.saturating_sub(OTHER_FILES) / 2;
    Ok(u32::try_from(CONNECTIONS.min(room))?)
}

fn start<'a>(topology: &'a Topology, release: Release, defaults: &str) -> Result<HaProxy<'a>> {
    let server = format!("    server app {}\n", server_v4(PORT));
    HaProxy::start_sized(
        topology,
        Side::Server,
        release,
        server_v4(FRONTEND),
        connections()?,
        &format!("    backlog {DEEP}\n{defaults}"),
        &server,
    )
}

/// How it ended, where it did; else, whether its limit made clients wait for each other.
fn remark(haproxy: &HaProxy) -> Result<Option<String>> {
    if let Some(fate) = haproxy.fate()? {
        return Ok(Some(format!("HAProxy ended: {fate}")));
    }
    if !haproxy.was_full()? {
        return Ok(None);
    }
    let (most, files) = (connections()?, most_files()?);
    let why = match u64::from(most) < CONNECTIONS {
        true => format!(", two files each, by this machine's limit of {files} open files"),
        false => String::new(),
    };
    Ok(Some(format!(
        "HAProxy had all the connections that it may have at once ({most}{why}), so clients waited \
         for each other"
    )))
}

/// It is told to take no more connections, which then wait in its accept queue.
pub struct Maxconn<'a>(HaProxy<'a>);

impl<'a> Maxconn<'a> {
    pub fn new(topology: &'a Topology, release: Release) -> Result<Self> {
        start(topology, release, "").map(Self)
    }

    fn set(&self, connections: u32) -> Result<()> {
        let answer = self
            .0
            .ask(&format!("set maxconn frontend web {connections}"));
        match answer {
            Ok(answer) => {
                ensure!(answer.is_empty(), "HAProxy: {answer}");
                Ok(())
            }
            // What became of it is told in the remark, and its clients' requests have failed.
            Err(_) if self.0.fate()?.is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Valve for Maxconn<'_> {
    fn target(&self) -> SocketAddr {
        server_v4(FRONTEND)
    }

    fn close(&mut self) -> Result<()> {
        self.set(0)?;
        let late = Instant::now() + LIMIT;
        while self.0.clients()? > 0 {
            ensure!(Instant::now() < late, "HAProxy's clients stay");
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        self.set(connections()?)
    }

    fn remark(&self) -> Result<Option<String>> {
        remark(&self.0)
    }
}

/// It tries again by itself.
pub struct Retries<'a>(HaProxy<'a>);

impl<'a> Retries<'a> {
    pub fn new(topology: &'a Topology) -> Result<Self> {
        start(topology, Release::System, TRIES).map(Self)
    }
}

impl Valve for Retries<'_> {
    fn target(&self) -> SocketAddr {
        server_v4(FRONTEND)
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        Ok(())
    }

    fn remark(&self) -> Result<Option<String>> {
        remark(&self.0)
    }
}
