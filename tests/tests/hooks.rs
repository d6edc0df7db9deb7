//! The hooks among others' programs, filters and qdiscs on an interface. Needs root.

mod common;

use common::{
    Clients, ENDPOINT, PORT, assert_refusal, gate, gate_by_filters, gate_status,
    holds_and_releases_both_ways, listen, shell, status, tc_state, try_by_filters, wait_until_held,
};
use gate_common::abi::Direction;
use gate_tests::foreign;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4};
use gate_userspace::attach::Attachment;
use gate_userspace::{interfaces, sys};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A filter of another kind, which lets everything go on.
fn add_foreign_filter(topology: &Topology, direction: &str, priority: &str) {
    let line = format!(
        "tc filter add dev {INTERFACE} {direction} {priority} protocol all u32 match u32 0 0 \
         classid 1:1"
    );
    shell(topology, Side::Server, &line);
}

// ---- Filters and qdiscs of others ----

#[test]
fn without_tcx_filters_hold_and_release_and_go_with_their_qdisc() {
    let topology = Topology::new().unwrap();
    let before = tc_state(&topology, INTERFACE);
    let up = gate_by_filters(&topology, &["up", INTERFACE]);
    assert!(up.stdout.contains("tc-ingress, tc-egress (clsact)"), "{up}");
    holds_and_releases_both_ways(&topology);
    let again = gate_by_filters(&topology, &["up", INTERFACE]);
    assert!(again.stdout.contains("already"), "{again}");
    gate_by_filters(&topology, &["down"]);
    assert_eq!(tc_state(&topology, INTERFACE), before);
}

#[test]
fn a_qdisc_that_was_there_stays_with_its_filters() {
    for priority in ["", "prio 7"] {
        for filters in [false, true] {
            let topology = Topology::new().unwrap();
            shell(&topology, Side::Server, "tc qdisc add dev eth0 clsact");
            if filters {
                add_foreign_filter(&topology, "ingress", priority);
                add_foreign_filter(&topology, "egress", priority);
            }
            let before = tc_state(&topology, INTERFACE);
            gate_by_filters(&topology, &["up", INTERFACE]);
            holds_and_releases_both_ways(&topology);
            // New programs in the old places.
            gate_by_filters(&topology, &["up", INTERFACE]);
            let text = tc_state(&topology, INTERFACE);
            assert_eq!(
                text.matches("gate_tc_ingress direct").count(),
                1,
                "{priority}: {text}"
            );
            assert_eq!(
                text.matches("gate_tc_egress direct").count(),
                1,
                "{priority}: {text}"
            );
            holds_and_releases_both_ways_again(&topology);
            gate_by_filters(&topology, &["down"]);
            assert_eq!(
                tc_state(&topology, INTERFACE),
                before,
                "{priority} {filters}"
            );
        }
    }
}

#[test]
fn a_filter_that_would_decide_what_gate_sees_is_named() {
    for direction in ["ingress", "egress"] {
        let topology = Topology::new().unwrap();
        shell(&topology, Side::Server, "tc qdisc add dev eth0 clsact");
        add_foreign_filter(&topology, direction, "prio 1");
        let before = tc_state(&topology, INTERFACE);
        let refused = try_by_filters(&topology, &["up", INTERFACE]);
        assert_refusal(&refused, 5, &[INTERFACE, direction, "preference 1"]);
        assert_eq!(tc_state(&topology, INTERFACE), before);
    }
}

/// As the first time; the counters go on from there.
fn holds_and_releases_both_ways_again(topology: &Topology) {
    gate(topology, &["down"]);
    gate_by_filters(topology, &["up", INTERFACE]);
    holds_and_releases_both_ways(topology);
}

#[test]
fn filters_that_came_later_keep_the_qdisc() {
    let topology = Topology::new().unwrap();
    gate_by_filters(&topology, &["up", INTERFACE]);
    add_foreign_filter(&topology, "egress", "prio 7");
    holds_and_releases_both_ways(&topology);
    gate_by_filters(&topology, &["down"]);
    let text = tc_state(&topology, INTERFACE);
    assert!(
        text.contains("clsact") && text.contains("u32") && !text.contains("gate"),
        "{text}"
    );
}

