//! `gate restart`.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use gate_userspace::allow::Cidr;
use gate_userspace::error::Error;
use gate_userspace::gates::Target;
use gate_userspace::health::{Check, Checker, Connectors, Spec, Statuses, Verify};
use gate_userspace::pins::Pins;
use gate_userspace::release::Rate;
use gate_userspace::report;
use gate_userspace::restart::{self, Drain, Plan, driver};

use super::{Answer, lease, lease_or_none};

/// The quiesce that the default lease has room for.
const DEFAULT_QUIESCE: Duration = Duration::from_secs(1);

/// The lease, a drain left out of account.
const DEFAULT_HOLD: Duration = Duration::from_secs(15);

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
In order: close the gate, wait until the accept queue is empty (--quiesce), wait until established
connections have ended (--drain), run the command, wait until the backend is healthy, open.
When --max-hold is over the command is stopped: SIGTERM to its process group, SIGKILL 5 s later. The
same on SIGINT, SIGTERM and SIGHUP, and the gate opens.")]
pub struct Restart {
    /// What to hold: a gate's name, or an endpoint: 10.0.0.5:8080, [fd00::5]:8080, or *:8080 for
    /// any address of this host.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
    /// What must succeed before the gate opens: http://HOST/PATH, https://HOST/PATH,
    /// http+unix:/SOCKET:/PATH, grpc://HOST:PORT/SERVICE, grpcs://HOST:PORT/SERVICE, tcp://HOST:PORT,
    /// unix:/SOCKET or exec:COMMAND; can be given more than once [default: a TCP connection to each
    /// endpoint].
    #[arg(long = "check", value_name = "CHECK")]
    checks: Vec<Check>,
    /// The HTTP status that a check expects, or a range like 200-399 [default: 200-299].
    #[arg(long, value_name = "STATUS")]
    check_status: Option<Statuses>,
    /// How long one check may take.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = lease)]
    check_timeout: Duration,
    /// Accept any certificate in checks over TLS.
    #[arg(long)]
    check_insecure: bool,
    /// How often in a row the checks must pass, 100 ms apart.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rise: u32,
    /// The lease: the longest that connections are held [default: 15s, and on top --drain, and what
    /// --quiesce is longer than 1s].
    #[arg(long, value_name = "TIME", value_parser = lease)]
    max_hold: Option<Duration>,
    /// Sources that pass the closed gate, to try the backend before all others: 10.0.0.0/8, fd00::/8
    /// or one address; can be given more than once.
    #[arg(long, value_name = "CIDR")]
    allow: Vec<Cidr>,
    /// The longest that the accept queue is waited for, before the command runs; 0s for not at all.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = lease_or_none)]
    quiesce: Duration,
    /// Wait that long for established connections to end, before the command runs.
    #[arg(long, value_name = "TIME", value_parser = lease)]
    drain: Option<Duration>,
    /// While draining, reset connections over which nothing went for that long, as those that a
    /// proxy keeps for later.
    #[arg(long, value_name = "TIME", value_parser = lease, requires = "drain")]
    flush_idle: Option<Duration>,
    /// What becomes of the connections that are left when the drain is over.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Then::Leave, requires = "drain")]
    then: Then,
    /// Let in no more than that many of the held connections a second, as in 500/s; new ones queue
    /// behind them [default: as fast as the listener accepts].
    #[arg(long, value_name = "N/s")]
    rate: Option<Rate>,
    /// What becomes of the gate when the command fails or the backend does not get healthy.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnFailure::Open)]
    on_failure: OnFailure,
    /// The command that restarts the backend.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What becomes of connections that are left.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Then {
    /// They end as the backend ends them
    Leave,
    /// They are reset
    Flush,
}

impl From<Then> for restart::Then {
    fn from(then: Then) -> Self {
        match then {
            Then::Leave => Self::Leave,
            Then::Flush => Self::Flush,
        }
    }
}

/// What becomes of the gate.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnFailure {
    /// It opens, and what is held is released
    Open,
    /// It rejects new connections, for --max-hold once more
    Reject,
    /// It stays closed until its lease is over
    Keep,
}

impl From<OnFailure> for restart::OnFailure {
    fn from(on_failure: OnFailure) -> Self {
        match on_failure {
            OnFailure::Open => Self::Open,
            OnFailure::Reject => Self::Reject,
            OnFailure::Keep => Self::Keep,
        }
    }
}

/// The checks that were asked for, ready to be made.
fn checkers(args: &Restart) -> anyhow::Result<Vec<Checker>> {
    let mut connectors = Connectors::default();
    let spec = |check: &Check| Spec {
        statuses: args.check_status.clone().unwrap_or_default(),
        timeout: args.check_timeout,
        verify: match args.check_insecure {
            true => Verify::Nothing,
            false => Verify::System,
        },
        ..Spec::new(check.clone())
    };
    let mut checkers = Vec::new();
    for check in &args.checks {
        checkers.push(Checker::new(&spec(check), &mut connectors)?);
    }
    Ok(checkers)
}

/// Runs it.
pub fn run(pins: &Pins, args: Restart, json: bool) -> anyhow::Result<Answer> {
    let checks = checkers(&args)?;
    let drain = args.drain.unwrap_or_default();
    let longer = args.quiesce.saturating_sub(DEFAULT_QUIESCE);
    let max_hold = args.max_hold.unwrap_or(DEFAULT_HOLD + drain + longer);
    if drain >= max_hold {
        return Err(Error::DrainTooLong { drain, max_hold }.into());
    }
    let request = driver::Request {
        targets: args.targets,
        checks,
        check_timeout: args.check_timeout,
        rise: args.rise,
        plan: Plan {
            quiesce: args.quiesce,
            drain: args.drain.map(|timeout| Drain {
                timeout,
                idle: args.flush_idle,
                then: args.then.into(),
            }),
            on_failure: args.on_failure.into(),
        },
        allow: args.allow,
        max_hold,
        rate: args.rate,
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
    Ok(Answer {
        text: report::summary(&summary),
        fields: report::summary_json(&summary),
        code: summary.exit_code(),
        complaint: report::complaint(&summary, max_hold),
    })
}
