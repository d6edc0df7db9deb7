//! Sources that pass a closed gate. Needs root.

mod common;

use std::net::SocketAddr;

use common::{
    BEFORE_RETRANSMISSION, Clients, ENDPOINT, ENDPOINT_V6, LIMIT, PORT, TARGET, connect_once,
    count, exists, gate, held_client, listen, mode, refused, shell, start_restart, up,
    up_with_service, wait_until, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v6};
use serde_json::Value;

/// A second address of the client's, to be a source that is told apart.
const OTHER: &str = "10.0.0.9";
const OTHER_V6: &str = "fd00::9";

/// A client's connection from one of its addresses: whether it is made before a retransmission.
fn connects_from(topology: &Topology, source: &str, target: SocketAddr) -> bool {
    let source = SocketAddr::new(source.parse().unwrap(), 0);
    let dialling = common::dial(
        topology,
        Side::Client,
        common::Dial::to(target)
            .from(source)
            .limit(BEFORE_RETRANSMISSION),
    );
    dialling.finish() == common::Ended::Connected
}

fn up_with_two_sources() -> Topology {
    let topology = up();
    shell(
        &topology,
        Side::Client,
        &format!(
            "ip addr add {OTHER}/24 dev {INTERFACE}; \
             ip addr add {OTHER_V6}/64 dev {INTERFACE} nodad"
        ),
    );
    topology
}

#[test]
fn an_allowed_source_passes_a_closed_gate_and_others_do_not() {
    let topology = up_with_two_sources();
    for (endpoint, target, prefix, source) in [
        (ENDPOINT, TARGET, "10.0.0.9/32", OTHER),
        (ENDPOINT_V6, server_v6(PORT), "fd00::8/125", OTHER_V6),
    ] {
        let _listener = listen(&topology, target);
        for verb in ["hold", "drop", "reject"] {
            gate(
                &topology,
                &[verb, endpoint, "--allow", prefix, "--for", "1m"],
            );
            assert!(connects_from(&topology, source, target), "{verb} {source}");
            let own = match target {
                SocketAddr::V4(_) => Side::Client.v4().to_string(),
                SocketAddr::V6(_) => Side::Client.v6().to_string(),
            };
            assert!(!connects_from(&topology, &own, target), "{verb} {own}");
        }
        assert_eq!(count(&topology, endpoint, Counter::Allowed), 3);
    }
}

#[test]
fn several_sources_are_allowed_and_shown_until_the_gate_is_closed_anew() {
    let topology = up_with_two_sources();
    let _listener = listen(&topology, TARGET);
    let sources = ["--allow", OTHER, "--allow", "fd00::/8"];
    let args = [&["hold", ENDPOINT][..], &sources].concat();
    gate(&topology, &args);
    let text = gate(&topology, &["status"]).stdout;
    assert!(
        text.ends_with("10.0.0.5:8080: open to 10.0.0.9, fd00::/8\n"),
        "{text}"
    );
    let fields: Value =
        serde_json::from_str(&gate(&topology, &["--json", "status"]).stdout).unwrap();
    assert_eq!(
        fields["gates"][0]["allowed"],
        serde_json::json!(["10.0.0.9", "fd00::/8"])
    );
    assert!(connects_from(&topology, OTHER, TARGET));
    gate(&topology, &["hold", ENDPOINT]);
    assert!(!connects_from(&topology, OTHER, TARGET));
    let text = gate(&topology, &["status"]).stdout;
    assert!(!text.contains("open to"), "{text}");
}

#[test]
fn an_allowed_source_tries_the_new_version_before_the_public() {
    let (topology, _service) = up_with_service();
    shell(
        &topology,
        Side::Client,
        &format!("ip addr add {OTHER}/24 dev {INTERFACE}"),
    );
    let options = ["--allow", OTHER, "--check", "exec:test -e /run/tried"];
    let restart = start_restart(&topology, &options, &["true"]);
    let public = held_client(&topology, ENDPOINT, TARGET);
    wait_until("the checks have begun", || {
        restart.stderr().unwrap().contains("checking")
    });
    assert!(connects_from(&topology, OTHER, TARGET));
    assert_eq!(public.connected(), 0);
    assert!(!exists(&topology, "/run/tried"));
    shell(&topology, Side::Server, "touch /run/tried");
    let output = restart.wait(LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert!(public.finish_connected() < LIMIT);
}

#[test]
fn a_list_of_everything_is_warned_of() {
    let topology = up();
    let _listener = listen(&topology, TARGET);
    let closed = gate(&topology, &["hold", ENDPOINT, "--allow", "0.0.0.0/0"]);
    assert!(
        closed.stdout.contains("every IPv4 client passes"),
        "{closed}"
    );
    let connected = connect_once(&topology, TARGET);
    assert_eq!(connected.result, Ok(()));
    // IPv6 is another family.
    let _listener = listen(&topology, server_v6(PORT));
    gate(&topology, &["hold", ENDPOINT_V6, "--allow", "0.0.0.0/0"]);
    let held = Clients::one(&topology, server_v6(PORT));
    wait_until_held(&topology, ENDPOINT_V6, 1);
    gate(&topology, &["open", "--all"]);
    assert!(held.finish_connected() < LIMIT);
}

#[test]
fn what_is_no_source_is_a_usage_error() {
    let topology = up();
    for (source, word) in [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("10.0.0.0/33", "0 to 32"),
        ("fd00::/129", "0 to 128"),
        ("everyone", "no address"),
        ("10.0.0.0/", "length"),
    ] {
        refused(
            &topology,
            &["hold", ENDPOINT, "--allow", source],
            2,
            &[word],
        );
    }
}

#[test]
fn a_restart_closes_no_gate_where_the_sources_do_not_fit() {
    let topology = up();
    let sources: Vec<String> = (0..9_000)
        .map(|n| format!("10.1.{}.{}", n / 256, n % 256))
        .collect();
    let mut args = vec!["restart", ENDPOINT, "10.0.0.5:9090"];
    args.extend(sources.iter().flat_map(|source| ["--allow", source]));
    args.extend(["--", "true"]);
    let output = topology.gate(args).unwrap();
    assert_eq!(output.code(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("allowed sources is full"));
    assert_eq!(mode(&topology, ENDPOINT), "open");
    assert_eq!(mode(&topology, "10.0.0.5:9090"), "open");
}