#[test]
fn a_qdisc_in_the_place_of_gates_own_is_another_s_and_stays() {
    // The interface is another one with the same index, or its qdisc was replaced.
    let add = "ip link add veth9 index 77 type veth peer name peer9 && ip link set veth9 up";
    for (lose, qdisc) in [
        (format!("ip link del veth9 && {add}"), "clsact"),
        ("tc qdisc del dev veth9 clsact".to_owned(), "clsact"),
        ("tc qdisc del dev veth9 clsact".to_owned(), "ingress"),
    ] {
        for (others, repaired) in [(false, false), (false, true), (true, false), (true, true)] {
            let topology = Topology::new().unwrap();
            shell(&topology, Side::Server, add);
            if others {
                gate(&topology, &["up", "lo"]);
            }
            gate_by_filters(&topology, &["up", "veth9"]);
            let line = format!("{lose} && tc qdisc add dev veth9 {qdisc}");
            shell(&topology, Side::Server, &line);
            let before = tc_state(&topology, "veth9");
            if repaired {
                gate_by_filters(&topology, &["up", "--hook", "tc-ingress", "veth9"]);
            }
            gate_by_filters(&topology, &["down"]);
            let what = format!("{lose}, {qdisc}, {others}, {repaired}");
            assert_eq!(tc_state(&topology, "veth9"), before, "{what}");
        }
    }
}

#[test]
fn one_hook_of_two_that_others_detached_comes_back_by_up() {
    let topology = Topology::new().unwrap();
    gate_by_filters(&topology, &["up", INTERFACE]);
    for direction in ["ingress", "egress"] {
        let line = format!("tc filter del dev {INTERFACE} {direction}");
        shell(&topology, Side::Server, &line);
        let text = gate(&topology, &["status"]).stdout;
        assert!(
            text.contains(&format!("no longer attached, hook tc-{direction}")),
            "{text}"
        );
        let up = gate_by_filters(&topology, &["up", INTERFACE]);
        assert!(!up.stdout.contains("already"), "{up}");
        let attachments = status(&topology).attachments;
        assert_eq!(attachments.len(), 2);
        assert!(attachments.iter().all(Attachment::is_live));
    }
    holds_and_releases_both_ways(&topology);
}

#[test]
fn a_closed_gate_stays_closed_when_up_repairs_all_that_was_attached() {
    let topology = Topology::new().unwrap();
    gate_by_filters(&topology, &["up", INTERFACE]);
    gate(&topology, &["drop", ENDPOINT, "--for", "1h"]);
    shell(
        &topology,
        Side::Server,
        &format!("tc qdisc del dev {INTERFACE} clsact"),
    );
    assert!(
        !status(&topology)
            .attachments
            .iter()
            .any(Attachment::is_live)
    );
    gate_by_filters(&topology, &["up", INTERFACE]);
    assert!(
        status(&topology)
            .attachments
            .iter()
            .all(Attachment::is_live)
    );
    assert_eq!(gate_status(&topology, ENDPOINT).mode.name(), "drop");
}

#[test]
fn an_ingress_qdisc_takes_no_egress_hook_and_stays() {
    let topology = Topology::new().unwrap();
    shell(&topology, Side::Server, "tc qdisc add dev eth0 ingress");
    let before = tc_state(&topology, INTERFACE);
    let refused = try_by_filters(&topology, &["up", INTERFACE]);
    let words = [INTERFACE, "ingress qdisc", "--hook tc-ingress"];
    assert_refusal(&refused, 1, &words);
    assert_eq!(tc_state(&topology, INTERFACE), before);
    gate_by_filters(&topology, &["up", "--hook", "tc-ingress", INTERFACE]);
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let client = Clients::one(&topology, server_v4(PORT));
    wait_until_held(&topology, ENDPOINT, 1);
    gate(&topology, &["open", ENDPOINT]);
    client.finish_connected();
    gate_by_filters(&topology, &["down"]);
    assert_eq!(tc_state(&topology, INTERFACE), before);
}

#[test]
fn filters_whose_pins_are_gone_are_removed_by_the_next_down_or_up() {
    for next in ["down", "up"] {
        let topology = Topology::new().unwrap();
        let before = tc_state(&topology, INTERFACE);
        gate_by_filters(&topology, &["up", INTERFACE]);
        gate(&topology, &["hold", ENDPOINT]);
        shell(&topology, Side::Server, "rm -rf /sys/fs/bpf/gate");
        if next == "up" {
            gate_by_filters(&topology, &["up", INTERFACE]);
            let text = tc_state(&topology, INTERFACE);
            assert_eq!(text.matches("gate_tc_ingress direct").count(), 1, "{text}");
            holds_and_releases_both_ways(&topology);
        }
        let down = gate_by_filters(&topology, &["down"]);
        assert!(down.stdout.contains(INTERFACE), "{down}");
        let text = tc_state(&topology, INTERFACE);
        assert_eq!(text, before, "{next}");
    }
}

