//! What `gate restart` says on stderr while it goes on.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use super::attach::hooks_text;
use super::{connections, list, span};
use crate::datapath::Upped;
use crate::gates::Gate;
use crate::health::Check;
use crate::restart::Phase;
use crate::restart::driver::{Moment, Progress};

/// Says a line on stderr in gate's name. It is one write, so that lines of several processes stay whole.
pub fn say(text: &str) {
    // A closed stderr is no reason to stop.
    let _unseen = io::stderr().write_all(format!("gate: {text}\n").as_bytes());
}

/// Progress on stderr: a live line on a terminal, plain lines elsewhere, nothing for JSON.
pub struct Stderr {
    style: Style,
    live: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Live,
    Plain,
    Silent,
}

impl Stderr {
    /// Chooses the style for this process's stderr.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let style = match (json, io::stderr().is_terminal()) {
            (true, _) => Style::Silent,
            (false, true) => Style::Live,
            (false, false) => Style::Plain,
        };
        Self { style, live: false }
    }

    pub(super) fn line(&mut self, text: &str) {
        self.clear();
        if self.style != Style::Silent {
            say(text);
        }
    }

    /// Shows the live line anew, on a terminal.
    pub(super) fn show(&mut self, text: &str) {
        if self.style == Style::Live {
            self.live = true;
            // The cursor goes back, so that what a command prints overwrites the line.
            let _unseen = write!(io::stderr(), "\r\x1b[2K  {text}\r");
        }
    }

    /// Wipes the live line, so that what follows starts on a clean one.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.live) {
            let _unseen = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

impl Progress for Stderr {
    fn attached(&mut self, attached: &[Upped]) {
        let texts: Vec<String> = attached
            .iter()
            .map(|upped| format!("{} ({})", upped.interface.name, hooks_text(&upped.hooks)))
            .collect();
        if !texts.is_empty() {
            self.line(&format!("attached for this restart: {}", texts.join(", ")));
        }
    }

    fn closed(&mut self, gates: &[Gate], max_hold: Duration) {
        let lease = humantime::format_duration(max_hold);
        self.line(&format!(
            "{}: holding new connections, for {lease} at the most",
            list(gates)
        ));
    }

    fn draining(&mut self, count: usize, timeout: Duration) {
        if count > 0 {
            self.line(&format!(
                "waiting for {} to end, for {} at the most",
                connections(count),
                humantime::format_duration(timeout)
            ));
        }
    }

    fn started(&mut self, command: &[OsString]) {
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        self.line(&format!("running: {}", words.join(" ")));
    }

    fn checking(&mut self, elapsed: Duration, checks: &[Check]) {
        let checks: Vec<String> = checks.iter().map(ToString::to_string).collect();
        self.line(&format!(
            "the command is done after {}; checking {}",
            span(elapsed),
            checks.join(", ")
        ));
    }

    fn is_live(&self) -> bool {
        self.style == Style::Live
    }

    fn moment(&mut self, moment: &Moment) {
        let health = match (moment.phase, &moment.health) {
            (Phase::Quiesce, _) => "emptying the accept queue",
            (Phase::Drain, _) => "waiting for connections to end",
            (Phase::Command, _) => "the command runs",
            (Phase::Health, Some(failure)) => failure,
            (Phase::Health, None) => "checking",
        };
        self.show(&format!(
            "{:>5.1} s   held {}   longest wait {}   {health}",
            moment.elapsed.as_secs_f64(),
            moment.waiting.held,
            span(moment.waiting.longest),
        ));
    }

    fn note(&mut self, text: &str) {
        self.line(text);
    }
}
