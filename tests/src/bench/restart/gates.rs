//! Gate's own ways.

use std::ffi::OsString;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gate_common::abi::Counter;
use gate_userspace::pins::Pins;
use gate_userspace::status;

use super::rig::{LIMIT, PORT, Valve, Way, backend, bounce};
use crate::listener::Gap;
use crate::service::Service;
use crate::topology::{INTERFACE, Process, Side, Topology, server_v4};

/// Room for the SYNs of ten seconds of 2,000 a second, and some: the default is 16,384.
const HELD: &str = "32768";

fn endpoint() -> String {
    server_v4(PORT).to_string()
}

fn up(topology: &Topology) -> Result<()> {
    topology.gate(["up", INTERFACE, "--held", HELD])?.ok()?;
    Ok(())
}

/// What the gate's counter says.
fn count(topology: &Topology, counter: Counter) -> Result<Option<u64>> {
    let status = topology.run(Side::Server, || Ok(status::read(&Pins::here()?)?))?;
    let status = status.context("the gate is not up")?;
    let gate = status.gates.first();
    Ok(gate.map(|gate| gate.stats.counts[counter as usize]))
}

/// `gate drop`, and `gate open`.
pub struct Drop<'a>(&'a Topology);

impl<'a> Drop<'a> {
    pub fn new(topology: &'a Topology) -> Result<Self> {
        up(topology)?;
        Ok(Self(topology))
    }
}

impl Valve for Drop<'_> {
    fn close(&mut self) -> Result<()> {
        self.0
            .gate(["drop", &endpoint(), "--for", "1m"])?
            .ok()
            .map(drop)
    }

    fn open(&mut self) -> Result<()> {
        self.0.gate(["open", &endpoint()])?.ok().map(drop)
    }

    fn kept(&self) -> Result<Option<u64>> {
        count(self.0, Counter::Dropped)
    }
}

/// `gate restart`, which holds.
pub struct Hold<'a> {
    topology: &'a Topology,
    service: Service,
}

impl<'a> Hold<'a> {
    /// Attaches the gate and starts the backend.
    pub fn boxed(topology: &'a Topology) -> Result<Box<dyn Way + 'a>> {
        up(topology)?;
        let service = Service::start(topology, backend())?;
        Ok(Box::new(Self { topology, service }))
    }
}

impl Way for Hold<'_> {
    fn restart(&mut self, outage: Duration) -> Result<Option<Gap>> {
        let endpoint = endpoint();
        // It checks by a connection, which is its default.
        let args = ["restart", &endpoint, "--"].map(OsString::from);
        let words = args
            .into_iter()
            .chain(self.service.restart_command(outage)?);
        let gate = self.topology.spawn_gate(words)?;
        gate.wait(outage + LIMIT)?.ok()?;
        Ok(None)
    }

    fn kept(&self) -> Result<Option<u64>> {
        count(self.topology, Counter::Held)
    }
}

/// Whether a process waits for the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// None.
    No,
    /// `gate guard --watch`.
    Yes,
}

/// `gate guard`: the backend is restarted without a word to gate.
pub struct Guard<'a> {
    topology: &'a Topology,
    service: Service,
    /// It is there for as long as the way is.
    _watcher: Option<Process>,
}

impl<'a> Guard<'a> {
    /// Attaches the gate, starts the backend and guards it.
    pub fn boxed(topology: &'a Topology, watched: Watched) -> Result<Box<dyn Way + 'a>> {
        up(topology)?;
        let service = Service::start(topology, backend())?;
        let endpoint = endpoint();
        let words = ["guard", &endpoint, "--for", "1m"];
        let watcher = match watched {
            Watched::No => {
                topology.gate(words)?.ok()?;
                None
            }
            Watched::Yes => {
                let watcher = topology.spawn_gate(words.into_iter().chain(["--watch"]))?;
                wait_until_guarded(topology)?;
                Some(watcher)
            }
        };
        Ok(Box::new(Self {
            topology,
            service,
            _watcher: watcher,
        }))
    }
}

fn wait_until_guarded(topology: &Topology) -> Result<()> {
    let late = Instant::now() + LIMIT;
    while count(topology, Counter::Held)?.is_none() {
        ensure!(Instant::now() < late, "gate guard --watch does not start");
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Way for Guard<'_> {
    fn restart(&mut self, outage: Duration) -> Result<Option<Gap>> {
        bounce(self.topology, &self.service, outage)?;
        Ok(None)
    }

    fn kept(&self) -> Result<Option<u64>> {
        count(self.topology, Counter::Held)
    }
}
