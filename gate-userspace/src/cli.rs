//! The command line: one definition for parsing, help and dispatch.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use gate_common::state::{Closed, Effective, StateWord};
use gate_userspace::datapath::{self, UpOptions};
use gate_userspace::doctor;
use gate_userspace::endpoint::Endpoint;
use gate_userspace::error::{Error, exit};
use gate_userspace::health::{Check, Checker, Statuses};
use gate_userspace::hooks::HookChoice;
use gate_userspace::pins::Pins;
use gate_userspace::release::{Replayer, release};
use gate_userspace::restart::driver;
use gate_userspace::tables::Tables;
use gate_userspace::{clock, reach, report, rights, status};
use serde_json::{Value, json};

use crate::log;

/// After that time, a client whose SYN was held has sent it again: what is held still is stale.
const RETRANSMISSION: Duration = Duration::from_secs(1);

/// Longest lease that can be asked for.
const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Restart a TCP backend and no client sees it.
///
/// While a backend is away, gate keeps the first packet (SYN) of each new connection in the
/// kernel and hands it over the moment the backend is back. Established connections are
/// never touched. A closed gate has a lease: past it the kernel opens it by itself.
#[derive(Debug, Parser)]
#[command(name = "gate", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Answer in JSON, on stdout, with a version field.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done, or already so
  1    failure
  2    the command line is wrong
  3    not in the state that the command needs (gate is not up)
  4    missing rights
  5    another program is on the hook
  124  the lease ran out
  126  the command of a restart can't be run
  127  the command of a restart was not found
A failed command of `gate restart` passes its own exit code on, 128 + N for signal N.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach to interfaces. With every gate open it costs next to nothing.
    Up(Up),
    /// Open every gate, detach, and remove every trace.
    Down,
    /// Keep new connections' SYNs, and replay them on opening.
    Hold(Close),
    /// Drop new connections' SYNs silently; their clients retransmit.
    Drop(Close),
    /// Answer new connections with a reset, at once.
    Reject(Close),
    /// Open gates and release what they hold, oldest first.
    Open(Open),
    /// Show the attachments, the gates, and what they hold.
    Status,
    /// Hold new connections, run a command, wait until the backend is healthy, release.
    ///
    /// Where nothing is attached, it attaches by TC to every interface over which the endpoint can be
    /// reached, and detaches when it ends.
    Restart(Restart),
    /// Follow the data path's debug log (`gate up --debug`).
    Log,
    /// Tell whether gate works on this host, what it would attach to, and what degrades.
    Doctor,
}

#[derive(Debug, Args)]
struct Up {
    /// The interfaces over which the clients' connections come in, or go out to the backend.
    #[arg(required = true, value_name = "INTERFACE")]
    interfaces: Vec<String>,
    /// Where to attach; what is asked for by name is taken, or refused.
    #[arg(long, value_enum, default_value_t = Hook::Auto)]
    hook: Hook,
    /// Room for that many held SYNs, about 0.5 KiB each [default: 16384].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    held: Option<u32>,
    /// Log each judged SYN; read it with `gate log`.
    #[arg(long)]
    debug: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Hook {
    /// What costs nothing there: xdp on a NIC, tc elsewhere
    Auto,
    /// In the NIC's driver, for what comes in
    Xdp,
    /// XDP in the stack: slow, and asked for by name only
    XdpGeneric,
    /// TC both ways
    Tc,
    /// TC for what comes in
    TcIngress,
    /// TC for what goes out, as to a backend on another host
    TcEgress,
}

impl From<Hook> for HookChoice {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Auto => Self::Auto,
            Hook::Xdp => Self::Native,
            Hook::XdpGeneric => Self::Generic,
            Hook::Tc => Self::Tc,
            Hook::TcIngress => Self::TcIngress,
            Hook::TcEgress => Self::TcEgress,
        }
    }
}

