//! What is refused, and what is shown.

use gate_common::flow::EndpointKey;
use gate_common::handover::{Alias, MAX_ALIASES};
use gate_tests::topology::{INTERFACE, Side, Topology};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::pins::Pins;
use gate_userspace::tables::handovers::Handovers;
use serde_json::Value;

use crate::common::{
    ENDPOINT, ENDPOINT_V6, ROOT, TARGET, assert_connects_at_once, exists, gate, json, refused,
    shell, status, wait_until,
};
use crate::{
    STATUS, STATUS_PORT, STATUS_V6, ask, assert_refused_at_once, by_status, has_lookup, kill,
    open_stream, start, web, web_with_alias,
};

#[test]
fn what_cannot_be_a_status_port_is_refused() {
    let (topology, service) = web(&[ENDPOINT], &[ENDPOINT]);
    let alias = |at| ["alias", "web", at];
    refused(&topology, &["soft-stop", "web"], 3, &["gate alias web"]);
    refused(&topology, &["soft-start", "web"], 3, &["gate alias web"]);
    refused(&topology, &["soft-stop", STATUS], 3, &["no status port"]);
    refused(&topology, &["soft-stop", "other"], 3, &["no gate other"]);
    refused(
        &topology,
        &["alias", "other", STATUS],
        3,
        &["no gate other"],
    );
    refused(&topology, &alias(ENDPOINT), 3, &["an endpoint of web"]);
    refused(&topology, &alias("*:8080"), 3, &["an endpoint of web"]);
    let here = ["10.0.0.9:8081 is no address of this host"];
    refused(&topology, &alias("10.0.0.9:8081"), 3, &here);
    let which = ["which endpoint of web", ENDPOINT, "--of"];
    refused(&topology, &alias(STATUS_V6), 2, &which);
    refused(&topology, &alias("10.0.0.5"), 2, &["port"]);
    let both = ["alias", "web", STATUS, "--remove", "--existing"];
    refused(&topology, &both, 2, &[]);

    let other = start(&topology, &[STATUS]);
    let id = format!("gate-lab ({})", server_pid(&topology, STATUS_PORT));
    refused(&topology, &alias(STATUS), 3, &[&id, "--existing"]);
    refused(&topology, &alias("*:8081"), 3, &[&id, "--existing"]);
    kill(&other);

    gate(&topology, &["define", "far", "10.0.0.1:8080"]);
    let here = ["10.0.0.1:8080 is no address of this host"];
    refused(&topology, &["alias", "far", STATUS], 3, &here);
    gate(&topology, &["define", "two", "10.0.0.5:9090"]);
    let silent = ["nothing listens on 10.0.0.5:9090"];
    refused(&topology, &["alias", "two", STATUS], 3, &silent);
    refused(&topology, &["alias", ENDPOINT, STATUS], 3, &["gate web"]);
    refused(&topology, &alias("10.0.0.5:9090"), 3, &["endpoint of two"]);

    gate(&topology, &alias(STATUS));
    let known = ["a status port of web", "gate alias web", "--remove"];
    refused(&topology, &["alias", "two", STATUS], 3, &known);
    refused(&topology, &["alias", "two", STATUS, "--remove"], 3, &known);
    refused(&topology, &alias("*:8081"), 3, &known);
    for verb in ["hold", "guard", "open"] {
        refused(&topology, &[verb, STATUS], 3, &known);
    }
    refused(&topology, &["define", "three", STATUS], 3, &known);
    refused(&topology, &["define", "web", ENDPOINT, STATUS], 3, &known);
    let answering = ["10.0.0.5:8080 answers on 10.0.0.5:8081", "--remove"];
    refused(
        &topology,
        &["define", "web", "10.0.0.5:7070"],
        3,
        &answering,
    );
    kill(&service);
    gate(&topology, &["down"]);
    refused(&topology, &["alias", "web", STATUS], 3, &["no gate web"]);
    let silent = ["nothing listens on 10.0.0.5:8080"];
    refused(&topology, &["alias", ENDPOINT, STATUS], 3, &silent);
    refused(&topology, &["soft-stop", "web"], 3, &["gate is not up"]);
}

/// The process that listens on a port of the server, by its id in the topology.
#[track_caller]
fn server_pid(topology: &Topology, port: u16) -> String {
    let file = format!("/run/backend-{port}.pid");
    wait_until("it has written its id", || exists(topology, &file));
    shell(topology, Side::Server, &format!("cat {file}"))
}

