//! What `gate flush` says.

use std::time::Duration;

use serde_json::{Value, json};

use super::progress::Stderr;
use super::{connections, list, millis, span};
use crate::endpoint::Endpoint;
use crate::flush::Flushed;
use crate::flush::driver::{Progress, Summary};

/// What a flush did, in words.
pub(super) fn flushed_text(flushed: &Flushed) -> String {
    let reset = flushed.backend + flushed.client;
    let mut text = match reset {
        0 => "no connection reset".to_owned(),
        _ => format!("{} reset", connections(reset)),
    };
    if flushed.client > 0 {
        text += &format!(" ({} at the client's side)", flushed.client);
    }
    for (count, what) in [
        (flushed.connecting, "that were being made ended"),
        (flushed.busy, "left alone, not idle"),
        (flushed.ended, "had ended before"),
    ] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    text
}

/// The line of `gate flush`.
#[must_use]
pub fn flushed(endpoints: &[Endpoint], summary: &Summary) -> String {
    let endpoints = list(endpoints);
    if summary.flushed.is_nothing() && summary.left == 0 {
        return format!(
            "{endpoints}: no connection is in this network namespace, nothing to reset\n"
        );
    }
    let mut line = format!("{endpoints}: {}", flushed_text(&summary.flushed));
    if summary.left > 0 {
        line += &format!("; {} left", summary.left);
    }
    line + &format!(", in {}\n", span(summary.took))
}

/// The one line of cause and remedy for a flush that was interrupted.
#[must_use]
pub fn flush_complaint(summary: &Summary) -> Option<String> {
    summary.signal.map(|_| {
        format!(
            "interrupted with {} left: start it again to reset them, too",
            connections(summary.left)
        )
    })
}

/// The JSON of what a flush did.
#[must_use]
pub fn flushed_json(flushed: &Flushed) -> Value {
    json!({
        "reset": flushed.reset(),
        "backend_side": flushed.backend,
        "client_side": flushed.client,
        "connecting": flushed.connecting,
        "busy": flushed.busy,
        "ended": flushed.ended,
    })
}

/// The JSON of `gate flush`.
#[must_use]
pub fn flush_json(endpoints: &[Endpoint], summary: &Summary) -> Value {
    let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let mut fields = flushed_json(&summary.flushed);
    fields["endpoints"] = json!(endpoints);
    fields["left"] = json!(summary.left);
    fields["took_ms"] = json!(millis(summary.took));
    fields["exit_code"] = json!(summary.exit_code());
    fields
}

impl Progress for Stderr {
    fn flush_moment(&mut self, elapsed: Duration, flushed: Flushed, left: usize) {
        self.show(&format!(
            "{:>5.1} s   {} reset   {left} to come",
            elapsed.as_secs_f64(),
            flushed.reset(),
        ));
    }
}
