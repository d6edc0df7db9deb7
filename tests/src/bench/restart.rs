//! The same restart under the same load by every way there is, side by side.
//!
//! Open loop: new connections come at a fixed rate, whatever becomes of those before, and a
//! request's time counts from when it was due. All ways restart the same backend, the lab's own: it
//! can inherit its listening socket, which no peer's server of the kind does alike, it takes 5 ms
//! for each request at any number of them at once, so that not its queue is measured, and it tells
//! which source address it sees.

mod figures;
mod firewall;
mod gates;
mod proxy;
mod report;
mod rig;
mod run;
mod shaper;
mod sockets;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

pub use figures::{Figures, Latency, Restart, Way};
pub use rig::{ALL, Claim, Rig, find};
pub use run::{Case, Seen, run};

use super::record::{Output, save};
use crate::text::{duration, parse_duration};
use crate::topology::Topology;

/// The command line of `gate-lab bench restart`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only this way; can be given more than once
    #[arg(long, value_parser = |name: &str| find(name).map(|rig| rig.name))]
    pub way: Vec<&'static str>,
    /// New connections a second; can be given more than once
    #[arg(long, default_values_t = [200, 2_000], value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Vec<u32>,
    /// How long the backend is away; can be given more than once
    #[arg(long, default_values = ["300ms", "2s", "10s"], value_parser = parse_duration)]
    pub outage: Vec<Duration>,
    /// Restarts by each way for each rate and outage [default: 3, and 1 where it takes
    /// long; 9 and 5 of the two that are set against each other]
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Where the figures go
    #[command(flatten)]
    pub output: Output,
}

/// What each way is tried with before it is measured.
const TRIAL: Case = Case {
    rate: 50,
    outage: Duration::from_millis(300),
};
/// From this outage on there are fewer rounds.
const LONG: Duration = Duration::from_secs(5);

impl Options {
    fn rounds(&self, rig: &Rig, outage: Duration) -> u32 {
        let is_one_of_two = [rig::FLOOR, rig::HOLD].contains(&rig.name);
        let usual = match (is_one_of_two, outage < LONG) {
            (true, true) => 9,
            (true, false) => 5,
            (false, true) => 3,
            (false, false) => 1,
        };
        self.rounds.unwrap_or(usual)
    }
}

/// Makes the restarts and prints what came of them.
pub fn restart(options: &Options) -> Result<()> {
    let wanted = |rig: &&Rig| options.way.is_empty() || options.way.contains(&rig.name);
    let mut figures = Figures::default();
    let mut rigs = Vec::new();
    for rig in ALL.iter().filter(wanted) {
        let absent = try_out(rig)?;
        match &absent {
            None => rigs.push(rig),
            Some(why) => {
                let is_one_of_two = [rig::FLOOR, rig::HOLD].contains(&rig.name);
                ensure!(!is_one_of_two, "{}: {why}", rig.title);
                eprintln!("{}: {why}", rig.title);
            }
        }
        figures.ways.push(Way::new(rig, absent));
    }
    for &rate in &options.rate {
        for &outage in &options.outage {
            measure(options, Case { rate, outage }, &rigs, &mut figures);
            if let Some(folder) = &options.output.out {
                save(folder, &figures)?;
            }
        }
    }
    options.output.publish(&figures)
}

/// All restarts with one load and outage, way by way in each round, so that whatever else the
/// machine does meets all of them.
fn measure(options: &Options, case: Case, rigs: &[&Rig], figures: &mut Figures) {
    let rounds = |rig: &&&Rig| options.rounds(rig, case.outage);
    for round in 0..rigs.iter().map(|rig| rounds(&rig)).max().unwrap_or(0) {
        // Another one first in each round.
        let (later, first) = rigs.split_at(round as usize % rigs.len().max(1));
        let order = first.iter().chain(later);
        for rig in order.filter(|rig| round < rounds(rig)) {
            let title = format!(
                "{}/s, outage {}, round {}: {}",
                case.rate,
                duration(case.outage),
                round + 1,
                rig.title
            );
            match run(rig, case) {
                Ok(seen) => {
                    let restart = Restart::new(rig, case, round, &seen);
                    if let Err(error) = seen.check_count(rig.claim) {
                        eprintln!("{title}: {error:#}");
                        figures.failures.push(format!("{title}: {error:#}"));
                    }
                    eprintln!("{title}: {}", report::line(&restart));
                    if rig.claim == Claim::Kept {
                        for lost in seen.lost() {
                            eprintln!("{title}: {lost}");
                        }
                    }
                    figures.restarts.push(restart);
                }
                Err(error) => {
                    eprintln!("{title}: {error:#}");
                    figures.failures.push(format!("{title}: {error:#}"));
                }
            }
        }
    }
}

/// Makes sure that a way does what is claimed of it; else, why it is left out. A machine that was
/// busy gets a second try.
fn try_out(rig: &Rig) -> Result<Option<String>> {
    if let Some(why) = (rig.absent)(&Topology::new()?)? {
        return Ok(Some(why));
    }
    let check = || run(rig, TRIAL)?.check(rig.claim);
    Ok(check()
        .or_else(|_| check())
        .err()
        .map(|error| format!("its check failed: {error:#}")))
}
