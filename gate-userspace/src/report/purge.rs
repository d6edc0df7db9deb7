//! What `gate purge` tells.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::purge::{Elsewhere, Purged, RUNTIME};

use super::{down, down_json};

/// The lines of `gate purge`.
#[must_use]
pub fn purged(purged: &Purged) -> String {
    if purged.is_nothing() {
        return "there was no trace of gate\n".to_owned();
    }
    let mut text = String::new();
    if let Some(downed) = &purged.here {
        text.push_str(&down(Some(downed)));
    }
    for (inode, left) in &purged.elsewhere {
        let what = match left {
            Elsewhere::Downed(downed) => down(Some(downed)).trim_end().to_owned(),
            Elsewhere::Gone => "it is gone; its pins are removed".to_owned(),
            Elsewhere::Unreached { why } => {
                format!("its pins are removed; what it held is left to retransmit: {why}")
            }
        };
        let _infallible = writeln!(text, "network namespace {inode}: {what}");
    }
    for path in &purged.rest {
        let _infallible = writeln!(text, "removed {}", path.display());
    }
    if purged.runtime {
        let _infallible = writeln!(text, "removed {RUNTIME}");
    }
    text
}

/// The JSON of `gate purge`.
#[must_use]
pub fn purged_json(purged: &Purged) -> Value {
    let elsewhere: Vec<Value> = purged
        .elsewhere
        .iter()
        .map(|(inode, left)| match left {
            Elsewhere::Downed(downed) => {
                json!({ "namespace": inode, "reached": true, "down": down_json(Some(downed)) })
            }
            Elsewhere::Gone => json!({ "namespace": inode, "reached": false }),
            Elsewhere::Unreached { why } => {
                json!({ "namespace": inode, "reached": false, "failure": why })
            }
        })
        .collect();
    json!({
        "was_there": !purged.is_nothing(),
        "here": down_json(purged.here.as_ref()),
        "elsewhere": elsewhere,
        "removed": purged.rest,
        "runtime": purged.runtime,
    })
}
