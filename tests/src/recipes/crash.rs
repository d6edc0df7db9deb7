//! gunicorn behind nginx on one host, killed and started anew by its supervisor.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{LIMIT, Run, Schedule, ensure_away};
use crate::gunicorn::Gunicorn;
use crate::listener::{self, Watch};
use crate::load::Load;
use crate::nginx::{Nginx, PROXY, UPSTREAM};
use crate::topology::{Side, Topology};

/// What the supervisor waits before it starts another: systemd's default `RestartSec`.
const PAUSE: Duration = Duration::from_millis(100);

/// What is done about the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    Nothing,
    /// `gate guard`, which needs no process.
    Guard,
    /// `gate guard --watch`, which releases at once what is held.
    Watch,
}

/// What clients saw, and nginx.
#[derive(Clone, Debug)]
pub struct Crashes {
    /// The clients.
    pub run: Run,
    /// Connections of nginx to gunicorn that were refused.
    pub refused: usize,
    /// Connections of nginx that were there already, and that the kill ended.
    pub cut_off: usize,
}

/// Kills gunicorn as often as the schedule says. Its outage is the time that a start takes.
pub fn run(how: How, schedule: Schedule) -> Result<Crashes> {
    let topology = Topology::new()?;
    let gunicorn = Gunicorn::start(&topology, Side::Server, UPSTREAM, PAUSE)?;
    let nginx = Nginx::start_proxy(&topology)?;
    let endpoint = UPSTREAM.to_string();
    if how != How::Nothing {
        topology.gate(["up", "lo"])?.ok()?;
        topology.gate(["guard", &endpoint])?.ok()?;
    }
    if how == How::Watch {
        let watcher = topology.spawn_gate(["guard", &endpoint, "--watch"])?;
        let late = Instant::now() + LIMIT;
        while !watcher.stdout()?.contains("guarded") {
            ensure!(Instant::now() < late, "gate guard --watch does not start");
            ensure!(
                !watcher.has_ended()?,
                "the watcher ended: {}",
                watcher.stderr()?
            );
            sleep(Duration::from_millis(5));
        }
    }
    let watch = Watch::start(&topology, UPSTREAM)?;
    let load = Load::new(PROXY, schedule.rate, Duration::ZERO);
    let load = load.start_endless(&topology, Side::Server)?;
    let is_back = || topology.run(Side::Server, || listener::wait_until(UPSTREAM, true, LIMIT));
    schedule.each(load.begin(), || {
        is_back()?;
        gunicorn.kill()
    })?;
    is_back()?;
    let (_, requests) = load.finish()?;
    let gaps = watch.finish()?;
    ensure_away(&gaps, schedule.times)?;
    let log = nginx.errors();
    let refused = log.lines().filter(|line| line.contains("(111: ")).count();
    Ok(Crashes {
        run: Run::new(&requests, &gaps),
        refused,
        cut_off: log.lines().count() - refused,
    })
}
