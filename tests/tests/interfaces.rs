//! Interfaces that are renamed, deleted, moved or left without pins while gate is attached to them.
//! Needs root.

mod common;

use common::{
    BEFORE_RETRANSMISSION, Clients, Dial, ENDPOINT, Ended, PORT, dial, gate, gate_by_filters,
    gate_either, gate_status, holds_and_releases_both_ways, listen, shell, status, tc_state,
    wait_until, wait_until_held,
};
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4};
use gate_userspace::attach::{Attachment, By};

#[test]
fn an_interface_that_is_renamed_stays_attached_under_its_new_name() {
    for filters in [false, true] {
        let topology = Topology::new().unwrap();
        gate_either(&topology, filters, &["up", INTERFACE]);
        let line = "ip link set eth0 down && ip link set eth0 name wan0 && ip link set wan0 up && \
                    ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev wan0";
        shell(&topology, Side::Server, line);
        let text = gate(&topology, &["status"]).stdout;
        assert!(text.contains("wan0: attached"), "{text}");
        holds_and_releases_both_ways(&topology);
        let again = gate_by_filters(&topology, &["up", "wan0"]);
        assert!(again.stdout.contains("already"), "{again}");
        let down = gate(&topology, &["down"]);
        assert!(down.stdout.contains("wan0"), "{down}");
    }
}

#[test]
fn what_is_held_from_an_interface_that_is_deleted_is_gone_and_up_repairs_that() {
    for (hook, filters) in [("tc", false), ("tc", true), ("xdp-generic", false)] {
        let topology = Topology::new().unwrap();
        gate_by_filters(&topology, &["up", "lo"]);
        let up = ["up", "--hook", hook, INTERFACE];
        gate_either(&topology, filters, &up);
        gate(&topology, &["hold", ENDPOINT]);
        let client = Clients::one(&topology, server_v4(PORT));
        wait_until_held(&topology, ENDPOINT, 1);
        shell(&topology, Side::Server, "ip link del eth0");
        let text = gate(&topology, &["status"]).stdout;
        assert!(
            text.contains("gone from this network namespace"),
            "{hook}: {text}"
        );
        // Another with the same name, and another one with the same index.
        let line = "ip link add eth0 type veth peer name peer0 && ip link set eth0 up";
        shell(&topology, Side::Server, line);
        let text = gate(&topology, &["status"]).stdout;
        assert!(!text.contains("eth0: attached"), "{text}");
        gate(&topology, &["up", "--hook", hook, INTERFACE]);
        let text = gate(&topology, &["status"]).stdout;
        assert!(
            text.contains("eth0: attached") && !text.contains("gone"),
            "{hook}: {text}"
        );
        assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 0, "{hook}");
        let opened = gate(&topology, &["open", ENDPOINT]);
        assert!(opened.stdout.contains("no connection was held"), "{opened}");
        gate(&topology, &["down"]);
        drop(client);
    }
}

/// Whether what is attached are filters, as it is on every kernel without TCX.
fn are_filters(topology: &Topology) -> bool {
    let attachments = status(topology).attachments;
    attachments.iter().all(|it| it.by == By::Clsact)
}

#[test]
fn an_interface_with_the_index_of_a_deleted_one_is_not_taken_for_it() {
    for filters in [false, true] {
        let topology = Topology::new().unwrap();
        let add = "ip link add veth9 index 77 type veth peer name peer9 && ip link set veth9 up";
        shell(&topology, Side::Server, add);
        gate_either(&topology, filters, &["up", "veth9"]);
        let filters = are_filters(&topology);
        gate(&topology, &["up", "lo"]);
        shell(
            &topology,
            Side::Server,
            &format!("ip link del veth9 && {add}"),
        );
        let text = gate(&topology, &["status"]).stdout;
        // A link knows that its interface was deleted; a filter's pin does not.
        let told = match filters {
            true => "veth9: no longer attached",
            false => "interface 77 is gone",
        };
        assert!(text.contains(told), "{text}");
        gate(&topology, &["up", "veth9"]);
        assert!(
            status(&topology)
                .attachments
                .iter()
                .all(Attachment::is_live)
        );
        gate(&topology, &["down"]);
    }
}

#[test]
fn an_interface_that_moves_to_another_namespace_is_told_and_left_alone_there() {
    for (hook, filters) in [("tc", false), ("tc", true), ("xdp-generic", false)] {
        let topology = Topology::new().unwrap();
        let other = topology.namespace().unwrap();
        gate(&topology, &["up", "lo"]);
        let up = ["up", "--hook", hook, INTERFACE];
        gate_either(&topology, filters, &up);
        gate(&topology, &["hold", "--for", "1h", ENDPOINT]);
        let early = Clients::one(&topology, server_v4(PORT));
        wait_until_held(&topology, ENDPOINT, 1);
        shell(
            &topology,
            Side::Server,
            &format!("ip link set eth0 netns {}", other.name()),
        );
        let line = "ip link set eth0 up && ip address add 10.0.0.5/24 dev eth0 && \
                    ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0";
        shell(&topology, &other, line);
        let text = gate(&topology, &["status"]).stdout;
        assert!(
            text.contains("gone from this network namespace"),
            "{hook}: {text}"
        );
        // `up` repairs.
        gate(&topology, &["up", "lo"]);
        let text = gate(&topology, &["status"]).stdout;
        assert!(!text.contains("gone"), "{hook}: {text}");
        assert_eq!(gate_status(&topology, ENDPOINT).waiting.held, 0, "{hook}");
        // And over there nobody is held any more.
        let _listener = common::listen_at(&topology, &other, server_v4(PORT));
        let ended = dial(&topology, Side::Client, Dial::to(server_v4(PORT))).finish();
        assert_eq!(ended, Ended::Connected, "{hook}");
        gate(&topology, &["down"]);
        drop(early);
    }
}

#[test]
fn without_its_bpffs_nothing_is_attached_any_more_but_filters_which_down_removes() {
    for filters in [false, true] {
        let topology = Topology::new().unwrap();
        gate_either(&topology, filters, &["up", INTERFACE]);
        let filters = are_filters(&topology);
        gate(&topology, &["hold", "--for", "1h", ENDPOINT]);
        // Wherever it is mounted.
        shell(&topology, Side::Server, "rm -rf /sys/fs/bpf/gate");
        let text = gate(&topology, &["status"]).stdout;
        assert!(text.contains("not up"), "{text}");
        let _listener = listen(&topology, server_v4(PORT));
        if filters {
            let down = gate(&topology, &["down"]);
            assert!(down.stdout.contains(INTERFACE), "{down}");
        }
        let took = Clients::one(&topology, server_v4(PORT)).finish_connected();
        assert!(took < BEFORE_RETRANSMISSION * 2, "{took:?}");
        let again = gate(&topology, &["down"]);
        assert!(again.stdout.contains("not up"), "{again}");
        wait_until("nothing is attached", || {
            !tc_state(&topology, INTERFACE).contains("gate")
        });
    }
}
