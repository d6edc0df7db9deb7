//! What `gate up` and `gate down` say.

use serde_json::{Value, json};

use super::connections;
use crate::attach::By;
use crate::datapath::{Downed, Upped};
use crate::hooks::Hook;
use crate::interfaces::{Kind, XdpMode};

/// The lines of `gate up`.
#[must_use]
pub fn up(done: &[Upped]) -> String {
    let lines = done.iter().map(|upped| {
        let name = &upped.interface.name;
        let mut note = match upped.already {
            true => " already; its program is up to date".to_owned(),
            false => String::new(),
        };
        let is_veth = upped.interface.kind == Kind::Veth;
        if is_veth && upped.hooks.contains(&(Hook::Xdp(XdpMode::Native), By::Xdp)) {
            note +=
                " (a veth: its peer loses its offloads, and gets no resets without XDP of its own)";
        }
        if let Some(reason) = &upped.reason {
            note += &format!(" (not xdp: {reason})");
        }
        format!("{name}: attached, {}{note}\n", hooks_text(&upped.hooks))
    });
    lines.collect()
}

/// `hook xdp`, or `hooks tc-ingress, tc-egress (tcx)`.
pub(super) fn hooks_text(hooks: &[(Hook, By)]) -> String {
    let names: Vec<String> = hooks.iter().map(|(hook, _)| hook.to_string()).collect();
    let word = match names.len() {
        1 => "hook",
        _ => "hooks",
    };
    let by = match hooks.first() {
        Some((_, by @ (By::Tcx | By::Clsact))) => format!(" ({})", by.name()),
        _ => String::new(),
    };
    format!("{word} {}{by}", names.join(", "))
}

pub(super) fn hooks_json(hooks: &[(Hook, By)]) -> Vec<Value> {
    hooks
        .iter()
        .map(|(hook, by)| json!({ "hook": hook.to_string(), "by": by.name() }))
        .collect()
}

/// The JSON of `gate up`.
#[must_use]
pub fn up_json(done: &[Upped]) -> Value {
    let interfaces: Vec<Value> = done
        .iter()
        .map(|upped| {
            json!({
                "name": upped.interface.name,
                "ifindex": upped.interface.index,
                "hooks": hooks_json(&upped.hooks),
                "already": upped.already,
                "reason": upped.reason,
            })
        })
        .collect();
    json!({ "interfaces": interfaces })
}

/// The line of `gate down`.
#[must_use]
pub fn down(downed: Option<&Downed>) -> String {
    match downed {
        None => "gate was not up\n".to_owned(),
        Some(downed) => {
            let mut line = match downed.interfaces.as_slice() {
                [] => "nothing was attached; the pins are removed".to_owned(),
                names => format!("detached from {}", names.join(", ")),
            };
            if let Some(failure) = &downed.failure {
                line += &format!("; held connections were left to retransmit: {failure}");
            }
            if downed.released > 0 {
                line += &format!("; {} released first", connections(downed.released));
            }
            line + "\n"
        }
    }
}

/// The JSON of `gate down`.
#[must_use]
pub fn down_json(downed: Option<&Downed>) -> Value {
    json!({
        "was_up": downed.is_some(),
        "interfaces": downed.map_or(&[][..], |downed| &downed.interfaces),
        "released": downed.map_or(0, |downed| downed.released),
        "failure": downed.and_then(|downed| downed.failure.as_ref()),
    })
}
