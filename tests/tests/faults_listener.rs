//! A listener that closes while what is held for it is on its way. Needs root.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    Call, Calls, Clients, ENDPOINT, ENDPOINT_V6, LIMIT, MS, PORT, TARGET, close, count, gate,
    listen, listen_on, up, wait_until, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::extent::Extent;
use gate_tests::syscalls::{Fate, Seen, Traced, traced};
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4, server_v6};

/// For how long a command is stopped.
const STOPPED: Duration = Duration::from_millis(200);

const CONFIG: &str = "/run/gate.toml";

/// A gate, and who connects there.
struct Scene {
    gate: &'static str,
    target: SocketAddr,
    from: Side,
    is_guarded: bool,
    /// Another endpoint of the gate, with a listener that is bound to a device.
    beside: Option<SocketAddr>,
}

/// A guarded gate at the server's interface, and a client at the other end.
const GUARDED: Scene = Scene {
    gate: ENDPOINT,
    target: TARGET,
    from: Side::Client,
    is_guarded: true,
    beside: None,
};

impl Scene {
    fn up(&self) -> Topology {
        let topology = up();
        if self.from == Side::Server {
            gate(&topology, &["up", "lo"]);
        }
        if let Some(beside) = self.beside {
            let (one, other) = (beside.to_string(), self.target.to_string());
            gate(&topology, &["define", self.gate, &one, &other]);
        }
        if self.is_guarded {
            gate(&topology, &["guard", self.gate, "--for", "30s"]);
        }
        topology
    }

    /// A client whose SYN is held; before it one of the endpoint beside it.
    fn client(&self, topology: &Topology) -> Clients {
        gate(topology, &["hold", self.gate, "--for", "20s"]);
        for (index, beside) in self.beside.iter().enumerate() {
            let _connects = Clients::one_at(topology, self.from, *beside);
            wait_until_held(topology, self.gate, index + 1);
        }
        let client = Clients::one_at(topology, self.from, self.target);
        wait_until_held(topology, self.gate, 1 + self.beside.iter().count());
        client
    }

