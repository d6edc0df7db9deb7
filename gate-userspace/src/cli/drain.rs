//! `gate drain`.

use std::time::Duration;

use clap::Args;
use gate_userspace::drain::driver;
use gate_userspace::endpoint::Endpoint;
use gate_userspace::gates::Target;
use gate_userspace::{report, sockets};

use super::restart::Then;
use super::{Answer, lease, on_runtime};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
A connection counts as long as a process or an accept queue has it: ESTABLISHED, CLOSE_WAIT, and \
FIN_WAIT where it was only shut down for writing. On the proxy's host it waits for the connections \
to the backend. An endpoint needs no gate; for a wildcard only connections to this host count.

With --backend only connections that the backend listening there accepted count: by a handover, \
whichever gate they came by (with GATE only by that), and those that were made to its own address. \
What another backend has at the same endpoint does not. Without it all count, whoever has them.

Exit codes: 0 none is left, or they were flushed; 3 some are left; 128 + N after signal N.")]
pub struct Drain {
    /// What to wait for: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080.
    #[arg(required_unless_present = "backends", value_name = "GATE")]
    targets: Vec<Target>,
    /// Wait for the connections of the backend that listens there: 127.0.0.1:8082, *:8082 where it is
    /// bound to any address, or 127.0.0.1:8082,[::1]:8082 where to both.
    #[arg(long = "backend", value_name = "ADDR", value_delimiter = ',')]
    backends: Vec<Endpoint>,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = lease)]
    timeout: Duration,
    /// What becomes of the connections that are left then.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Then::Leave)]
    then: Then,
}

/// Runs it.
pub fn run(args: &Drain, json: bool) -> anyhow::Result<Answer> {
    let request = driver::Request::new(&driver::Wanted {
        targets: args.targets.clone(),
        backends: args.backends.clone(),
        timeout: args.timeout,
        flush: matches!(args.then, Then::Flush),
    })?;
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
