//! `gate plan` and `gate apply`.

use std::path::PathBuf;

use clap::Args;
use gate_userspace::config;
use gate_userspace::error::Error;
use gate_userspace::pins::Pins;
use gate_userspace::report;

use super::Answer;

/// Arguments of both.
#[derive(Debug, Args)]
pub struct Configured {
    /// The configuration's main file; `conf.d` beside it is read as well.
    #[arg(long, value_name = "PATH", default_value = config::PATH)]
    config: PathBuf,
}

/// Runs `gate plan`.
pub fn plan(pins: &Pins, args: &Configured) -> Result<Answer, Error> {
    let config = config::load(&args.config)?;
    let plan = config::planned(pins, &config)?;
    Ok(Answer::done(
        report::planned(&plan),
        report::planned_json(&plan),
    ))
}

/// Runs `gate apply`.
pub fn apply(pins: &Pins, args: &Configured) -> Result<Answer, Error> {
    let config = config::load(&args.config)?;
    let applied = config::apply(pins, &config)?;
    Ok(Answer::done(
        report::applied(&applied),
        report::applied_json(&applied),
    ))
}
