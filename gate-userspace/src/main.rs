//! The `gate` command.

mod cli;
mod log;
mod memory;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use gate_userspace::config::ConfigError;
use gate_userspace::daemon::DaemonError;
use gate_userspace::daemon::client::ClientError;
use gate_userspace::error::{Error, exit};
use gate_userspace::report;
use serde_json::json;

use cli::Cli;

#[global_allocator]
static MEMORY: memory::OrEnd = memory::OrEnd;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage(&error)),
    };
    let json = cli.json;
    match cli.run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = exit_code(&error);
            if let Some(Error::Config(wrong)) = error.downcast_ref() {
                misconfigured(wrong, code, json);
                return ExitCode::from(code);
            }
            fail(&format!("{error:#}"), code, json);
            ExitCode::from(code)
        }
    }
}

/// The exit code that goes with a failure.
fn exit_code(error: &anyhow::Error) -> u8 {
    let of_daemon = |error: &DaemonError| error.exit_code();
    let of_client = |error: &ClientError| error.exit_code();
    error
        .downcast_ref::<Error>()
        .map(Error::exit_code)
        .or_else(|| error.downcast_ref().map(of_daemon))
        .or_else(|| error.downcast_ref().map(of_client))
        .unwrap_or(exit::FAILURE)
}

/// Tells of a failure, to people and, where it is asked for, to machines.
fn fail(text: &str, code: u8, json: bool) {
    report::say(text);
    if json {
        let fields = json!({ "error": text, "exit_code": code });
        // The error is on stderr already, and its code is what counts.
        let _unseen = cli::print(&(report::answer(fields) + "\n"));
    }
}

/// Tells what is wrong with a configuration: as compilers do, each line begins with its place.
fn misconfigured(error: &ConfigError, code: u8, json: bool) {
    let _unseen = writeln!(std::io::stderr(), "{error}");
    if json {
        let problems = report::config_problems(error);
        let fields = json!({ "error": error.to_string(), "exit_code": code, "problems": problems });
        let _unseen = cli::print(&(report::answer(fields) + "\n"));
    }
}

/// Prints help as it is, and a mistake as one line.
fn usage(error: &clap::Error) -> u8 {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if asked_for {
        let _unseen = error.print();
        return exit::DONE;
    }
    let text = format!("{} (`gate --help` tells more)", mistake(error));
    // What could not be parsed can still say that it wants JSON.
    let json = std::env::args()
        .take_while(|word| word != "--")
        .any(|word| word == "--json");
    fail(&text, exit::USAGE, json);
    exit::USAGE
}

/// What is wrong with a command line, in one line.
fn mistake(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let cause = text
        .split("\n\nUsage:")
        .next()
        .and_then(|text| text.split("\n\nFor more").next())
        .unwrap_or_default();
    let words: Vec<&str> = cause.split_whitespace().collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
