//! `gate top`.

use std::path::PathBuf;

use clap::Args;
use gate_userspace::config::DaemonConfig;
use gate_userspace::error::{Error, Result};
use gate_userspace::pins::Pins;
use gate_userspace::top::{self, keys};

use super::Answer;

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = keys_help())]
pub struct Top {
    /// The daemon's socket, for what it knows of health.
    #[arg(long, value_name = "PATH", default_value_os_t = DaemonConfig::default().socket)]
    socket: PathBuf,
}

fn keys_help() -> String {
    let keys = keys::KEYS.iter();
    let lines = keys.map(|(key, what)| format!("  {key:<18}  {what}\n"));
    format!(
        "Keys:\n{}\nIt reads the kernel's maps itself and needs no daemon.",
        lines.collect::<String>()
    )
}

/// Runs it.
pub fn run(pins: &Pins, args: &Top, json: bool) -> Result<Answer> {
    if json {
        return Err(Error::NoTerminal);
    }
    top::run(pins, &args.socket)?;
    Ok(Answer::said())
}
