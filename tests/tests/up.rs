//! `gate up` and `gate down`: interfaces, hooks, what others have attached there, and what is done
//! already. Needs root.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use common::{
    Attached, Clients, ENDPOINT, PORT, ROOT, attached, count, exists, gate, json, listen, mode,
    refused, shell, status, up, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::foreign;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4};
use gate_userspace::interfaces::{self, XdpMode};
use gate_userspace::sys;

/// Attaches a foreign program; it stays for as long as the link is held.
fn attach_foreign(topology: &Topology, interface: &str, flags: u32) -> OwnedFd {
    topology
        .run(Side::Server, || {
            let index = interfaces::named(&interfaces::list()?, interface)?.index;
            Ok(sys::attach_xdp(foreign::xdp()?.as_fd(), index, flags)?)
        })
        .unwrap()
}

/// Gives the server namespace another interface, `eth1`.
fn second_interface(topology: &Topology) {
    shell(
        topology,
        Side::Server,
        "ip link add eth1 type veth peer name peer1 && ip link set eth1 up",
    );
}

// ---- Interfaces and hooks ----

#[test]
fn an_unknown_interface_is_named() {
    let topology = Topology::new().unwrap();
    refused(&topology, &["up", "nosuch"], 1, &["nosuch", "`ip link`"]);
}

#[test]
fn up_of_one_good_and_one_unknown_interface_attaches_neither() {
    let topology = Topology::new().unwrap();
    for args in [["up", INTERFACE, "nosuch"], ["up", "nosuch", INTERFACE]] {
        refused(&topology, &args, 1, &["nosuch"]);
        assert!(!attached(&topology, INTERFACE).is_any());
    }
}

#[test]
fn up_of_one_free_and_one_taken_interface_attaches_neither() {
    let topology = Topology::new().unwrap();
    second_interface(&topology);
    let _link = attach_foreign(&topology, "eth1", XDP_FLAGS_SKB_MODE);
    refused(
        &topology,
        &["up", "--hook", "xdp-generic", INTERFACE, "eth1"],
        5,
        &["eth1", "foreign"],
    );
    assert!(!attached(&topology, INTERFACE).is_any());
}

#[test]
fn an_up_that_fails_leaves_what_was_up_as_it_was() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--hook", "xdp-generic", INTERFACE]);
    second_interface(&topology);
    let _link = attach_foreign(&topology, "eth1", XDP_FLAGS_SKB_MODE);
    let before = attached(&topology, INTERFACE);
    assert!(before.is_any());
    // The attached program is the same one still, not one that logs now.
    for args in [
        &["up", "--hook", "xdp-generic", INTERFACE, "eth1"][..],
        &["up", "--hook", "xdp-generic", "--debug", INTERFACE, "eth1"],
    ] {
        refused(&topology, args, 5, &["eth1", "foreign"]);
        assert_eq!(attached(&topology, INTERFACE), before);
    }
}

#[test]
fn up_attaches_every_interface_and_down_detaches_them() {
    let topology = Topology::new().unwrap();
    second_interface(&topology);
    let output = gate(&topology, &["up", "eth1", INTERFACE]);
    assert_eq!(output.stdout.lines().count(), 2, "{output}");
    assert!(attached(&topology, INTERFACE).is_any() && attached(&topology, "eth1").is_any());
    gate(&topology, &["down"]);
    assert_eq!(
        (attached(&topology, INTERFACE), attached(&topology, "eth1")),
        (Attached::default(), Attached::default())
    );
}

#[test]
fn a_hook_that_the_interface_can_not_take_is_refused() {
    let topology = Topology::new().unwrap();
    for (hook, words) in [
        ("xdp", ["copy every packet", "--hook tc-ingress"]),
        ("xdp-generic", ["copy every packet", "--hook tc-ingress"]),
        ("tc-egress", ["comes in there too", "--hook tc-ingress"]),
    ] {
        refused(&topology, &["up", "--hook", hook, "lo"], 1, &words);
        refused(
            &topology,
            &["up", "--hook", hook, INTERFACE, "lo"],
            1,
            &words,
        );
    }
    assert!(!attached(&topology, INTERFACE).is_any());
}

#[test]
fn a_foreign_xdp_program_is_named_and_stays_whatever_its_mode() {
    for (flags, theirs) in [
        (XDP_FLAGS_SKB_MODE, XdpMode::Generic),
        (XDP_FLAGS_DRV_MODE, XdpMode::Native),
    ] {
        let topology = Topology::new().unwrap();
        let _link = attach_foreign(&topology, INTERFACE, flags);
        let before = attached(&topology, INTERFACE);
        let (mode, id) = before.xdp.unwrap();
        assert_eq!(mode, theirs);
        let id = id.to_string();
        for hook in ["xdp", "xdp-generic"] {
            let args = ["up", "--hook", hook, INTERFACE];
            refused(&topology, &args, 5, &[INTERFACE, "foreign", &id, "xdp off"]);
        }
        assert_eq!(attached(&topology, INTERFACE), before);
        // TC is another place.
        gate(&topology, &["up", INTERFACE]);
        assert_eq!(attached(&topology, INTERFACE).xdp, before.xdp);
        gate(&topology, &["down"]);
        assert_eq!(attached(&topology, INTERFACE), before);
    }
}

