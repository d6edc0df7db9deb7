//! `gate drain`.

use std::time::Duration;

use clap::Args;
use gate_userspace::drain::{self, driver};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::gates::Target;
use gate_userspace::{clock, report, rights, sockets};

use super::restart::Then;
use super::{Answer, lease, on_runtime};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
A connection counts as long as a process or an accept queue has it: ESTABLISHED, CLOSE_WAIT, and \
FIN_WAIT where it was only shut down for writing. On the proxy's host it waits for the connections \
to the backend. An endpoint needs no gate; for a wildcard only connections to this host count.

Exit codes: 0 none is left, or they were flushed; 3 some are left; 128 + N after signal N.")]
pub struct Drain {
    /// What to wait for: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = lease)]
    timeout: Duration,
    /// What becomes of the connections that are left then.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Then::Leave)]
    then: Then,
}

/// Runs it.
pub fn run(args: &Drain, json: bool) -> anyhow::Result<Answer> {
    let flush = matches!(args.then, Then::Flush);
    if flush {
        rights::check_net_admin()?;
    }
    let now = clock::now();
    let meant = drain::resolve(&args.targets, now)?;
    let request = driver::Request {
        notes: meant.open(now).iter().map(note).collect(),
        endpoints: meant.endpoints,
        timeout: args.timeout,
        flush,
    };
    let mut progress = report::Stderr::new(json);
    let drained = on_runtime(driver::run(&request, &mut progress));
    progress.clear();
    let drained = drained??;
    let owners = sockets::owners(&report::inodes(&drained));
    Ok(Answer {
        text: report::drained(&request, &drained, &owners),
        fields: report::drained_json(&request, &drained, &owners),
        code: drained.exit_code(),
        complaint: report::drain_complaint(&request, &drained),
    })
}

/// What is open goes on taking connections.
fn note(endpoint: &Endpoint) -> String {
    format!("{endpoint} is open, so new connections go on coming in: `gate hold` first keeps them")
}
