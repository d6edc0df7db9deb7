//! `gate daemon` and `gate reload`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use gate_userspace::daemon::client::Client;
use gate_userspace::daemon::{self, DaemonError, Options};
use gate_userspace::pins::Pins;
use gate_userspace::{config, logging, report, rights};
use log::LevelFilter;
use serde_json::json;

use super::api::FromJson;
use super::{Answer, on_runtime};

/// Arguments of `gate daemon`.
#[derive(Debug, Args)]
#[command(after_help = "\
It may be killed at any time: closed gates stay closed for their lease, and the next daemon goes on.
SIGHUP reloads the configuration; SIGTERM and SIGINT end it, and leave all gates as they are.")]
pub struct Daemon {
    /// The configuration; `conf.d/*.toml` beside it is read as well.
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// What is logged: off, error, warn, info, debug or trace [default: info, or what GATE_LOG says].
    #[arg(long, value_name = "LEVEL", value_parser = logging::parse_level)]
    log: Option<LevelFilter>,
}

/// Runs the daemon to its end.
pub fn run(args: &Daemon) -> anyhow::Result<Answer> {
    let level = logging::level(args.log).map_err(anyhow::Error::msg)?;
    logging::start(level);
    rights::check()?;
    let options = Options {
        config: args.config.clone(),
    };
    daemon::run(&Pins::here()?, &options, Arc::new(FromJson)).map_err(|error| match error {
        DaemonError::Gate(error) => anyhow::Error::from(error),
        error => error.into(),
    })?;
    Ok(Answer::done(String::new(), json!({ "ended": true })))
}

/// Arguments of `gate reload`.
#[derive(Debug, Args)]
pub struct Reload {
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", default_value = config::SOCKET)]
    socket: PathBuf,
}

/// Lets the daemon read its configuration.
pub fn reload(args: &Reload) -> anyhow::Result<Answer> {
    let client = Client::new(&args.socket);
    let fields = on_runtime(client.post("/v1/reload", &json!({})))??;
    Ok(Answer::done(report::reloaded(&fields), fields))
}