#[derive(Debug, Args)]
struct Close {
    /// What to close: 10.0.0.5:8080, [fd00::5]:8080, or *:8080 for any address of this host.
    #[arg(required = true, value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
    /// The lease, after which the gate opens by itself.
    #[arg(long = "for", value_name = "TIME", default_value = "15s", value_parser = lease)]
    lease: Duration,
}

#[derive(Debug, Args)]
struct Open {
    /// What to open.
    #[arg(required_unless_present = "all", value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
    /// Open every gate.
    #[arg(long, conflicts_with = "endpoints")]
    all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The gate also opens when the command fails, when --max-hold is over (the command is stopped then:
SIGTERM to its process group, SIGKILL 5 s later), and on SIGINT, SIGTERM and SIGHUP.")]
struct Restart {
    /// What to hold: 10.0.0.5:8080, [fd00::5]:8080, or *:8080 for any address of this host.
    #[arg(required = true, value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
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

fn lease(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| "write a time like 500ms, 15s or 2m".to_owned())?;
    if time < Duration::from_millis(1) || time > LEASE_MAX {
        return Err("it must be from 1ms to 24h".to_owned());
    }
    Ok(time)
}

/// What a command answers: lines for people, fields for machines, and the exit code.
pub struct Answer {
    text: String,
    fields: Value,
    code: u8,
    /// What a person is told on stderr, too.
    complaint: Option<String>,
}

impl Answer {
    fn done(text: String, fields: Value) -> Self {
        Self {
            text,
            fields,
            code: exit::DONE,
            complaint: None,
        }
    }
}

impl Cli {
    /// Runs the command and returns the exit code.
    ///
    /// # Errors
    /// Where it failed.
    pub fn run(self) -> anyhow::Result<u8> {
        let json = self.json;
        let answer = self.command.run(json)?;
        if let Some(complaint) = &answer.complaint {
            crate::complain(complaint);
        }
        let text = match json {
            true => report::answer(answer.fields) + "\n",
            false => answer.text,
        };
        match print(&text) {
            // What was done counts for more than who could be told.
            Err(error) if answer.code != exit::DONE => crate::complain(&format!("{error:#}")),
            printed => printed?,
        }
        Ok(answer.code)
    }
}

/// Prints to stdout. A reader that has gone away is its own affair.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to stdout"),
    }
}

impl Command {
    fn run(self, json: bool) -> anyhow::Result<Answer> {
        if matches!(self, Self::Doctor) {
            // Without rights it says which are missing.
            return Ok(doctor()?);
        }
        rights::check()?;
        let pins = Pins::here()?;
        let answer = match self {
            Self::Up(args) => up(&pins, &args)?,
            Self::Down => {
                let downed = datapath::down(&pins)?;
                Answer::done(
                    report::down(downed.as_ref()),
                    report::down_json(downed.as_ref()),
                )
            }
            Self::Hold(args) => close(&pins, &args, Closed::Hold)?,
            Self::Drop(args) => close(&pins, &args, Closed::Drop)?,
            Self::Reject(args) => close(&pins, &args, Closed::Reject)?,
            Self::Open(args) => open(&pins, &args)?,
            Self::Status => {
                let status = status::read(&pins)?;
                Answer::done(
                    report::status(status.as_ref()),
                    report::status_json(status.as_ref()),
                )
            }
            Self::Restart(args) => restart(&pins, args, json)?,
            Self::Log => log::follow(&pins, json)?,
            Self::Doctor => doctor()?,
        };
        Ok(answer)
    }
}

fn doctor() -> Result<Answer, Error> {
    let findings = doctor::examine()?;
    Ok(Answer {
        text: doctor::words(&findings),
        fields: doctor::json(&findings),
        code: findings.verdict().exit_code(),
        complaint: None,
    })
}

fn up(pins: &Pins, args: &Up) -> Result<Answer, Error> {
    let options = UpOptions {
        hook: args.hook.into(),
        held: args.held,
        debug: args.debug,
    };
    let done = datapath::up(pins, &args.interfaces, options)?;
    Ok(Answer::done(report::up(&done), report::up_json(&done)))
}