#[test]
fn a_foreign_program_attached_by_netlink_is_named_and_stays() {
    let topology = Topology::new().unwrap();
    let path = Path::new("/sys/fs/bpf/theirs");
    let pinned = topology.run(Side::Server, || {
        Ok(sys::pin(foreign::xdp()?.as_fd(), path)?)
    });
    pinned.unwrap();
    let line = format!(
        "ip link set dev {INTERFACE} xdpgeneric pinned {}",
        path.display()
    );
    shell(&topology, Side::Server, &line);
    let before = attached(&topology, INTERFACE);
    assert!(before.is_any());
    let args = ["up", "--hook", "xdp-generic", INTERFACE];
    refused(&topology, &args, 5, &[INTERFACE, "foreign"]);
    assert_eq!(attached(&topology, INTERFACE), before);
}

#[test]
fn the_hook_that_is_asked_for_is_the_hook_that_is_used() {
    let native = Some(XdpMode::Native);
    let generic = Some(XdpMode::Generic);
    for (interface, hook, xdp, tc, told) in [
        ("lo", "auto", None, [1, 0], vec!["tc-ingress"]),
        ("lo", "tc", None, [1, 0], vec!["tc-ingress"]),
        (
            INTERFACE,
            "auto",
            None,
            [1, 1],
            vec!["tc-ingress", "tc-egress"],
        ),
        (
            INTERFACE,
            "tc",
            None,
            [1, 1],
            vec!["tc-ingress", "tc-egress"],
        ),
        (INTERFACE, "tc-ingress", None, [1, 0], vec!["tc-ingress"]),
        (INTERFACE, "tc-egress", None, [0, 1], vec!["tc-egress"]),
        (
            INTERFACE,
            "xdp-generic",
            generic,
            [0, 0],
            vec!["xdp-generic"],
        ),
        (INTERFACE, "xdp", native, [0, 0], vec!["xdp"]),
    ] {
        let topology = Topology::new().unwrap();
        let output = gate(&topology, &["up", "--json", "--hook", hook, interface]);
        let found = attached(&topology, interface);
        assert_eq!(found.xdp.map(|(mode, _)| mode), xdp, "{hook}: {output}");
        assert_eq!(found.tc.map(|ids| ids.len()), tc, "{hook}: {output}");
        for value in [json(&output), json(&gate(&topology, &["status", "--json"]))] {
            let hooks = value["interfaces"][0]["hooks"].as_array().unwrap().clone();
            let names: Vec<&str> = hooks.iter().filter_map(|it| it["hook"].as_str()).collect();
            assert_eq!(names, told, "{hook}: {value}");
        }
    }
}

// ---- Twice is once ----

#[test]
fn up_twice_and_down_twice_are_done_already() {
    let topology = up();
    let before = attached(&topology, INTERFACE);
    let again = gate(&topology, &["up", INTERFACE]);
    assert!(again.stdout.contains("already"), "{again}");
    assert!(before.is_any() && attached(&topology, INTERFACE).is_any());
    let again = gate(&topology, &["up", "--json", INTERFACE, INTERFACE]);
    assert_eq!(json(&again)["interfaces"].as_array().unwrap().len(), 1);
    assert_eq!(json(&again)["interfaces"][0]["already"], true);

    let down = gate(&topology, &["down"]);
    assert!(down.stdout.contains(INTERFACE), "{down}");
    assert!(!attached(&topology, INTERFACE).is_any());
    assert!(!exists(&topology, ROOT));
    let again = gate(&topology, &["down"]);
    assert!(again.stdout.contains("not up"), "{again}");
}

#[test]
fn down_has_detached_when_it_returns() {
    let topology = Topology::new().unwrap();
    for round in 0..10 {
        gate(&topology, &["up", INTERFACE]);
        assert!(attached(&topology, INTERFACE).is_any(), "round {round}");
        gate(&topology, &["down"]);
        assert!(!attached(&topology, INTERFACE).is_any(), "round {round}");
    }
}

#[test]
fn up_while_a_gate_holds_goes_on_holding() {
    let topology = up();
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, ENDPOINT, 1);
    gate(&topology, &["up", INTERFACE]);
    assert_eq!((mode(&topology, ENDPOINT), client.connected()), ("hold", 0));
    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1);
    client.finish_connected();
}

#[test]
fn opening_what_is_open_is_done_already() {
    let topology = up();
    for endpoint in [ENDPOINT, "[fd00::5]:1"] {
        let output = gate(&topology, &["open", endpoint]);
        assert!(output.stdout.contains("open already"), "{output}");
    }
    assert!(status(&topology).gates.is_empty());
    gate(&topology, &["hold", ENDPOINT]);
    let first = json(&gate(&topology, &["open", "--json", ENDPOINT]));
    let second = json(&gate(&topology, &["open", "--json", ENDPOINT]));
    assert_eq!(
        (&first["already"], &second["already"]),
        (&false.into(), &true.into())
    );
    gate(&topology, &["open", "--all"]);
}

#[test]
fn open_all_opens_every_gate() {
    let topology = up();
    gate(&topology, &["hold", ENDPOINT, "[fd00::5]:8080"]);
    gate(&topology, &["drop", "*:9090"]);
    gate(&topology, &["reject", "10.0.0.5:9191"]);
    gate(&topology, &["open", "--all"]);
    let gates = status(&topology).gates;
    assert_eq!(gates.len(), 4);
    assert!(
        gates.iter().all(|gate| gate.mode.name() == "open"),
        "{gates:?}"
    );
}
