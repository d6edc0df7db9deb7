//! `gate metrics`.

use clap::Args;
use gate_userspace::error::Result;
use gate_userspace::metrics::{self, Connections, Scrape};
use gate_userspace::pins::Pins;
use serde_json::json;

use super::Answer;

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
The format is OpenMetrics 1.0 text, as Prometheus scrapes it from the daemon. It asks the kernel and no \
daemon, so health, and what only the daemon counts, are not in it.")]
pub struct Metrics {}

/// Runs it.
pub fn run(pins: &Pins) -> Result<Answer> {
    let text = metrics::render(Scrape::read(pins, &mut Connections::default())?);
    let fields = json!({ "content_type": metrics::CONTENT_TYPE, "metrics": text });
    Ok(Answer::done(text, fields))
}