#[test]
fn a_full_table_is_told_as_one() {
    let (topology, _service) = web_with_alias();
    let fill = || {
        let pins = Pins::here()?;
        let lock = pins.lock()?;
        let mut handovers = Handovers::open(&pins)?.unwrap();
        let (_, alias) = handovers.aliases()?[0];
        let first: Endpoint = "10.0.0.5:10000".parse().unwrap();
        for more in 1..MAX_ALIASES as u16 {
            let at = Endpoint {
                port: first.port + more,
                ..first
            };
            let existing = Alias {
                flags: Alias::EXISTING,
                ..alias
            };
            handovers.set_alias(&lock, EndpointKey::from(at), existing)?;
        }
        Ok(())
    };
    topology.run(Side::Server, fill).unwrap();
    let words = ["the table of aliases is full (1024 entries)"];
    refused(&topology, &["alias", "web", "10.0.0.5:8082"], 1, &words);
    assert_connects_at_once(&topology, by_status());
    gate(&topology, &["alias", "web", STATUS, "--remove"]);
    gate(&topology, &["alias", "web", "10.0.0.5:8082"]);
}

#[test]
fn an_alias_is_none_of_the_endpoints() {
    let (topology, _service) = web_with_alias();
    let said = gate(&topology, &["define", "web", ENDPOINT, ENDPOINT_V6]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8080, [fd00::5]:8080\n");
    assert_connects_at_once(&topology, by_status());
    let again = gate(&topology, &["define", "web", ENDPOINT]).stdout;
    assert!(again.contains("without [fd00::5]:8080"), "{again}");
    assert_connects_at_once(&topology, by_status());
    let already = gate(&topology, &["define", "web", ENDPOINT]).stdout;
    assert!(already.contains("already"), "{already}");
    let said = gate(&topology, &["forget", "web"]).stdout;
    let line = "web: forgotten, with 10.0.0.5:8080, and with its status port 10.0.0.5:8081\n";
    assert_eq!(said, line);
    assert_refused_at_once(&topology, by_status());
    assert!(!has_lookup(&topology));
    assert!(status(&topology).gates.is_empty());
}

#[test]
fn status_ports_are_shown() {
    let (topology, service) = web_with_alias();
    let told = |args: &[&str]| json(&gate(&topology, &[&["--json"], args].concat()));
    let aliases = || told(&["status"])["gates"][0]["aliases"].clone();
    let shown = |state: &str| {
        serde_json::json!([{
            "alias": STATUS,
            "of": ENDPOINT,
            "existing": false,
            "state": state,
        }])
    };
    assert_eq!(aliases(), shown("answers"));
    assert_eq!(
        told(&["status"])["gates"][0]["endpoints"],
        json_of(&[ENDPOINT])
    );
    let stopped = told(&["soft-stop", "web"]);
    assert_eq!(stopped["aliases"], json_of(&[STATUS]));
    assert_eq!(
        (&stopped["withdrawn"], &stopped["already"]),
        (&true.into(), &false.into())
    );
    assert_eq!(aliases(), shown("withdrawn"));
    let text = gate(&topology, &["status"]).stdout;
    assert!(
        text.contains("withdrawn, so refused: `gate soft-start web`"),
        "{text}"
    );
    let started = told(&["soft-start", "web"]);
    assert_eq!(started["withdrawn"], false);
    kill(&service);
    assert_eq!(aliases(), shown("silent"));
    let text = gate(&topology, &["status"]).stdout;
    assert!(
        text.contains("refused: nothing listens at 10.0.0.5:8080"),
        "{text}"
    );
    let _service = start(&topology, &[ENDPOINT]);
    assert_eq!(aliases(), shown("stale"));
    let added = told(&["alias", "web", STATUS]);
    assert_eq!(added["alias"], STATUS);
    assert_eq!(added["of"], ENDPOINT);
    assert_eq!(added["already"], true);
    assert_eq!(aliases(), shown("answers"));
    let removed = told(&["alias", "web", STATUS, "--remove"]);
    assert_eq!(
        (&removed["removed"], &removed["already"]),
        (&true.into(), &false.into())
    );
    assert_eq!(aliases(), serde_json::json!([]));
}

fn json_of(texts: &[&str]) -> Value {
    serde_json::json!(texts)
}

#[test]
fn down_leaves_nothing_of_an_alias() {
    let (topology, _service) = web_with_alias();
    let stream = open_stream(&topology, by_status());
    ask(&stream);
    gate(&topology, &["down"]);
    assert!(!exists(&topology, ROOT));
    assert_refused_at_once(&topology, by_status());
    assert_connects_at_once(&topology, TARGET);
    ask(&stream);
    // It was detached, and not only forgotten.
    gate(&topology, &["up", INTERFACE]);
    gate(&topology, &["define", "web", ENDPOINT]);
    assert_refused_at_once(&topology, by_status());
}
