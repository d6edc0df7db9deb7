//! `gate up`.

use clap::Args;
use gate_userspace::datapath::{self, UpOptions};
use gate_userspace::error::Error;
use gate_userspace::hooks::HookChoice;
use gate_userspace::pins::Pins;
use gate_userspace::report;

use super::Answer;

/// Its arguments.
#[derive(Debug, Args)]
pub struct Up {
    /// The interfaces over which the clients' connections come in, or go out to the backend.
    #[arg(required = true, value_name = "INTERFACE")]
    interfaces: Vec<String>,
    /// Where to attach; what is asked for by name is taken, or refused.
    #[arg(long, value_enum, default_value_t = HookChoice::Auto)]
    hook: HookChoice,
    /// Room for that many held SYNs, about 0.5 KiB each [default: 16384]. The sources of one prefix (a
    /// /24, or a /48 of IPv6) get seven eighths of it at most.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    held: Option<u32>,
    /// Log each judged SYN; read it with `gate log`.
    #[arg(long)]
    debug: bool,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Up) -> Result<Answer, Error> {
    let options = UpOptions {
        hook: args.hook,
        held: args.held,
        debug: args.debug,
    };
    let done = datapath::up(pins, &args.interfaces, options)?;
    Ok(Answer::done(report::up(&done), report::up_json(&done)))
}
