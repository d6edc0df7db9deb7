//! The checks of a monitor, and closed gates.

use std::time::{Duration, Instant};

use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::{Side, Topology, server_v4};
use gate_userspace::health::{Health, HealthEvent, Monitor, Spec};
use gate_userspace::pins::Pins;
use nix::sys::signal::Signal;

use crate::common::{ENDPOINT, LIMIT, MS, PORT, count, gate, held_client};
use crate::{on, spec};

/// The gate of [`ENDPOINT`].
const WEB: &str = "web";

const SECOND: Duration = Duration::from_secs(1);

/// A topology with the gate up where the server's own connections to itself go by.
fn up_at_loopback() -> Topology {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "lo", "eth0"]);
    topology
}

fn often(check: &str) -> Spec {
    Spec {
        interval: MS * 20,
        timeout: MS * 500,
        rise: 2,
        fall: 3,
        ..spec(check)
    }
}

/// What a monitor on the server tells within a time, from when all is decided.
async fn watch(monitor: &mut Monitor, time: Duration) -> Vec<HealthEvent> {
    let end = Instant::now() + time;
    let mut events = Vec::new();
    while let Ok(event) = tokio::time::timeout_at(end.into(), monitor.next()).await {
        events.push(event);
    }
    events
}

/// Waits until the gate's health is this one; the reason that was given.
async fn until(monitor: &mut Monitor, health: Health) -> Option<String> {
    let patience = tokio::time::timeout(LIMIT, async {
        loop {
            match monitor.next().await {
                HealthEvent::Changed { to, why, .. } if to == health => return why,
                _ => {}
            }
        }
    });
    patience.await.expect("the health that is waited for")
}

fn failures(events: &[HealthEvent]) -> Vec<&HealthEvent> {
    let passed = |event: &&HealthEvent| match event {
        HealthEvent::Checked { result, .. } => result.is_err(),
        HealthEvent::Unmade { .. } | HealthEvent::Changed { .. } => true,
    };
    events.iter().filter(passed).collect()
}

#[test]
fn checks_pass_closed_gates_also_those_of_a_new_up() {
    let topology = up_at_loopback();
    let _service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    let checks = vec![
        often("tcp://10.0.0.5:8080"),
        often("http://10.0.0.5:8080/healthz"),
    ];
    on(&topology, Side::Server, async || {
        let gates = vec![(WEB.parse().unwrap(), checks)];
        let mut monitor = Monitor::new(Some(Pins::here().unwrap()), gates);
        until(&mut monitor, Health::Up).await;
        // No gate is closed: the checks are connections like all others.
        gate(&topology, &["define", WEB, ENDPOINT]);
        let events = watch(&mut monitor, MS * 300).await;
        assert!(failures(&events).is_empty(), "{events:?}");
        assert_eq!(count(&topology, WEB, Counter::Checked), 0);
        for round in 0..2 {
            for mode in ["hold", "drop", "reject"] {
                let before = count(&topology, WEB, Counter::Checked);
                gate(&topology, &[mode, WEB]);
                let events = watch(&mut monitor, MS * 1_200).await;
                assert!(failures(&events).is_empty(), "{mode} {round}: {events:?}");
                assert!(events.len() > 20, "{events:?}");
                let checked = count(&topology, WEB, Counter::Checked) - before;
                assert!(checked > 20, "{mode} {round}: {checked}");
            }
            gate(&topology, &["open", WEB]);
            // Other maps, under the same names.
            gate(&topology, &["down"]);
            let events = watch(&mut monitor, MS * 100).await;
            assert!(failures(&events).is_empty(), "{events:?}");
            gate(&topology, &["up", "lo", "eth0"]);
            gate(&topology, &["define", WEB, ENDPOINT]);
        }
    });
}

#[test]
fn a_client_is_held_while_the_checks_pass() {
    let topology = up_at_loopback();
    let service = Service::start(&topology, Options::new(server_v4(PORT))).unwrap();
    gate(&topology, &["define", WEB, ENDPOINT]);
    gate(&topology, &["hold", WEB]);
    let client = held_client(&topology, WEB, server_v4(PORT));
    on(&topology, Side::Server, async || {
        let gates = vec![(WEB.parse().unwrap(), vec![often("tcp://10.0.0.5:8080")])];
        let mut monitor = Monitor::new(Some(Pins::here().unwrap()), gates);
        until(&mut monitor, Health::Up).await;
        service.process().signal(Signal::SIGKILL).unwrap();
        service.process().wait(LIMIT).unwrap();
        let why = until(&mut monitor, Health::Down).await;
        assert_eq!(why.unwrap(), "tcp://10.0.0.5:8080: connection refused");
    });
    assert_eq!(client.connected(), 0);
    gate(&topology, &["open", WEB]);
}

#[test]
fn a_check_of_a_guarded_gate_finds_out_at_once_that_nothing_listens() {
    let topology = up_at_loopback();
    let options = || Options::new(server_v4(PORT));
    let service = Service::start(&topology, options()).unwrap();
    gate(&topology, &["define", WEB, ENDPOINT]);
    gate(&topology, &["guard", WEB]);
    on(&topology, Side::Server, async || {
        let gates = vec![(WEB.parse().unwrap(), vec![often("tcp://10.0.0.5:8080")])];
        let mut monitor = Monitor::new(Some(Pins::here().unwrap()), gates);
        until(&mut monitor, Health::Up).await;
        service.process().signal(Signal::SIGKILL).unwrap();
        service.process().wait(LIMIT).unwrap();
        let why = until(&mut monitor, Health::Down).await;
        assert_eq!(why.unwrap(), "tcp://10.0.0.5:8080: connection refused");
        // It is no client: nothing of it is held, and the guard's lease does not begin with it.
        watch(&mut monitor, SECOND).await;
        assert_eq!(count(&topology, WEB, Counter::Held), 0);
        let client = held_client(&topology, WEB, server_v4(PORT));
        let _service = Service::start(&topology, options()).unwrap();
        until(&mut monitor, Health::Up).await;
        client.finish_connected();
    });
}
