//! The scenarios of `docs/recipes`, with Debian's own programs: what the tests assert and
//! `gate-lab bench recipes` measures.

pub mod apache;
pub mod balancer;
pub mod crash;
pub mod group;
pub mod handover;
mod host;
pub mod names;
pub mod soft_stop;
pub mod users;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::listener::Gap;
use crate::load::Request;
use crate::summary::Summary;

/// From the load's start to the first event.
const CALM: Duration = Duration::from_millis(500);
/// What an event may take beyond its outage, for the command and what follows it.
const LIMIT: Duration = Duration::from_secs(20);

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// What the clients saw; the outage is the longest.
    pub summary: Summary,
    /// How often the backend was away.
    pub events: usize,
}

impl Run {
    fn new(requests: &[Request], gaps: &[Gap]) -> Self {
        let longest = gaps.iter().map(Gap::length).max().unwrap_or_default();
        Self {
            summary: Summary::new(requests, longest),
            events: gaps.len(),
        }
    }
}

/// Restarts, or what else happens in a run, at steady times.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How often it happens.
    pub times: u32,
    /// How long the backend is away each time.
    pub outage: Duration,
    /// From its return to the next time.
    pub rest: Duration,
    /// Requests a second, all along.
    pub rate: u32,
}

impl Schedule {
    /// Does it each time it is due, from the load's beginning on, and rests after the last.
    fn each(&self, begin: Instant, mut act: impl FnMut() -> Result<()>) -> Result<()> {
        for time in 0..self.times {
            let due = begin + CALM + (self.outage + self.rest) * time;
            sleep(due.saturating_duration_since(Instant::now()));
            act()?;
        }
        sleep(self.rest);
        Ok(())
    }
}

/// Fails unless the backend was away as often as it was restarted.
fn ensure_away(gaps: &[Gap], times: u32) -> Result<()> {
    if gaps.len() != times as usize {
        bail!("away {} times, not {times}", gaps.len());
    }
    Ok(())
}
