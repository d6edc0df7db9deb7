//! The command line: one definition for parsing, help and dispatch.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use gate_common::state::Closed;
use gate_userspace::config::{LEASE_MAX, LEASE_MIN};
use gate_userspace::error::{Error, exit};
use gate_userspace::pins::Pins;
use gate_userspace::{datapath, doctor, report, rights, status};
use serde_json::Value;

use crate::log;

mod alias;
mod api;
mod check;
mod close;
mod completions;
mod daemon;
mod define;
mod drain;
mod events;
mod flush;
mod guard;
mod handover;
mod man;
mod metrics;
mod open;
mod plan;
mod purge;
mod restart;
mod schema;
mod top;
mod up;

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

/// How a list of exit codes begins, here and in what comes after a command's help.
const EXIT_CODES_HEADING: &str = "Exit codes:";

const EXIT_CODES: &str = "\
Exit codes:
  0    done, or already so
  1    failure
  2    the command line or the configuration is wrong
  3    not in the state that the command needs (gate is not up), or connections are left
  4    missing rights
  5    another program is on the hook
  124  the lease ran out
  126  the command of a restart can't be run
  127  the command of a restart was not found
A failed command of `gate restart` passes its own exit code on, 128 + N for signal N.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach to interfaces. With every gate open it costs next to nothing.
    Up(up::Up),
    /// Open every gate, detach, and remove every trace.
    Down,
    /// Give endpoints a name, by which they close and open together.
    Define(define::Define),
    /// Forget a name and its endpoints.
    Forget(define::Forget),
    /// Keep new connections' SYNs, and replay them on opening.
    Hold(close::Close),
    /// Drop new connections' SYNs silently; their clients retransmit.
    Drop(close::Close),
    /// Answer new connections with a reset, at once.
    Reject(close::Close),
    /// Open gates and release what they hold, oldest first.
    Open(open::Open),
    /// Wait until the established connections are gone, and tell who is still connected.
    Drain(drain::Drain),
    /// Reset established connections, so that their owners reconnect.
    Flush(flush::Flush),
    /// Hold new connections by itself whenever no socket listens: after a crash, say.
    Guard(guard::Guard),
    /// Give new connections to another backend, while the one that had them finishes its own.
    Handover(handover::Handover),
    /// Let a gate's listener answer at a status port, by which a balancer asks for it.
    Alias(alias::Alias),
    /// Refuse new connections to a gate's status ports; the gate itself goes on.
    SoftStop(alias::Soft),
    /// Let a gate's status ports answer again.
    SoftStart(alias::Soft),
    /// Show the attachments, the gates, and what they hold.
    Status,
    /// Hold new connections, run a command, wait until the backend is healthy, release.
    ///
    /// Where nothing is attached, it attaches by TC to every interface over which the endpoint can be
    /// reached, and detaches when it ends.
    Restart(restart::Restart),
    /// Tell whether a configuration is right, without a look at the host.
    Check(check::Check),
    /// Print the difference between a configuration and what is live.
    Plan(plan::Configured),
    /// Make what is live what a configuration says: all of it, or nothing.
    Apply(plan::Configured),
    /// Print the JSON schema of the configuration.
    Schema(schema::Schema),
    /// Follow what happens to the gates: closed, opened, a lease that ran out, a missing listener ...
    Events(events::Events),
    /// Watch the backends, release what guards hold, and serve the API, as the configuration says.
    Daemon(daemon::Daemon),
    /// Let the daemon read its configuration and apply the difference.
    Reload(daemon::Reload),
    /// Watch what is live in the terminal, and hold, open and drain by keys.
    Top(top::Top),
    /// Print metrics of what is live, as Prometheus reads them.
    Metrics(metrics::Metrics),
    /// Follow the data path's debug log (`gate up --debug`).
    Log,
    /// Tell whether gate works on this host, what it would attach to, and what degrades.
    Doctor,
    /// Open every gate, and remove every trace of gate from this host, in all network namespaces.
    Purge(purge::Purge),
    /// Print what completes gate's commands and options in a shell.
    Completions(completions::Completions),
    /// Print a manual page, or write them all.
    Man(man::Man),
}