    /// An opening to its end.
    fn undisturbed(&self, topology: &Topology) -> Seen {
        let listener = listen(topology, self.target);
        let client = self.client(topology);
        let (output, seen) =
            traced(topology, &Fate::default(), &["open", self.gate], LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        client.finish_connected();
        close(topology, listener);
        seen
    }

    /// Stops an opening at a call; there the listener closes, and another one listens later.
    fn close_at(&self, topology: &Topology, call: &Call<'_>, looks: usize) -> Seen {
        let released = || count(topology, self.gate, Counter::Released);
        let listener = listen(topology, self.target);
        let before = released();
        let client = self.client(topology);
        let opening =
            Traced::start(topology, &stopped_at(call.number), &["open", self.gate]).unwrap();
        wait_until("it is stopped", || opening.has_come(topology).unwrap());
        let stopped = Instant::now();
        let has_gone = released() > before + self.beside.iter().count() as u64;
        close(topology, listener);
        let is_in_time = stopped.elapsed() < STOPPED / 2;
        sleep(STOPPED + 20 * MS);
        let listener = listen(topology, self.target);
        let (output, seen) = opening.wait(topology, LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        let result = client.finish()[0].result;
        // An opening that finds nobody leaves its SYNs to the guard; without one it lets them be refused.
        let is_awaited = self.is_guarded || count_looks(&seen.calls[..call.number - 1]) == looks;
        if is_in_time && !has_gone && is_awaited {
            assert_eq!(result, Ok(()), "{output}");
        }
        assert_ne!(result, Err(ErrorKind::TimedOut), "{output}");
        close(topology, listener);
        seen
    }
}

/// Whether a call asks by a message: for routes, and who listens.
fn asks(call: &u64) -> bool {
    *call == libc::SYS_sendto.cast_unsigned()
}

fn count_looks(calls: &[u64]) -> usize {
    calls.iter().filter(|call| asks(call)).count()
}

fn stopped_at(call: usize) -> Fate<'static> {
    Fate {
        pause: Some(STOPPED),
        ..Fate::killed_at(call)
    }
}

/// The calls of an opening around its injection, which comes after it has asked for the last time who
/// listens.
fn around_the_injection(seen: &Seen) -> Vec<usize> {
    let asked = seen.calls.iter().rposition(asks);
    let asked = asked.expect("it looks for the listener");
    let last = seen.calls.len();
    Extent::wanted().pick(
        (asked..last.min(asked + 30)).step_by(4).collect(),
        (asked.saturating_sub(60)..last).collect(),
    )
}

#[track_caller]
fn assert_waited_for(what: &'static str, scene: &Scene) {
    let topology = scene.up();
    let bound = |at| listen_on(&topology, Side::Server, at, Some(INTERFACE));
    let beside = scene.beside.map(bound);
    let undisturbed = scene.undisturbed(&topology);
    let looks = count_looks(&undisturbed.calls);
    let calls = Calls::these(what, around_the_injection(&undisturbed));
    for (_, call) in calls.rounds() {
        let seen = scene.close_at(&topology, &call, looks);
        if let Some(beside) = &beside {
            // Its queue has room for the next round.
            beside.accept().unwrap();
        }
        call.count(&seen);
    }
    calls.finish();
}

#[test]
fn what_a_guard_holds_is_not_refused_where_its_listener_closes_at_any_call_of_an_opening() {
    assert_waited_for("open a guarded gate", &GUARDED);
}

#[test]
fn what_a_gate_holds_is_not_refused_where_its_listener_closes_at_any_call_of_an_opening() {
    let scene = Scene {
        gate: ENDPOINT_V6,
        target: server_v6(PORT),
        is_guarded: false,
        ..GUARDED
    };
    assert_waited_for("open a gate", &scene);
}

#[test]
fn what_goes_to_another_listener_than_one_bound_to_a_device_is_not_refused_where_it_closes() {
    let scene = Scene {
        gate: "web",
        beside: Some(server_v4(PORT + 1)),
        ..GUARDED
    };
    assert_waited_for("open beside one bound to a device", &scene);
}

#[test]
fn what_is_held_on_loopback_is_not_refused_where_its_listener_closes_at_any_call_before_it_went() {
    let scene = Scene {
        gate: "127.0.0.1:8080",
        target: "127.0.0.1:8080".parse().unwrap(),
        from: Side::Server,
        ..GUARDED
    };
    assert_waited_for("open on loopback", &scene);
}

/// Applies a configuration in which the gate is guarded, or is not; perhaps stopped at a call.
fn start_apply(topology: &Topology, is_guarded: bool, at: Option<usize>) -> Traced {
    let mode = if is_guarded { "guard" } else { "open" };
    let text = format!(
        "[gate.web]\nendpoints = ['{ENDPOINT}']\ninterfaces = ['{INTERFACE}']\nmode = '{mode}'\nmax_hold = '30s'\n"
    );
    topology
        .run(Side::Server, || Ok(fs::write(CONFIG, &text)?))
        .unwrap();
    let fate = at.map_or(Fate::default(), stopped_at);
    Traced::start(topology, &fate, &["apply", "--config", CONFIG]).unwrap()
}

/// A guarded gate that holds a SYN for a listener that came since, as nobody watches; then a configuration
/// that guards it no more.
fn start_unguard(topology: &Topology, at: Option<usize>) -> (Traced, TcpListener, Clients) {
    let (output, _) = start_apply(topology, true, None)
        .wait(topology, LIMIT)
        .unwrap();
    assert_eq!(output.code(), 0, "{output}");
    let client = Clients::one(topology, TARGET);
    wait_until_held(topology, "web", 1);
    let listener = listen(topology, TARGET);
    (start_apply(topology, false, at), listener, client)
}

/// All at once, under one lock: nobody else could do anything while it waits.
#[test]
fn a_configuration_that_ends_a_guard_waits_for_no_listener() {
    let topology = up();
    let (applied, listener, client) = start_unguard(&topology, None);
    let (output, undisturbed) = applied.wait(&topology, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert_eq!(count(&topology, "web", Counter::Released), 1);
    client.finish_connected();
    close(&topology, listener);
    let calls = Calls::these("end a guard", around_the_injection(&undisturbed));
    for (_, call) in calls.rounds() {
        let (applied, listener, client) = start_unguard(&topology, Some(call.number));
        wait_until("it is stopped", || applied.has_come(&topology).unwrap());
        close(&topology, listener);
        let (output, seen) = applied.wait(&topology, LIMIT).unwrap();
        assert_eq!(output.code(), 0, "{output}");
        client.finish();
        call.count(&seen);
    }
    calls.finish();
}
