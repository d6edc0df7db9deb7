//! `gate flush`.

use std::time::Duration;

use clap::Args;
use gate_userspace::flush::{Options, driver};
use gate_userspace::gates::Target;
use gate_userspace::{clock, drain, report, rights};

use super::{Answer, lease, on_runtime};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
Where both ends of a connection are on this host, the backend's is destroyed, and the client reads \
ECONNRESET, as from a backend that died. Where only the client's is here, that one is destroyed, and \
its owner reads ECONNABORTED. Listeners and half-open requests are never touched. Attempts to connect \
to a backend that doesn't answer are ended, too, unless --idle is given or a gate holds them.

Exit codes: 0 done, or nothing to reset; 1 the kernel can't reset connections; 4 missing rights; \
128 + N after signal N.")]
pub struct Flush {
    /// Whose connections: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
    /// Only those over which nothing went for that long, with nothing unread or unacknowledged at
    /// either side. Longer than an answer takes: what the backend works on looks idle.
    #[arg(long, value_name = "TIME", value_parser = lease)]
    idle: Option<Duration>,
    /// Spread them evenly over that time, so that they don't all reconnect at once.
    #[arg(long, value_name = "TIME", value_parser = lease)]
    over: Option<Duration>,
}

/// Runs it.
pub fn run(args: &Flush, json: bool) -> anyhow::Result<Answer> {
    rights::check_net_admin()?;
    let now = clock::now();
    let meant = drain::resolve(&args.targets, now)?;
    let options = Options {
        idle: args.idle,
        over: args.over.unwrap_or_default(),
        connecting: !meant.may_hold(now),
    };
    let endpoints = meant.endpoints;
    let mut progress = report::Stderr::new(json);
    let summary = on_runtime(driver::run(&endpoints, options, &mut progress));
    progress.clear();
    let summary = summary??;
    Ok(Answer {
        text: report::flushed(&endpoints, &summary),
        fields: report::flush_json(&endpoints, &summary),
        code: summary.exit_code(),
        complaint: report::flush_complaint(&summary),
    })
}
