//! `gate purge`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use gate_userspace::config::{self, DaemonConfig};
use gate_userspace::error::Result;
use gate_userspace::pins::Pins;
use gate_userspace::{purge, report};

use super::Answer;

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
It opens every gate and releases what is held, as `gate down` does, in this network namespace and in \
each other one that has pins in /sys/fs/bpf/gate, then removes links, filters and pins of all versions, \
and /run/gate. It asks nothing, and once more does nothing more. The configuration in /etc/gate stays.

While the daemon runs it refuses, because the daemon would attach anew: `systemctl stop gate` first.")]
pub struct Purge {
    /// Also while the daemon runs.
    #[arg(long)]
    force: bool,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Purge) -> Result<Answer> {
    let purged = purge::purge(pins, &sockets(), args.force)?;
    Ok(Answer::done(
        report::purged(&purged),
        report::purged_json(&purged),
    ))
}

/// Where the daemon may answer: at its usual place, and at that of the configuration.
fn sockets() -> BTreeSet<PathBuf> {
    // One that can't be read has started no daemon.
    let configured = config::load(Path::new(config::PATH)).ok();
    let configured = configured.map(|config| config.daemon.socket);
    configured
        .into_iter()
        .chain([DaemonConfig::default().socket])
        .collect()
}
