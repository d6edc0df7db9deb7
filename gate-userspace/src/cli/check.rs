//! `gate check`.

use std::path::PathBuf;

use clap::Args;
use gate_userspace::config;
use gate_userspace::error::Error;
use gate_userspace::report;

use super::Answer;

/// Its arguments.
#[derive(Debug, Args)]
pub struct Check {
    /// The configuration's main file; `conf.d` beside it is read as well.
    #[arg(long, value_name = "PATH", default_value = config::PATH)]
    config: PathBuf,
}

/// Runs it.
pub fn run(args: &Check) -> Result<Answer, Error> {
    let config = config::load(&args.config)?;
    Ok(Answer::done(
        report::checked(&config),
        report::checked_json(&config),
    ))
}