fn lease(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| "write a time like 500ms, 15s or 2m".to_owned())?;
    if time < LEASE_MIN || time > LEASE_MAX {
        return Err("it must be from 1ms to 24h".to_owned());
    }
    Ok(time)
}

/// As [`lease`], but it may be none at all.
fn lease_or_none(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Ok(Duration::ZERO),
        _ => lease(text),
    }
}

/// Runs a command that waits, on this thread.
fn on_runtime<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    Ok(runtime.block_on(work))
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

    /// Of a command that has said all that it had to say.
    fn said() -> Self {
        Self::done(String::new(), Value::Null)
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
            report::say(complaint);
        }
        let text = match json {
            // A command that has answered already.
            true if answer.fields.is_null() => String::new(),
            true => report::answer(answer.fields) + "\n",
            false => answer.text,
        };
        match print(&text) {
            // What was done counts for more than who could be told.
            Err(error) if answer.code != exit::DONE => report::say(&format!("{error:#}")),
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
        match &self {
            // Without rights it says which are missing.
            Self::Doctor => return Ok(doctor()?),
            Self::Completions(args) => return Ok(completions::run(args)),
            Self::Man(args) => return man::run(args),
            // Neither do these look at the host.
            Self::Daemon(args) => return daemon::run(args),
            Self::Reload(args) => return daemon::reload(args),
            Self::Check(args) => return Ok(check::run(args)?),
            Self::Schema(args) => return Ok(schema::run(args)),
            // For an endpoint these need neither BPF nor its file system.
            Self::Drain(args) => return drain::run(args, json),
            // The daemon shows its events to whoever may ask it.
            Self::Events(args) => return events::run(args, json),
            Self::Flush(args) => return flush::run(args, json),
            _ => {}
        }
        rights::check()?;
        let pins = Pins::here()?;
        let answer = match self {
            Self::Up(args) => up::run(&pins, &args)?,
            Self::Down => {
                let downed = datapath::down(&pins)?;
                Answer::done(
                    report::down(downed.as_ref()),
                    report::down_json(downed.as_ref()),
                )
            }
            Self::Define(args) => define::define(&pins, &args)?,
            Self::Forget(args) => define::forget(&pins, &args)?,
            Self::Hold(args) => close::run(&pins, &args, Closed::Hold)?,
            Self::Drop(args) => close::run(&pins, &args, Closed::Drop)?,
            Self::Reject(args) => close::run(&pins, &args, Closed::Reject)?,
            Self::Open(args) => open::run(&pins, &args)?,
            Self::Drain(args) => drain::run(&args, json)?,
            Self::Events(args) => events::run(&args, json)?,
            Self::Flush(args) => flush::run(&args, json)?,
            Self::Status => {
                let status = status::read(&pins)?;
                Answer::done(
                    report::status(status.as_ref()),
                    report::status_json(status.as_ref()),
                )
            }
            Self::Guard(args) => guard::run(&pins, &args, json)?,
            Self::Handover(args) => handover::run(&pins, &args, json)?,
            Self::Alias(args) => alias::alias(&pins, args)?,
            Self::SoftStop(args) => alias::stop(&pins, &args)?,
            Self::SoftStart(args) => alias::start(&pins, &args)?,
            Self::Restart(args) => restart::run(&pins, args, json)?,
            Self::Purge(args) => purge::run(&pins, &args)?,
            Self::Plan(args) => plan::plan(&pins, &args)?,
            Self::Apply(args) => plan::apply(&pins, &args)?,
            Self::Check(args) => check::run(&args)?,
            Self::Schema(args) => schema::run(&args),
            Self::Daemon(args) => daemon::run(&args)?,
            Self::Reload(args) => daemon::reload(&args)?,
            Self::Top(args) => top::run(&pins, &args, json)?,
            Self::Metrics(_) => metrics::run(&pins)?,
            Self::Log => log::follow(&pins, json)?,
            Self::Doctor => doctor()?,
            Self::Completions(args) => completions::run(&args),
            Self::Man(args) => man::run(&args)?,
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
