//! `gate alias`, `soft-stop` and `soft-start`.

use clap::Args;
use gate_userspace::alias::{self, Kind, Softened, Wanted};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::error::Error;
use gate_userspace::gates::Target;
use gate_userspace::pins::Pins;
use gate_userspace::report;

use super::Answer;

/// Arguments of `gate alias`.
#[derive(Debug, Args)]
#[command(after_help = "\
An alias is closed, guarded, drained and flushed with its gate. Where the gate is handed over, the \
other backend answers. After a restart without gate it refuses until `gate soft-start` makes the new \
listener known; `gate restart`, `gate open` and `gate guard --watch` do that by themselves. \
Connections to an --existing status port are not the gate's: they are neither held nor drained.")]
pub struct Alias {
    /// Whose listener answers: a gate's name, or its endpoint.
    #[arg(value_name = "GATE")]
    target: Target,
    /// Where: 10.0.0.5:81, [fd00::5]:81, or *:81 for any address of this host.
    #[arg(value_name = "ADDR")]
    at: Endpoint,
    /// The gate's endpoint whose listener answers [default: the one with the same address, else the
    /// wildcard, else the only one of that family].
    #[arg(long, value_name = "ENDPOINT")]
    of: Option<Endpoint>,
    /// Something listens there by itself: refuse it while the gate is soft-stopped, and nothing else.
    #[arg(long, conflicts_with = "of")]
    existing: bool,
    /// Forget it.
    #[arg(long, conflicts_with_all = ["of", "existing"])]
    remove: bool,
}

/// Arguments of `gate soft-stop` and `gate soft-start`.
#[derive(Debug, Args)]
pub struct Soft {
    /// A gate with a status port, by its name or its endpoint.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
}

/// Runs `gate alias`.
pub fn alias(pins: &Pins, args: Alias) -> Result<Answer, Error> {
    if args.remove {
        let removed = alias::remove(pins, &args.target, args.at)?;
        return Ok(Answer::done(
            report::unaliased(&removed),
            report::unaliased_json(&removed),
        ));
    }
    let wanted = Wanted {
        target: args.target,
        at: args.at,
        of: args.of,
        kind: match args.existing {
            true => Kind::Existing,
            false => Kind::Alias,
        },
    };
    let added = alias::add(pins, &wanted)?;
    Ok(Answer::done(
        report::aliased(&added),
        report::aliased_json(&added),
    ))
}

/// Runs `gate soft-stop`.
pub fn stop(pins: &Pins, args: &Soft) -> Result<Answer, Error> {
    Ok(answer(&alias::soft_stop(pins, &args.targets)?))
}

/// Runs `gate soft-start`.
pub fn start(pins: &Pins, args: &Soft) -> Result<Answer, Error> {
    Ok(answer(&alias::soft_start(pins, &args.targets)?))
}

fn answer(softened: &Softened) -> Answer {
    Answer::done(report::softened(softened), report::softened_json(softened))
}