// ---- Programs of others ----

/// TC's codes: on to the next, and accepted (with TCX, past all others).
const NEXT: i32 = -1;
const ACCEPT: i32 = 0;

/// Attaches a foreign program to both directions by TCX; it goes with what is returned.
fn foreign_tcx(topology: &Topology, code: i32, first: bool) -> Vec<OwnedFd> {
    let links = topology.run(Side::Server, || {
        let index = interfaces::named(&interfaces::list()?, INTERFACE)?.index;
        let program = foreign::classifier(code)?;
        let both = [Direction::Ingress, Direction::Egress];
        both.into_iter()
            .map(|direction| match first {
                true => Ok(sys::attach_tcx(program.as_fd(), index, direction)?),
                false => foreign::attach_behind(program.as_fd(), index, direction),
            })
            .collect()
    });
    links.unwrap()
}

/// The ids of the TCX programs on both directions, in their order.
fn tcx_programs(topology: &Topology) -> [Option<Vec<u32>>; 2] {
    let found = topology.run(Side::Server, || {
        let index = interfaces::named(&interfaces::list()?, INTERFACE)?.index;
        Ok([Direction::Ingress, Direction::Egress].map(|way| sys::tcx_programs(index, way)))
    });
    found.unwrap().map(Result::unwrap)
}

#[test]
fn programs_of_others_by_tcx_neither_hide_packets_from_gate_nor_go_with_it() {
    if !has(Feature::Tcx) {
        return;
    }
    // Code, before the others, attached before gate.
    for (code, first, early) in [
        (ACCEPT, true, true),
        (NEXT, true, true),
        (ACCEPT, false, false),
        (NEXT, false, false),
        (NEXT, true, false),
    ] {
        let topology = Topology::new().unwrap();
        let mut links = Vec::new();
        if early {
            links = foreign_tcx(&topology, code, first);
        }
        let before = tcx_programs(&topology);
        gate(&topology, &["up", INTERFACE]);
        if !early {
            links = foreign_tcx(&topology, code, first);
        }
        holds_and_releases_both_ways(&topology);
        gate(&topology, &["down"]);
        match early {
            true => assert_eq!(tcx_programs(&topology), before),
            false => assert_eq!(
                tcx_programs(&topology).map(|ids| ids.unwrap().len()),
                [1, 1]
            ),
        }
        drop(links);
    }
}

#[test]
fn programs_of_others_by_filters_neither_hide_packets_from_gate_nor_go_with_it() {
    for (code, early) in [(ACCEPT, true), (NEXT, true), (ACCEPT, false), (NEXT, false)] {
        for priority in [1, 2] {
            // A later one of the same preference goes before.
            if (code, early, priority) == (ACCEPT, false, 1) {
                continue;
            }
            let topology = Topology::new().unwrap();
            let pinned = topology.run(Side::Server, || {
                let path = Path::new("/sys/fs/bpf/foreign");
                Ok(sys::pin(foreign::classifier(code)?.as_fd(), path)?)
            });
            pinned.unwrap();
            let add = || {
                for direction in ["ingress", "egress"] {
                    let line = format!(
                        "tc filter add dev eth0 {direction} prio {priority} bpf da \
                         pinned /sys/fs/bpf/foreign"
                    );
                    shell(&topology, Side::Server, &line);
                }
            };
            shell(&topology, Side::Server, "tc qdisc add dev eth0 clsact");
            if early {
                add();
            }
            let before = tc_state(&topology, INTERFACE);
            gate_by_filters(&topology, &["up", INTERFACE]);
            if !early {
                add();
            }
            holds_and_releases_both_ways(&topology);
            gate_by_filters(&topology, &["down"]);
            let after = tc_state(&topology, INTERFACE);
            match early {
                true => assert_eq!(after, before, "{code} {priority}"),
                false => assert_eq!(after.matches("name foreign").count(), 2, "{after}"),
            }
        }
    }
}
