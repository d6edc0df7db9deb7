//! Status ports that are withdrawn while what is under way goes on.

use std::io::Write as _;
use std::thread;

use gate_userspace::alias::State;
use serde_json::Value;

use crate::common::{ENDPOINT, TARGET, assert_connects_at_once, gate, json, refused};
use crate::{
    REQUEST, STATUS, ask, assert_refused_at_once, by_status, expect, kill, open_stream, start,
    states, web, web_with_alias,
};

#[test]
fn a_soft_stop_refuses_the_status_port_and_nothing_else() {
    let (topology, _service) = web_with_alias();
    let both = [by_status(), TARGET].map(|it| open_stream(&topology, it));
    both.iter().for_each(ask);
    let said = gate(&topology, &["soft-stop", "web"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 is refused\n");
    for _ in 0..20 {
        assert_refused_at_once(&topology, by_status());
        assert_connects_at_once(&topology, TARGET);
    }
    both.iter().for_each(ask);
    assert_eq!(states(&topology), [State::Withdrawn]);
    let again = gate(&topology, &["soft-stop", "web"]).stdout;
    assert_eq!(again, "web: 10.0.0.5:8081 is refused already\n");

    let said = gate(&topology, &["soft-start", "web"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 answers\n");
    assert_connects_at_once(&topology, by_status());
    let again = gate(&topology, &["soft-start", "web"]).stdout;
    assert_eq!(again, "web: 10.0.0.5:8081 answers already\n");
    both.iter().for_each(ask);
}

#[test]
fn what_is_under_way_by_an_alias_loses_no_byte() {
    const ASKED: usize = 20_000;
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    let mut writer = stream.try_clone().unwrap();
    let writes = thread::spawn(move || {
        for _ in 0..ASKED {
            writer.write_all(REQUEST).unwrap();
        }
    });
    expect(&stream, 100);
    for verb in ["soft-stop", "soft-start", "soft-stop"] {
        gate(&topology, &[verb, "web"]);
        expect(&stream, 1000);
    }
    gate(&topology, &["alias", "web", STATUS, "--remove"]);
    expect(&stream, ASKED - 3100);
    writes.join().unwrap();
}

#[test]
fn a_soft_start_without_a_listener_changes_nothing() {
    let (topology, service) = web_with_alias();
    gate(&topology, &["soft-stop", "web"]);
    kill(&service);
    let words = ["nothing listens on 10.0.0.5:8080"];
    refused(&topology, &["soft-start", "web"], 3, &words);
    assert_eq!(states(&topology), [State::Withdrawn]);
    let _service = start(&topology, &[ENDPOINT]);
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["soft-start", "web"]);
    assert_connects_at_once(&topology, by_status());
}

#[test]
fn an_existing_status_port_needs_no_endpoint_of_its_own() {
    let listen = [ENDPOINT, "10.0.0.5:8443", STATUS];
    let (topology, _service) = web(&listen, &listen[..2]);
    gate(&topology, &["alias", "web", STATUS, "--existing"]);
    gate(&topology, &["define", "web", "10.0.0.5:8443"]);
    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    let shown = json(&gate(&topology, &["status", "--json"]));
    assert_eq!(shown["gates"][0]["aliases"][0]["of"], Value::Null);
}

#[test]
fn an_existing_status_port_is_only_refused() {
    let (topology, _service) = web(&[ENDPOINT], &[ENDPOINT]);
    let args = ["alias", "web", STATUS, "--existing"];
    refused(&topology, &args, 3, &["nothing listens on 10.0.0.5:8081"]);
    let status_service = start(&topology, &[STATUS]);
    let said = gate(&topology, &args).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 is its status port\n");
    assert_connects_at_once(&topology, by_status());
    // It is none of the gate's: neither held nor drained.
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    gate(&topology, &["hold", "web", "--for", "30s"]);
    assert_connects_at_once(&topology, by_status());
    gate(&topology, &["drain", "web", "--timeout", "1ms"]);
    gate(&topology, &["soft-stop", "web"]);
    assert_refused_at_once(&topology, by_status());
    gate(&topology, &["open", "web"]);
    assert_refused_at_once(&topology, by_status());
    ask(&stream);
    gate(&topology, &["soft-start", "web"]);
    assert_connects_at_once(&topology, by_status());
    assert_eq!(states(&topology), [State::Answers]);
    kill(&status_service);
    assert_eq!(states(&topology), [State::Silent]);
    // Nothing listens there any more, so the gate's listener can.
    gate(&topology, &["alias", "web", STATUS]);
    assert_connects_at_once(&topology, by_status());
}
