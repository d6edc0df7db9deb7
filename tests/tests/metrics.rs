//! `gate metrics`: what is live, as OpenMetrics, and how long connections were held. Needs root.

mod common;

use std::thread::sleep;

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, MS, PORT, assert_connects_at_once, gate, get,
    held_client, json, listen, start_daemon, stop_daemon, up, wait_until, wait_until_held,
};
use gate_common::abi::Holds;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4};
use gate_userspace::gates;
use gate_userspace::pins::Pins;
use gate_userspace::tables::Tables;

/// The value of a series; none where there is none.
fn value(text: &str, series: &str) -> Option<f64> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(value.parse().expect(value))
}

#[track_caller]
fn metrics(topology: &Topology) -> String {
    let text = gate(topology, &["metrics"]).stdout;
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    text
}

fn of(name: &str) -> String {
    format!("{name}{{gate=\"{ENDPOINT}\"}}")
}

fn holds(topology: &Topology, target: &str) -> Holds {
    let read = || {
        let pins = Pins::here()?;
        let tables = Tables::open(&pins)?;
        let found = gates::find(&pins, &tables, &[target.parse()?])?;
        Ok(tables.holds(found[0].id)?)
    };
    topology.run(Side::Server, read).unwrap()
}

#[test]
fn what_is_held_and_for_how_long_is_counted() {
    let topology = up();
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT, "--for", "30s"]);
    let clients = Clients::start(&topology, server_v4(PORT), 20, None);
    wait_until_held(&topology, ENDPOINT, 20);
    sleep(300 * MS);
    let held = metrics(&topology);
    let mode = |mode: &str| format!("gate_mode{{gate=\"{ENDPOINT}\",mode=\"{mode}\"}}");
    for (series, expected) in [
        (of("gate_held"), 20.0),
        (mode("hold"), 1.0),
        (mode("open"), 0.0),
        (of("gate_hold_seconds_count"), 0.0),
        (of("gate_drain_connections"), 0.0),
        ("gate_up".to_owned(), 1.0),
        ("gate_held_max".to_owned(), 16_384.0),
    ] {
        assert_eq!(value(&held, &series), Some(expected), "{series}: {held}");
    }
    let longest = value(&held, &of("gate_held_longest_seconds")).unwrap();
    assert!((0.3..30.0).contains(&longest), "{longest}");
    let lease = value(&held, &of("gate_lease_seconds")).unwrap();
    assert!(lease > 1.0 && lease < 30.0, "{lease}");

    gate(&topology, &["open", ENDPOINT]);
    clients.finish_connected();
    let opened = metrics(&topology);
    assert_eq!(value(&opened, &of("gate_held")), Some(0.0));
    assert_eq!(value(&opened, &of("gate_replays_total")), Some(20.0));
    assert_eq!(value(&opened, &of("gate_hold_seconds_count")), Some(20.0));
    let sum = value(&opened, &of("gate_hold_seconds_sum")).unwrap();
    assert!(sum >= 20.0 * 0.3, "{sum}");
    let bucket = |le: &str| {
        let series = format!("gate_hold_seconds_bucket{{le=\"{le}\",gate=\"{ENDPOINT}\"}}");
        value(&opened, &series).unwrap()
    };
    assert_eq!(
        (bucket("0.25"), bucket("30.0"), bucket("+Inf")),
        (0.0, 20.0, 20.0)
    );
    // Nobody waits for an open gate's connections to end.
    assert_eq!(value(&opened, &of("gate_drain_connections")), None);
}

#[test]
fn a_closed_gates_connections_are_counted() {
    let topology = up();
    let _listener = listen(&topology, server_v4(PORT));
    let clients = Clients::start(&topology, server_v4(PORT), 3, None);
    wait_until("all are connected", || clients.connected() == 3);
    gate(&topology, &["hold", ENDPOINT, "--for", "30s"]);
    let text = metrics(&topology);
    assert_eq!(
        value(&text, &of("gate_drain_connections")),
        Some(3.0),
        "{text}"
    );
    clients.finish_connected();
}

