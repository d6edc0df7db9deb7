//! Guarded gates: what happens to new connections while nothing listens, with and without a process
//! that watches. Needs root.

#[path = "guard/alone.rs"]
mod alone;
mod common;
#[path = "guard/listeners.rs"]
mod listeners;
#[path = "guard/load.rs"]
mod load;
#[path = "guard/watched.rs"]
mod watched;

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use common::{ENDPOINT, gate, gate_status, up, wait_until};
use gate_tests::load::{Outcome, Request};
use gate_tests::topology::{Process, Side, Topology};
use socket2::{Domain, Socket, Type};

const V6: &str = "[fd00::5]:8080";
const LOOPBACK: &str = "127.0.0.1:8080";

/// A topology with the gate up, and the endpoint guarded.
fn guarded() -> Topology {
    let topology = up();
    gate(&topology, &["guard", ENDPOINT, "--for", "30s"]);
    topology
}

/// Starts a watcher, and returns when it watches.
#[track_caller]
fn watch(topology: &Topology, args: &[&str]) -> Process {
    let args = [&["guard"], args, &["--watch"]].concat();
    let watcher = topology.spawn_gate(args).unwrap();
    wait_until("the watcher has begun", || {
        assert!(!watcher.has_ended().unwrap(), "{:?}", watcher.stderr());
        watcher.stdout().unwrap().contains("guarded")
    });
    watcher
}

#[track_caller]
fn assert_guarded(topology: &Topology, target: &str, is_guarded: bool) {
    let guard = gate_status(topology, target).guard;
    assert_eq!(guard.is_some(), is_guarded, "{guard:?}");
}

/// A listener that many have used before: nothing of theirs is in its way.
#[track_caller]
fn listen_again(topology: &Topology, address: SocketAddr, only_v6: bool) -> Socket {
    let listener = topology.run(Side::Server, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket)
    });
    listener.unwrap()
}

fn is_dirty(topology: &Topology) -> bool {
    use gate_userspace::pins::Pins;
    use gate_userspace::tables::Tables;
    let gate = gate_status(topology, ENDPOINT).gate.id;
    let guard = topology.run(Side::Server, || {
        Ok(Tables::open(&Pins::here()?)?.guard(gate)?)
    });
    guard.unwrap().dirty != 0
}

/// At most two are refused, each at the moment of one of these closes, which are times of the load: what found
/// a listener that closed before the stack looked for it, a microsecond or a few later.
#[track_caller]
fn assert_refused_at_closes_only(requests: &[Request], closes: &[Range<Duration>]) {
    let refused: Vec<&Request> = requests
        .iter()
        .filter(|request| request.outcome == Outcome::Refused)
        .collect();
    let is_at = |request: &Request, close: &Range<Duration>| {
        request.at <= close.end && request.at + request.latency >= close.start
    };
    let at_a_close = |request: &&Request| closes.iter().any(|close| is_at(request, close));
    assert!(
        refused.len() <= 2 && refused.iter().all(at_a_close),
        "{refused:?}, closes {closes:?}"
    );
}

/// How often each of these happened.
#[track_caller]
fn assert_none(requests: &[Request], outcomes: &[Outcome]) {
    let found: Vec<_> = requests
        .iter()
        .filter(|request| outcomes.contains(&request.outcome))
        .collect();
    assert!(
        found.is_empty(),
        "{} of {}: {found:?}",
        found.len(),
        requests.len()
    );
}
