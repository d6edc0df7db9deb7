//! `gate guard`.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use gate_userspace::gates::Target;
use gate_userspace::guard::{self, Event, Guarded};
use gate_userspace::pins::Pins;
use gate_userspace::report;
use gate_userspace::signals::Signals;

use super::{Answer, lease, print};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
It needs no process: the kernel looks for a listener on each SYN, and what is held is taken up by \
its client's retransmission. With --watch it is released the moment a socket listens; the watcher \
ends on SIGINT, SIGTERM and SIGHUP, and the gates stay guarded.")]
pub struct Guard {
    /// What to guard: a gate's name, or an endpoint of this host: 10.0.0.5:8080, [fd00::5]:8080, or
    /// *:8080 for any of its addresses.
    #[arg(required = true, value_name = "GATE")]
    targets: Vec<Target>,
    /// The lease: how long connections are held from the first one on that finds no listener. After it
    /// they are refused.
    #[arg(long = "for", value_name = "TIME", default_value = "15s", value_parser = lease)]
    lease: Duration,
    /// Stay, and release what is held as soon as a socket listens again.
    #[arg(long)]
    watch: bool,
    /// Guard no more, and release what is held.
    #[arg(long, conflicts_with_all = ["lease", "watch"])]
    off: bool,
}

/// Runs it.
pub fn run(pins: &Pins, args: &Guard, json: bool) -> anyhow::Result<Answer> {
    if args.off {
        let unguarded = guard::unguard(pins, &args.targets)?;
        return Ok(Answer::done(
            report::unguarded(&unguarded),
            report::unguarded_json(&unguarded),
        ));
    }
    if args.watch {
        return watch(pins, args, json);
    }
    let guarded = guard::guard(pins, &args.targets, args.lease)?;
    let (text, fields) = told(&guarded, args.lease);
    Ok(Answer::done(text, fields))
}

fn told(guarded: &Guarded, lease: Duration) -> (String, serde_json::Value) {
    (
        report::guarded(guarded, lease),
        report::guarded_json(guarded, lease),
    )
}

/// Guards and watches: a line at once, one for each event, and one at the end.
fn watch(pins: &Pins, args: &Guard, json: bool) -> anyhow::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    runtime.block_on(async {
        // From here on a signal ends the watching and nothing else.
        let mut signals = Signals::new()?;
        let guarded = guard::guard(pins, &args.targets, args.lease)?;
        let watch = guard::Watch::new(pins, &guarded.gates);
        let (text, fields) = told(&guarded, args.lease);
        print(&match json {
            true => report::answer(fields) + "\n",
            false => text,
        })?;
        let mut tell = |event: &Event| match json {
            true => {
                // A reader that has gone is no reason to stop watching.
                let _unseen = print(&(report::answer(report::guard_event_json(event)) + "\n"));
            }
            false => report::say(&report::guard_event(event)),
        };
        let end = watch?.run(&mut signals, &mut tell).await?;
        Ok(Answer::done(
            report::watched(&guarded, end),
            report::watched_json(&guarded, end),
        ))
    })
}