#[test]
fn what_passed_after_the_lease_is_in_no_hold_time() {
    let topology = up();
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT, "--for", "900ms"]);
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    assert!(client.finish_connected() >= BEFORE_RETRANSMISSION);
    let text = metrics(&topology);
    let expired = format!("gate_syns_total{{gate=\"{ENDPOINT}\",verdict=\"expired\"}}");
    assert_eq!(value(&text, &expired), Some(1.0), "{text}");
    assert_eq!(value(&text, &of("gate_hold_seconds_count")), Some(0.0));
}

#[test]
fn a_slot_that_is_used_anew_begins_at_zero() {
    let topology = up();
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["define", "web", ENDPOINT]);
    gate(&topology, &["hold", "web"]);
    let client = held_client(&topology, "web", server_v4(PORT));
    gate(&topology, &["open", "web"]);
    client.finish_connected();
    assert_eq!(holds(&topology, "web").count(), 1);
    // It gets the slot that is free now.
    gate(&topology, &["forget", "web"]);
    gate(&topology, &["define", "other", ENDPOINT]);
    assert_eq!(holds(&topology, "other"), Holds::default());
    assert_connects_at_once(&topology, server_v4(PORT));
}

#[test]
fn a_guard_and_a_missing_listener_are_told() {
    let topology = up();
    gate(&topology, &["guard", ENDPOINT, "--for", "30s"]);
    assert_eq!(
        value(&metrics(&topology), &of("gate_listener_missing")),
        Some(0.0)
    );
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    let text = metrics(&topology);
    assert_eq!(value(&text, &of("gate_listener_missing")), Some(1.0));
    assert_eq!(value(&text, &of("gate_guarded")), Some(1.0));
    // No label has the client's address in it.
    let client_address = Side::Client.v4().to_string();
    assert!(!text.contains(&format!("\"{client_address}")), "{text}");
    let _listener = listen(&topology, server_v4(PORT));
    client.finish_connected();
}

#[test]
fn the_daemon_serves_them_with_what_only_it_knows() {
    let topology = Topology::new().unwrap();
    let config = format!(
        "[gate.web]\nendpoints = [\"{ENDPOINT}\"]\ninterfaces = [\"{INTERFACE}\"]\n\
         [[gate.web.check]]\ntcp = \"{ENDPOINT}\"\ninterval = \"100ms\"\nrise = 1\nfall = 2\n"
    );
    let daemon = start_daemon(&topology, &config);
    let served = || {
        let (status, text) = get(&topology, "/metrics").expect("an answer");
        assert_eq!(status, 200, "{text}");
        text.as_str().unwrap().to_owned()
    };
    let is = |series: &str, expected: f64| value(&served(), series) == Some(expected);
    wait_until("it is down", || is("gate_health{gate=\"web\"}", 0.0));
    let failed = "gate_health_checks_total{gate=\"web\",check=\"0\",result=\"failed\"}";
    assert!(value(&served(), failed).unwrap() >= 2.0, "{}", served());
    assert!(
        is("gate_lease_expiries_total{gate=\"web\"}", 0.0),
        "{}",
        served()
    );
    gate(&topology, &["reject", "web", "--for", "100ms"]);
    wait_until("the end of the lease is counted", || {
        is("gate_lease_expiries_total{gate=\"web\"}", 1.0)
    });
    assert!(value(&served(), "process_resident_memory_bytes").unwrap() > 1e6);
    stop_daemon(&daemon);
}

#[test]
fn without_gate_up_there_are_metrics_too() {
    let topology = Topology::new().unwrap();
    let text = metrics(&topology);
    assert_eq!(value(&text, "gate_up"), Some(0.0));
    let fields = json(&gate(&topology, &["metrics", "--json"]));
    assert!(fields["metrics"].as_str().unwrap().contains("gate_up 0\n"));
}
