//! `gate restart`.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use gate_userspace::error::exit;
use gate_userspace::gates::Target;
use gate_userspace::health::{Check, Checker, Statuses};
use gate_userspace::pins::Pins;
use gate_userspace::report;
use gate_userspace::restart::driver;

use super::{Answer, lease};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
The gate also opens when the command fails, when --max-hold is over (the command is stopped then:
SIGTERM to its process group, SIGKILL 5 s later), and on SIGINT, SIGTERM and SIGHUP.")]
pub struct Restart {
    /// What to hold: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080 for
    /// any address of this host.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
    /// What must succeed before the gate opens: http://HOST/PATH, https://HOST/PATH,
    /// tcp://HOST:PORT or exec:COMMAND; can be given more than once [default: a TCP connection to
    /// each endpoint].
    #[arg(long = "check", value_name = "CHECK")]
    checks: Vec<Check>,
    /// The HTTP status that a check expects, or a range like 200-399 [default: 200-299].
    #[arg(long, value_name = "STATUS")]
    check_status: Option<Statuses>,
    /// How long one check may take.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = lease)]
    check_timeout: Duration,
    /// Accept any certificate in HTTPS checks.
    #[arg(long)]
    check_insecure: bool,
    /// The lease: the longest that connections are held.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = lease)]
    max_hold: Duration,
    /// The command that restarts the backend.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs it.
pub fn run(pins: &Pins, args: Restart, json: bool) -> anyhow::Result<Answer> {
    let checker = Checker::new(
        &args.checks,
        args.check_status.unwrap_or_default(),
        args.check_timeout,
        args.check_insecure,
    )?;
    let request = driver::Request {
        targets: args.targets,
        checks: args.checks,
        checker,
        max_hold: args.max_hold,
        command: args.command,
        reserve_stdout: json,
    };
    let mut progress = report::Stderr::new(json);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    let outcome = runtime.block_on(driver::run(pins, request, &mut progress));
    progress.clear();
    // A look-up of a check's host may still hang; nobody waits for it.
    runtime.shutdown_background();
    let summary = outcome?;
    let code = match summary.outcome.exit_code() {
        exit::DONE if summary.open_failure.is_some() => exit::FAILURE,
        code => code,
    };
    Ok(Answer {
        text: report::summary(&summary),
        fields: report::summary_json(&summary),
        code,
        complaint: report::complaint(&summary, args.max_hold),
    })
}
