//! What the files say together: the gates of all of them, and where they collide.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use gate_common::abi::{MAX_ALLOWED, MAX_ENDPOINTS, MAX_GATES};

use super::error::{Place, Problems};
use super::file::{self, At, File};
use super::gate::{Draft, Reading, Said};
use super::{Config, DaemonConfig, Interfaces};
use crate::endpoint::Endpoint;
use crate::gates::GateName;
use crate::hooks::HookChoice;

/// Longest path of a Unix socket, in bytes (`sun_path` of unix(7), its zero left out).
const SOCKET_MAX: usize = 107;

/// The configuration that these files make. It counts only where no problem was found.
pub(super) fn join(files: Vec<(usize, File)>, problems: &mut Problems) -> Config {
    let mut daemon = DaemonConfig::default();
    let mut defaults = Said::default();
    let mut drafts = Vec::new();
    for (file, it) in files {
        let mut reading = Reading { problems, file };
        if file == 0 {
            let own = it.daemon.as_ref();
            daemon = own.map_or(daemon, |it| read_daemon(&mut reading, &it.value));
            let said = it.defaults.as_ref();
            defaults = said.map_or(defaults, |it| reading.said(&it.value));
        } else {
            let daemon = it.daemon.map(|it| ("daemon", it.bytes));
            let defaults = it.defaults.map(|it| ("defaults", it.bytes));
            for (key, bytes) in [daemon, defaults].into_iter().flatten() {
                let told = format!("[{key}] belongs into the main file: move it there");
                reading.tell(&bytes, told);
            }
        }
        for (name, gate) in it.gate {
            drafts.extend(reading.gate((&name, gate.value), &defaults));
        }
    }
    same_endpoints(&drafts, problems);
    other_hooks(&drafts, problems);
    too_many(&drafts, problems);
    let gates = each_once(drafts, problems);
    Config { daemon, gates }
}

fn read_daemon(reading: &mut Reading<'_>, it: &file::Daemon) -> DaemonConfig {
    let mut daemon = DaemonConfig::default();
    if let Some(text) = &it.socket {
        daemon.socket = PathBuf::from(&text.value);
        if !daemon.socket.is_absolute() || text.value.len() > SOCKET_MAX {
            let told = format!(
                "a socket's path begins with / and has {SOCKET_MAX} bytes at the most: write another"
            );
            reading.tell(&text.bytes, told);
        }
    }
    if let Some(text) = &it.group {
        daemon.group.clone_from(&text.value);
        let is_name = !text.value.is_empty() && !text.value.contains([':', ',', '\n', ' ']);
        if !is_name {
            reading.tell(
                &text.bytes,
                "that is no group's name: `getent group` lists them",
            );
        }
    }
    daemon.metrics = it.metrics.as_ref().and_then(|text| address(reading, text));
    daemon.held = it.held.as_ref().map(|it| it.value);
    daemon
}

fn address(reading: &mut Reading<'_>, text: &At<String>) -> Option<SocketAddr> {
    let parsed = text.value.parse::<SocketAddr>().ok();
    if parsed.is_none_or(|it| it.port() == 0) {
        let told = "that is no address to listen at: write it like 127.0.0.1:9464 or [::1]:9464";
        reading.tell(&text.bytes, told);
    }
    parsed
}

/// Fails where two gates have one endpoint.
fn same_endpoints(drafts: &[Draft], problems: &mut Problems) {
    let mut seen = BTreeMap::<Endpoint, (&Draft, &Place)>::new();
    for draft in drafts {
        for (endpoint, place) in &draft.endpoints {
            let Some((other, first)) = seen.get(endpoint) else {
                seen.insert(*endpoint, (draft, place));
                continue;
            };
            // The same gate twice is told as such.
            if other.name != draft.name {
                let told = format!(
                    "{endpoint} belongs to gate {} already ({}): leave it out of one of them",
                    other.name,
                    problems.name(first)
                );
                problems.add(place.clone(), told);
            }
        }
    }
}

/// Fails where two gates want an interface by another hook each.
fn other_hooks(drafts: &[Draft], problems: &mut Problems) {
    let mut seen = BTreeMap::<&str, (HookChoice, &Place)>::new();
    for draft in drafts {
        let (Interfaces::Named(names), Some(place)) = (&draft.config.interfaces, &draft.hook)
        else {
            continue;
        };
        let hook = draft.config.hook;
        // It takes what another asked for.
        if hook == HookChoice::Auto {
            continue;
        }
        for name in names {
            match seen.get(name.as_str()) {
                None => drop(seen.insert(name, (hook, place))),
                Some((other, _)) if *other == hook => {}
                Some((other, first)) => {
                    let told = format!(
                        "{name} gets the hook {} here and {} at {}: an interface has one, so write the \
                         same in both, or auto in one",
                        hook.name(),
                        other.name(),
                        problems.name(first)
                    );
                    problems.add(place.clone(), told);
                }
            }
        }
    }
}

/// Fails where the data path's tables have no room for all.
fn too_many(drafts: &[Draft], problems: &mut Problems) {
    let most_gates = MAX_GATES as usize - 1;
    if let Some(first) = drafts.get(most_gates) {
        let told = format!(
            "{} gates are too many: there is room for {most_gates}",
            drafts.len()
        );
        problems.add(first.place.clone(), told);
    }
    let mut endpoints = 0;
    let mut sources = 0;
    for draft in drafts {
        let had = (endpoints, sources);
        endpoints += draft.endpoints.len();
        sources += draft.config.allow.len();
        for (what, before, now, most) in [
            ("endpoints", had.0, endpoints, MAX_ENDPOINTS as usize),
            ("allowed sources", had.1, sources, MAX_ALLOWED as usize),
        ] {
            if before <= most && now > most {
                let told = format!(
                    "with this gate there are more than {most} {what}: that is all there is room for, \
                     so leave some out"
                );
                problems.add(draft.place.clone(), told);
            }
        }
    }
}

fn each_once(drafts: Vec<Draft>, problems: &mut Problems) -> BTreeMap<GateName, super::GateConfig> {
    let mut places = BTreeMap::<GateName, Place>::new();
    let mut gates = BTreeMap::new();
    for draft in drafts {
        if let Some(first) = places.get(&draft.name) {
            let told = format!(
                "gate {} is there already ({}): keep one of them",
                draft.name,
                problems.name(first)
            );
            problems.add(draft.place, told);
            continue;
        }
        places.insert(draft.name.clone(), draft.place);
        gates.insert(draft.name, draft.config);
    }
    gates
}