fn close(pins: &Pins, args: &Close, mode: Closed) -> Result<Answer, Error> {
    let lock = pins.lock()?;
    let notes = reach::check(&args.endpoints, &datapath::live(pins)?)?;
    let mut tables = Tables::open(pins)?;
    if mode == Closed::Hold {
        // Holding what can't be released would be worse than dropping it.
        Replayer::load(pins, &lock)?;
    }
    let now = clock::now();
    tables.settle(&lock, now)?;
    let word = StateWord::closed(mode, clock::after(now, args.lease));
    let endpoints: BTreeSet<Endpoint> = args.endpoints.iter().copied().collect();
    for (_, gate) in tables.define_all(&lock, &endpoints, now)? {
        tables.close(&lock, gate, word, now)?;
    }
    let name = gate_common::state::Mode::from(mode).name();
    let lease = humantime::format_duration(args.lease);
    let mut text: String = endpoints
        .iter()
        .map(|endpoint| format!("{endpoint}: {name} for {lease}\n"))
        .collect();
    for note in &notes {
        text += &format!("{note}\n");
    }
    let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    Ok(Answer::done(
        text,
        json!({
            "endpoints": shown,
            "mode": name,
            "lease_ms": report::millis(args.lease),
            "notes": notes,
        }),
    ))
}

fn open(pins: &Pins, args: &Open) -> Result<Answer, Error> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let mut replayer = Replayer::load(pins, &lock)?;
    let known = tables.endpoints()?;
    let endpoints: BTreeSet<Endpoint> = match args.all {
        true => known.keys().copied().collect(),
        false => args.endpoints.iter().copied().collect(),
    };
    let now = clock::now();
    let mut gates = BTreeSet::new();
    let mut over: Option<Error> = None;
    for endpoint in &endpoints {
        // An endpoint that never had a gate is as open as can be.
        let Some(gate) = known.get(endpoint) else {
            continue;
        };
        let word = tables.state(*gate)?;
        match word.at(|| now) {
            Effective::Open => {}
            Effective::Closed(_) => {
                gates.insert(*gate);
            }
            Effective::Expired => {
                let ago = clock::between(word.deadline(), now);
                if ago < RETRANSMISSION {
                    gates.insert(*gate);
                } else {
                    tables.discard(&lock, &BTreeSet::from([*gate]))?;
                    tables.set_state(&lock, *gate, StateWord::OPEN, now)?;
                }
                if !args.all {
                    let endpoint = *endpoint;
                    over.get_or_insert(Error::LeaseOver { endpoint, ago });
                }
            }
        }
    }
    let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
    let (text, released) = match gates.is_empty() {
        true if endpoints.is_empty() => ("no gate was closed\n".to_owned(), None),
        true if over.is_some() => (String::new(), None),
        true => (report::already_open(&endpoints), None),
        false => {
            let released = release(&lock, &mut tables, &mut replayer, &gates)?;
            let text = match over.is_some() && released.injected == 0 {
                true => String::new(),
                false => report::opened(&endpoints, &released),
            };
            (text, Some(released))
        }
    };
    tables.settle(&lock, clock::now())?;
    let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let mut fields = report::released_json(&released.unwrap_or_default());
    fields["endpoints"] = json!(shown);
    fields["already"] = json!(released.is_none() && over.is_none());
    fields["lease_over"] = json!(over.is_some());
    Ok(Answer {
        text,
        fields,
        code: over.as_ref().map_or(exit::DONE, Error::exit_code),
        complaint: over.map(|over| over.to_string()),
    })
}

fn restart(pins: &Pins, args: Restart, json: bool) -> anyhow::Result<Answer> {
    let checker = Checker::new(
        &args.checks,
        args.check_status.unwrap_or_default(),
        args.check_timeout,
        args.check_insecure,
    )?;
    let request = driver::Request {
        endpoints: args.endpoints,
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
