//! `gate events`.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use gate_userspace::config::DaemonConfig;
use gate_userspace::daemon::client::{Client, ClientError, Lines};
use gate_userspace::events::{self, Event, INTERVAL, Moment, Observer, Source};
use gate_userspace::pins::Pins;
use gate_userspace::signals::Signals;
use gate_userspace::{report, rights};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{Answer, on_runtime};

/// How long the daemon may take to begin.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two tries to reach a daemon that is not there.
const AGAIN: Duration = Duration::from_secs(1);

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
It follows until SIGINT, SIGTERM or SIGHUP comes, or its reader goes away, and exits with 0. It goes on \
while `gate down` and `gate up`, or the daemon, come and go. What is so when it begins is no event.

Where `gate daemon` answers, the events are the daemon's, those of health and configuration among \
them. Else it looks by itself, ten times a second: what comes and goes between two looks may not be \
told. On stderr it says which.")]
pub struct Events {
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", default_value_os_t = DaemonConfig::default().socket)]
    socket: PathBuf,
}

/// Runs it.
pub fn run(args: &Events, json: bool) -> anyhow::Result<Answer> {
    on_runtime(follow(&args.socket, json))??;
    Ok(Answer::said())
}

/// Where the events come from.
enum Stream {
    Daemon(Lines),
    Own,
}

/// Tells what happens, until a signal comes or nobody reads any more.
async fn follow(socket: &Path, json: bool) -> anyhow::Result<()> {
    let daemon = Client::new(socket);
    let mut signals = Signals::new()?;
    let (mut from, following) = match reach(&daemon, socket).await {
        Ok(lines) => (Stream::Daemon(lines), "the events of the daemon".to_owned()),
        Err(error) => {
            // What is live is for root to see.
            rights::check()?;
            let more = "health and configuration are known to the daemon only";
            let what = format!("what is live: {}; {more}", why(&error));
            (Stream::Own, what)
        }
    };
    let mut own = match rights::missing()?.is_empty() {
        true => Some((Source::new(&Pins::here()?), Observer::new())),
        false => None,
    };
    // The first look is how things are: what comes after the line is told.
    look(&mut own)?;
    report::say(&format!("following {following}"));
    let mut tried = Instant::now();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let line = tokio::select! {
            biased;
            _ = signals.next() => return Ok(()),
            line = next(&mut from) => Some(line),
            _ = ticks.tick() => None,
        };
        let is_daemons = matches!(from, Stream::Daemon(_));
        let is_read = match line {
            Some(Ok(Some(line))) => {
                // What was told must not be older than what is compared with, should the daemon end.
                look(&mut own)?;
                match shown(line, json) {
                    Some(line) => print(&line)?,
                    None => true,
                }
            }
            Some(ended) => {
                rights::check()?;
                let why = ended
                    .err()
                    .map_or_else(|| "it ended".to_owned(), |error| why(&error));
                report::say(&format!(
                    "following what is live: no daemon any more: {why}"
                ));
                (from, tried) = (Stream::Own, Instant::now());
                true
            }
            // It also looks while the daemon does, so that nothing is lost should that end.
            None => {
                let events = look(&mut own)?;
                is_daemons || tell(&events, json)?
            }
        };
        if !is_read || has_no_reader()? {
            return Ok(());
        }
        if !is_daemons && tried.elapsed() >= AGAIN {
            tried = Instant::now();
            if let Ok(lines) = reach(&daemon, socket).await {
                report::say("following the events of the daemon");
                from = Stream::Daemon(lines);
            }
        }
    }
}

/// What happened since the look before; nothing where it may not look.
fn look(own: &mut Option<(Source, Observer)>) -> anyhow::Result<Vec<Event>> {
    Ok(match own {
        Some((source, observer)) => observer.step(source.look()?, Moment::now()),
        None => Vec::new(),
    })
}

async fn reach(daemon: &Client, socket: &Path) -> Result<Lines, ClientError> {
    let lines = timeout(PATIENCE, daemon.lines("/v1/events")).await;
    lines.unwrap_or_else(|_| {
        Err(ClientError::NoAnswer {
            path: socket.into(),
            why: format!("not within {}", report::span(PATIENCE)),
        })
    })
}

/// Why the daemon can't be followed, in short.
fn why(error: &ClientError) -> String {
    match error {
        ClientError::NoDaemon { path, .. } => format!("no daemon at {}", path.display()),
        ClientError::NoRight { .. }
        | ClientError::NoAnswer { .. }
        | ClientError::Refused { .. } => error.to_string(),
    }
}

/// The daemon's next line.
async fn next(from: &mut Stream) -> Result<Option<String>, ClientError> {
    match from {
        Stream::Daemon(lines) => lines.next().await,
        Stream::Own => std::future::pending().await,
    }
}

/// A line of the daemon's as it is asked for, one that this version doesn't know as it is; none for the
/// first one, which says that from here on nothing is missing.
fn shown(line: String, json: bool) -> Option<String> {
    let value: Value = serde_json::from_str(&line).unwrap_or_default();
    if value["following"] == true {
        return None;
    }
    if json {
        return Some(line);
    }
    Some(match (events::from_json(&value), value["lost"].as_u64()) {
        (Some(event), _) => report::event(&event),
        (None, Some(lost)) => {
            format!("{lost} events were lost: they came faster than they were read")
        }
        (None, None) => line,
    })
}

/// Prints events; false where nobody reads them.
fn tell(events: &[Event], json: bool) -> anyhow::Result<bool> {
    for event in events {
        let line = match json {
            true => report::answer(events::json(event)),
            false => report::event(event),
        };
        if !print(&line)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Prints a line; false where nobody reads it.
fn print(line: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("write to stdout"),
    }
}

/// Whether stdout is a pipe whose other end is closed: nothing may happen for long that would show it.
fn has_no_reader() -> anyhow::Result<bool> {
    let stdout = io::stdout();
    let mut ready = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut ready, PollTimeout::ZERO) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("poll stdout"),
    }
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    Ok(ready[0].revents().is_some_and(|seen| seen.intersects(gone)))
}
