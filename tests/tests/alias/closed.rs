//! Aliases of gates that are closed, guarded, drained or handed over.

use std::io::{ErrorKind, Read as _, Write as _};

use gate_common::abi::Counter;
use gate_tests::backend::Options;
use gate_tests::service::Service;
use gate_tests::topology::Topology;
use gate_userspace::alias::State;

use crate::common::{
    ENDPOINT, TARGET, assert_connects_at_once, count, gate, held_client, json, wait_until,
    wait_until_held,
};
use crate::{
    STATUS, ask, assert_refused_at_once, by_status, has_lookup, kill, open_stream, start, states,
    web_with_alias,
};

#[test]
fn an_alias_is_held_with_its_gate() {
    let (topology, _service) = web_with_alias();
    gate(&topology, &["hold", "web", "--for", "30s"]);
    let by_alias = held_client(&topology, "web", by_status());
    gate(&topology, &["open", "web"]);
    by_alias.finish_connected();
    assert_eq!(count(&topology, "web", Counter::Released), 1);
}

#[test]
fn a_withdrawn_alias_of_a_held_gate_is_refused_at_once() {
    let (topology, _service) = web_with_alias();
    gate(&topology, &["hold", "web", "--for", "30s"]);
    let by_gate = held_client(&topology, "web", TARGET);
    let by_alias = held_client(&topology, "web", by_status());
    gate(&topology, &["soft-stop", "web"]);
    // What was held for the status port is refused as it comes again; the rest is held on.
    wait_until_held(&topology, "web", 1);
    assert_eq!(
        by_alias.finish()[0].result,
        Err(ErrorKind::ConnectionRefused)
    );
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["soft-start", "web"]);
    let by_alias = held_client(&topology, "web", by_status());
    gate(&topology, &["open", "web"]);
    by_alias.finish_connected();
    by_gate.finish_connected();
}

#[test]
fn an_alias_is_guarded_with_its_gate() {
    let (topology, service) = web_with_alias();
    gate(&topology, &["guard", "web", "--for", "30s"]);
    let watcher = topology
        .spawn_gate(["guard", "web", "--for", "30s", "--watch"])
        .unwrap();
    wait_until("the watcher has begun", || {
        watcher.stdout().unwrap().contains("guarded")
    });
    assert_connects_at_once(&topology, by_status());
    kill(&service);
    let by_alias = held_client(&topology, "web", by_status());
    let service = start(&topology, &[ENDPOINT]);
    // Long before the lease is over: only the watcher can have told of the new listener.
    by_alias.finish_connected();
    assert_connects_at_once(&topology, by_status());
    assert_eq!(states(&topology), [State::Answers]);

    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    kill(&service);
    let by_gate = held_client(&topology, "web", TARGET);
    assert_refused_at_once(&topology, by_status());
    let _service = start(&topology, &[ENDPOINT]);
    by_gate.finish_connected();
}

#[test]
fn what_came_by_an_alias_is_drained_and_flushed_with_its_gate() {
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    for verb in ["soft-stop", "soft-start", "soft-stop"] {
        gate(&topology, &[verb, "web"]);
        let args = ["--json", "drain", "web", "--timeout", "1ms"];
        let drained = topology.gate(args).unwrap();
        assert_eq!(drained.code(), 3, "{verb}: {drained}");
        let left = &json(&drained)["connections"][0];
        assert_eq!(left["endpoint"], STATUS, "{drained}");
        assert!(
            !drained.stderr.contains("10.0.0.5:8081 is open"),
            "{drained}"
        );
    }
    let flushed = gate(&topology, &["flush", "web"]).stdout;
    assert!(flushed.contains("1 connection reset"), "{flushed}");
    gate(&topology, &["drain", "web", "--timeout", "10s"]);
}

// ---- Handed over ----

#[test]
fn an_alias_follows_a_handover() {
    const TO: &str = "127.0.0.1:8082";
    let (topology, own) = web_with_alias();
    let other = Options {
        name: "other".to_owned(),
        ..Options::new(TO.parse().unwrap())
    };
    let other = Service::start(&topology, other).unwrap();
    let kept = open_stream(&topology, by_status());
    ask(&kept);
    gate(&topology, &["handover", "web", "--to", TO]);
    assert_eq!(who_answers(&topology), "other");
    ask(&kept);
    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["soft-start", "web"]);
    assert_eq!(who_answers(&topology), "other");
    gate(&topology, &["handover", "web", "--back"]);
    assert_eq!(who_answers(&topology), "ok");

    // One of the two is enough.
    gate(&topology, &["handover", "web", "--to", TO]);
    kill(&own);
    gate(&topology, &["soft-stop", "web"]);
    gate(&topology, &["soft-start", "web"]);
    assert_eq!(who_answers(&topology), "other");
    assert_eq!(states(&topology), [State::Answers]);
    let _own = start(&topology, &[ENDPOINT]);
    gate(&topology, &["soft-start", "web"]);
    kill(&other);
    assert_eq!(who_answers(&topology), "ok");
    gate(&topology, &["alias", "web", STATUS, "--remove"]);
    assert!(has_lookup(&topology));
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["handover", "web", "--back"]);
    assert!(!has_lookup(&topology));
}

/// The name of the backend that answers at the status port.
#[track_caller]
fn who_answers(topology: &Topology) -> String {
    let mut stream = open_stream(topology, by_status());
    let request = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next_back().unwrap_or_default().to_owned()
}
