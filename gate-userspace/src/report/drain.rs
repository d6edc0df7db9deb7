//! What `gate drain` says: the live line, and who is still connected.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::flush::flushed_text;
use super::progress::Stderr;
use super::{connections, flushed_json, list, millis, span, table};
use crate::drain::driver::{Drained, Moment, Progress, Request};
use crate::drain::{Outcome, Phase};
use crate::sockets::{Connection, Process, Socket};

/// Connections that the text lists.
const LISTED: usize = 20;

/// Who has which socket open, by its inode.
pub type Owners = HashMap<u32, Process>;

/// The inodes of the sockets that are left, to look their owners up.
#[must_use]
pub fn inodes(drained: &Drained) -> HashSet<u32> {
    let sockets = drained
        .left
        .connections
        .iter()
        .flat_map(Connection::sockets);
    sockets.map(|it| it.inode).filter(|it| *it != 0).collect()
}

/// The lines of `gate drain`.
#[must_use]
pub fn drained(request: &Request, drained: &Drained, owners: &Owners) -> String {
    let endpoints = list(&request.endpoints);
    let waited = span(drained.waited);
    let left = drained.left.connections.len();
    let line = match (drained.outcome, &drained.flushed) {
        (Outcome::Drained, _) if drained.before == 0 => {
            format!("{endpoints}: no connection is in this network namespace\n")
        }
        (Outcome::Drained, _) => format!(
            "{endpoints}: drained; the last of {} ended after {waited}\n",
            connections(drained.before)
        ),
        (Outcome::Remaining, Some(flushed)) => format!(
            "{endpoints}: {} left after {waited}; {}\n",
            connections(left),
            flushed_text(flushed)
        ),
        (Outcome::Remaining, None) | (Outcome::Interrupted(_), _) => {
            format!("{endpoints}: {} left after {waited}\n", connections(left))
        }
    };
    match left {
        0 => line,
        _ => line + &listed(drained, owners),
    }
}

/// The one line of cause and remedy for a drain that did not end well.
#[must_use]
pub fn drain_complaint(request: &Request, drained: &Drained) -> Option<String> {
    let left = connections(drained.left.connections.len());
    let endpoints = list(&request.endpoints);
    match (drained.outcome, drained.flushed) {
        (Outcome::Drained, _) | (Outcome::Remaining, Some(_)) => None,
        (Outcome::Remaining, None) => Some(format!(
            "{left} to {endpoints} did not end within --timeout {}: give it longer, or reset them \
             with {}`--then flush`",
            humantime::format_duration(request.timeout),
            // A flush of the endpoint would reset those of other backends, too.
            match request.by {
                None => "`gate flush` or ",
                Some(_) => "",
            }
        )),
        (Outcome::Interrupted(_), _) => Some(format!(
            "interrupted with {left} to {endpoints}: nothing was changed"
        )),
    }
}

/// The longest idle first: they are the least likely to end by themselves.
fn sorted(drained: &Drained) -> Vec<&Connection> {
    let mut all: Vec<&Connection> = drained.left.connections.iter().collect();
    all.sort_by_key(|it| (std::cmp::Reverse(it.idle()), it.endpoint, it.peer()));
    all
}

fn listed(drained: &Drained, owners: &Owners) -> String {
    let all = sorted(drained);
    let heading = [
        "client", "process", "endpoint", "state", "idle", "unread", "unsent",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(all.iter().take(LISTED).map(|it| row(it, owners)));
    let mut text = table(&rows);
    if all.len() > LISTED {
        text += &format!("and {} more (`--json` lists all)\n", all.len() - LISTED);
    }
    text
}

fn row(connection: &Connection, owners: &Owners) -> [String; 7] {
    let sum = |bytes: fn(&Socket) -> u32| {
        let sum: u64 = connection.sockets().map(|it| u64::from(bytes(it))).sum();
        sum.to_string()
    };
    let processes: Vec<String> = connection
        .sockets()
        .map(|socket| match owners.get(&socket.inode) {
            Some(process) => format!("{} ({})", process.name, process.id),
            None if socket.inode == 0 => "not accepted".to_owned(),
            None => "-".to_owned(),
        })
        .collect();
    let state = connection
        .sockets()
        .next()
        .map(|socket| socket.state.name());
    [
        connection
            .peer()
            .map_or("-".to_owned(), |peer| peer.to_string()),
        processes.join(" < "),
        connection.endpoint.to_string(),
        state.unwrap_or("-").to_owned(),
        connection.idle().map_or("-".to_owned(), span),
        sum(|socket| socket.unread),
        sum(|socket| socket.unsent),
    ]
}

/// The JSON of `gate drain`.
#[must_use]
pub fn drained_json(request: &Request, drained: &Drained, owners: &Owners) -> Value {
    let endpoints: Vec<String> = request.endpoints.iter().map(ToString::to_string).collect();
    let left: Vec<Value> = sorted(drained)
        .into_iter()
        .map(|it| connection_json(it, owners))
        .collect();
    json!({
        "endpoints": endpoints,
        "of_backends": request.by.is_some(),
        "outcome": drained.outcome.name(),
        "exit_code": drained.exit_code(),
        "before": drained.before,
        "left": left.len(),
        "half_open": drained.left.half_open.len(),
        "waited_ms": millis(drained.waited),
        "connections": left,
        "flushed": drained.flushed.as_ref().map(flushed_json),
        "notes": request.notes,
    })
}

fn connection_json(connection: &Connection, owners: &Owners) -> Value {
    let socket = |socket: &Option<Socket>| {
        socket.as_ref().map(|socket| {
            let process = owners.get(&socket.inode);
            json!({
                "state": socket.state.name(),
                "idle_ms": socket.idle.map(millis),
                "unread": socket.unread,
                "unsent": socket.unsent,
                "unacked_segments": socket.unacked,
                "inode": socket.inode,
                "process": process.map(|it| json!({ "pid": it.id, "name": it.name })),
            })
        })
    };
    json!({
        "endpoint": connection.endpoint.to_string(),
        "served_by": connection.backend.as_ref().and_then(|it| it.served_by).map(|it| it.to_string()),
        "client_address": connection.peer().map(|peer| peer.to_string()),
        "idle_ms": connection.idle().map(millis),
        "backend": socket(&connection.backend),
        "client": socket(&connection.client),
    })
}

impl Progress for Stderr {
    fn draining(&mut self, count: usize, request: &Request) {
        for note in &request.notes {
            self.line(note);
        }
        self.line(&format!(
            "waiting for {} to end, for {} at the most",
            connections(count),
            humantime::format_duration(request.timeout)
        ));
    }

    fn drain_moment(&mut self, moment: Moment) {
        let phase = match moment.phase {
            Phase::Connections => "waiting for them to end",
            Phase::HalfOpen => "waiting for half-open requests",
        };
        self.show(&format!(
            "{:>5.1} s   {} connected   oldest idle {}   {phase}",
            moment.elapsed.as_secs_f64(),
            moment.connections,
            moment.oldest.map_or("-".to_owned(), span),
        ));
    }
}
