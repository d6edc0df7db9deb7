//! Who answers at an alias.

use std::net::{Ipv4Addr, SocketAddr};

use gate_tests::topology::{Side, server_v4, server_v6};
use gate_userspace::alias::State;

use crate::common::{ENDPOINT, ENDPOINT_V6, PORT, assert_connects_at_once, gate, refused, shell};
use crate::{
    STATUS, STATUS_PORT, STATUS_V6, ask, assert_refused_at_once, by_status, connections,
    has_lookup, open_stream, states, web, web_with_alias,
};

#[test]
fn the_gates_listener_answers_at_its_aliases() {
    for (listen, endpoints, alias, targets) in [
        (&[ENDPOINT][..], &[ENDPOINT][..], STATUS, &[by_status()][..]),
        (
            &[ENDPOINT_V6],
            &[ENDPOINT_V6],
            STATUS_V6,
            &[server_v6(STATUS_PORT)],
        ),
        (
            &["[::]:8080"],
            &["*:8080"],
            "*:8081",
            &[by_status(), server_v6(STATUS_PORT)],
        ),
        (&["0.0.0.0:8080"], &["*:8080"], STATUS, &[by_status()]),
        (&["[::]:8080"], &[ENDPOINT], STATUS, &[by_status()]),
        (&["[::]:8080"], &[ENDPOINT], "*:8081", &[by_status()]),
        (
            &[ENDPOINT, ENDPOINT_V6],
            &[ENDPOINT, ENDPOINT_V6],
            STATUS_V6,
            &[server_v6(STATUS_PORT)],
        ),
    ] {
        let (topology, _service) = web(listen, endpoints);
        for target in targets {
            assert_refused_at_once(&topology, *target);
        }
        let said = gate(&topology, &["alias", "web", alias]).stdout;
        assert!(
            said.starts_with(&format!("web: {alias} answers ")),
            "{said}"
        );
        for target in targets {
            let stream = open_stream(&topology, *target);
            ask(&stream);
            assert_eq!(connections(&topology, &target.to_string()), 1, "{target}");
        }
        assert_eq!(states(&topology), [State::Answers]);
        assert_connects_at_once(&topology, SocketAddr::new(targets[0].ip(), PORT));
    }
}

#[test]
fn an_alias_can_have_another_address_than_its_endpoint() {
    let (topology, _service) = web(&[ENDPOINT], &[ENDPOINT]);
    shell(
        &topology,
        Side::Server,
        "ip address add 10.0.0.6/24 dev eth0",
    );
    gate(&topology, &["alias", "web", "10.0.0.6:8081"]);
    let other = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 6), STATUS_PORT));
    ask(&open_stream(&topology, other));
    assert_refused_at_once(&topology, by_status());
}

#[test]
fn two_aliases_come_and_go_each_by_itself() {
    let (topology, _service) = web_with_alias();
    gate(&topology, &["alias", "web", "10.0.0.5:8082"]);
    let targets = [by_status(), server_v4(8082)];
    for target in targets {
        assert_connects_at_once(&topology, target);
    }
    gate(&topology, &["soft-stop", "web"]);
    for target in targets {
        assert_refused_at_once(&topology, target);
    }
    gate(&topology, &["soft-start", "web"]);
    for target in targets {
        assert_connects_at_once(&topology, target);
    }

    let stream = open_stream(&topology, by_status());
    ask(&stream);
    let said = gate(&topology, &["alias", "web", STATUS, "--remove"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 is no status port any more\n");
    assert_refused_at_once(&topology, by_status());
    ask(&stream);
    assert_connects_at_once(&topology, server_v4(8082));
    assert!(has_lookup(&topology));
    gate(&topology, &["alias", "web", "10.0.0.5:8082", "--remove"]);
    assert!(!has_lookup(&topology));
    assert_refused_at_once(&topology, server_v4(8082));
    let said = gate(&topology, &["alias", "web", STATUS, "--remove"]).stdout;
    assert_eq!(said, "web: 10.0.0.5:8081 was no status port\n");
}

#[test]
fn of_two_ports_at_one_address_one_is_named() {
    let listen = [ENDPOINT, "10.0.0.5:8443"];
    let (topology, _service) = web(&listen, &listen);
    let args = ["alias", "web", STATUS];
    refused(&topology, &args, 2, &[ENDPOINT, "10.0.0.5:8443", "--of"]);
    let of = |of| [&args[..], &["--of", of]].concat();
    refused(&topology, &of("10.0.0.5:9"), 2, &["no endpoint of web"]);
    gate(&topology, &of("10.0.0.5:8443"));
    assert_connects_at_once(&topology, by_status());
    let shown = gate(&topology, &["status"]).stdout;
    let line = "web: status port 10.0.0.5:8081: answers for 10.0.0.5:8443\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn an_alias_again_is_the_same_alias() {
    let (topology, _service) = web_with_alias();
    let again = gate(&topology, &["alias", "web", STATUS]).stdout;
    assert!(again.ends_with("; so already\n"), "{again}");
    gate(&topology, &["soft-stop", "web"]);
    let withdrawn = gate(&topology, &["alias", "web", STATUS]).stdout;
    assert!(withdrawn.contains("`gate soft-start web`"), "{withdrawn}");
    assert_refused_at_once(&topology, by_status());
}
