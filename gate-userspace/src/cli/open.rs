//! `gate open`.

use clap::Args;
use gate_userspace::close::By;
use gate_userspace::error::{Error, exit};
use gate_userspace::gates::Target;
use gate_userspace::open::{self, Request, Which};
use gate_userspace::pins::Pins;
use gate_userspace::release::Rate;
use gate_userspace::report;

use super::Answer;

/// Its arguments.
#[derive(Debug, Args)]
pub struct Open {
    /// What to open: a gate's name, or an endpoint.
    #[arg(required_unless_present = "all", value_name = "GATE")]
    targets: Vec<Target>,
    /// Open every gate.
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// Let in no more than that many of the held connections a second, as in 500/s; new ones queue
    /// behind them [default: as fast as the listener accepts].
    #[arg(long, value_name = "N/s")]
    rate: Option<Rate>,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Open) -> Result<Answer, Error> {
    let which = match args.all {
        true => Which::All,
        false => Which::These(args.targets.clone()),
    };
    let rate = args.rate;
    let opened = open::open(
        pins,
        &Request {
            which,
            rate,
            by: By::Operator,
        },
    )?;
    Ok(Answer {
        text: report::opened(&opened),
        fields: report::opened_json(&opened),
        code: opened.over.as_ref().map_or(exit::DONE, Error::exit_code),
        complaint: opened.over.map(|over| over.to_string()),
    })
}
