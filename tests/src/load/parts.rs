//! A load that has more connections at once than a process may have open files.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};

use super::{LEAD, Load, Request, Running, after};
use crate::topology::{Place, Topology};

/// Several threads that make one load in turn, each with a table of open files of its own.
pub struct Parts {
    begin: Instant,
    rate: u32,
    threads: Vec<Running>,
}

impl Load {
    /// As [`start_at`](Self::start_at), by so many threads.
    pub fn start_in_parts(
        self,
        topology: &Topology,
        place: impl Into<Place>,
        count: u32,
    ) -> Result<Parts> {
        ensure!(
            count > 0 && self.rate.is_multiple_of(count),
            "{} a second can't be had of {count} threads",
            self.rate
        );
        let place = place.into();
        let begin = Instant::now() + LEAD;
        let part = Self {
            rate: self.rate / count,
            ..self
        };
        let start = |number| {
            let begin = begin + after(self.rate, number);
            let thread = topology.start(place.clone(), move || {
                unshare(CloneFlags::CLONE_FILES).context("unshare(CLONE_FILES)")?;
                part.run(begin)
            })?;
            Ok(Running { begin, thread })
        };
        Ok(Parts {
            begin,
            rate: self.rate,
            threads: (0..count).map(start).collect::<Result<_>>()?,
        })
    }
}

impl Parts {
    /// When the first request is due.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// Waits until every request has ended, and returns them in the order they were due.
    pub fn finish(self) -> Result<Vec<Request>> {
        let mut all = Vec::new();
        for (number, thread) in (0..).zip(self.threads) {
            let behind: Duration = after(self.rate, number);
            all.extend(thread.finish()?.into_iter().map(|request| Request {
                at: request.at + behind,
                ..request
            }));
        }
        all.sort_by_key(|request| request.at);
        Ok(all)
    }
}
