//! `gate hold`, `drop` and `reject`.

use std::time::Duration;

use clap::Args;
use gate_common::state::Closed;
use gate_userspace::allow::Cidr;
use gate_userspace::close::{self, By, Request};
use gate_userspace::error::Error;
use gate_userspace::gates::Target;
use gate_userspace::pins::Pins;
use gate_userspace::report;

use super::{Answer, lease};

/// Their arguments.
#[derive(Debug, Args)]
pub struct Close {
    /// What to close: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080 for
    /// any address of this host.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
    /// The lease, after which the gate opens by itself.
    #[arg(long = "for", value_name = "TIME", default_value = "15s", value_parser = lease)]
    lease: Duration,
    /// Sources that pass all the same: 10.0.0.0/8, fd00::/8 or one address; can be given more than
    /// once.
    #[arg(long, value_name = "CIDR")]
    allow: Vec<Cidr>,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Close, mode: Closed) -> Result<Answer, Error> {
    let request = Request {
        targets: args.targets.clone(),
        mode,
        lease: args.lease,
        allow: args.allow.clone(),
        by: By::Operator,
    };
    let closing = close::close(pins, &request)?;
    Ok(Answer::done(
        report::closed(&closing),
        report::closed_json(&closing),
    ))
}
