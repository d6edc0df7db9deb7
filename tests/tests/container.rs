//! Backends in containers: behind a bridge and a veth pair, gated on the host. Needs root and nft.
//!
//! ```text
//! client 10.0.0.1 --- eth0 10.0.0.5, host, br0 172.30.0.1 --- backend 172.30.0.2
//!                                                        \--- neighbour 172.30.0.3
//! ```

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::{
    BEFORE_RETRANSMISSION, Clients, Dial, Ended, PORT, assert_only_while_held, count, dial, gate,
    gate_either, gate_status, listen_at, shell, tcp_info, wait_until_counted,
    wait_until_forwarding, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::nft;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{INTERFACE, Namespace, Place, Side, Topology, server_v4};

const BACKEND: &str = "172.30.0.2:8080";

/// A host with a bridge and containers.
struct Host {
    topology: Topology,
}

/// A container: its name is that of the host's end of its cable.
struct Container {
    namespace: Namespace,
}

impl Host {
    fn new() -> Self {
        let topology = Topology::new().unwrap();
        shell(
            &topology,
            Side::Server,
            "ip link add br0 type bridge && ip link set br0 address 02:00:00:00:01:01 && \
             echo 0 > /proc/sys/net/ipv6/conf/br0/accept_dad && \
             ip link set br0 up && ip address add 172.30.0.1/24 dev br0 && \
             ip -6 address add fd30::1/64 dev br0 nodad && \
             echo 1 > /proc/sys/net/ipv4/ip_forward && \
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        );
        shell(
            &topology,
            Side::Client,
            "ip route add 172.30.0.0/24 via 10.0.0.5 && ip -6 route add fd30::/64 via fd00::5",
        );
        Self { topology }
    }

    /// A container on the bridge: its address ends in this number, its Ethernet address in that.
    fn container(&self, name: &str, number: u8, mac: u8) -> Container {
        let namespace = self.topology.namespace().unwrap();
        let line = format!(
            "ip link add {name} type veth peer name eth0 netns {} && \
             ip link set {name} master br0 up",
            namespace.name()
        );
        shell(&self.topology, Side::Server, &line);
        let line = format!(
            "ip link set eth0 address 02:00:00:00:02:{mac:02x} up && \
             ip address add 172.30.0.{number}/24 dev eth0 && \
             ip -6 address add fd30::{number}/64 dev eth0 nodad && \
             ip route add default via 172.30.0.1 && ip -6 route add default via fd30::1"
        );
        shell(&self.topology, &namespace, &line);
        wait_until_forwarding(&self.topology, name, "br0");
        Container { namespace }
    }

    /// Held and opened, that client connects without sending its SYN again.
    #[track_caller]
    fn connects_when_opened(&self, place: impl Into<Place>, target: SocketAddr, endpoint: &str) {
        gate(&self.topology, &["hold", endpoint]);
        let before = gate_status(&self.topology, endpoint).stats;
        let client = dial(&self.topology, place, Dial::to(target));
        wait_until_held(&self.topology, endpoint, 1);
        assert!(!client.is_finished());
        let opened = gate(&self.topology, &["open", endpoint]);
        assert!(opened.stdout.contains("1 connection held"), "{opened}");
        assert_eq!(client.finish(), Ended::Connected);
        let after = gate_status(&self.topology, endpoint).stats;
        for counter in [Counter::Held, Counter::Released] {
            let counted = after.counts[counter as usize] - before.counts[counter as usize];
            assert_eq!(counted, 1, "{counter:?}");
        }
    }
}

fn backend() -> SocketAddr {
    BACKEND.parse().unwrap()
}

#[test]
fn a_gate_on_the_bridge_holds_what_is_routed_to_a_container_and_what_the_host_sends() {
    for filters in [false, true] {
        let host = Host::new();
        let container = host.container("web", 2, 2);
        let up = gate_either(&host.topology, filters, &["up", "br0"]);
        assert!(up.stdout.contains("tc-ingress, tc-egress"), "{up}");
        let _v4 = listen_at(&host.topology, &container.namespace, backend());
        let v6: SocketAddr = "[fd30::2]:8080".parse().unwrap();
        let _v6 = listen_at(&host.topology, &container.namespace, v6);
        for side in [Side::Client, Side::Server] {
            host.connects_when_opened(side, backend(), BACKEND);
            host.connects_when_opened(side, v6, "[fd30::2]:8080");
        }
    }
}

#[test]
fn a_gate_on_the_containers_cable_holds_what_its_neighbours_send_too() {
    for filters in [false, true] {
        let host = Host::new();
        let container = host.container("web", 2, 2);
        let neighbour = host.container("other", 3, 3);
        gate_either(&host.topology, filters, &["up", "web"]);
        let _listener = listen_at(&host.topology, &container.namespace, backend());
        for place in [
            Place::from(Side::Client),
            Side::Server.into(),
            (&neighbour.namespace).into(),
        ] {
            host.connects_when_opened(place, backend(), BACKEND);
        }
    }
}

#[test]
fn a_gate_on_the_neighbours_cable_holds_what_it_sends() {
    for hook in ["tc", "xdp-generic", "xdp"] {
        let host = Host::new();
        let container = host.container("web", 2, 2);
        let neighbour = host.container("other", 3, 3);
        gate(&host.topology, &["up", "--hook", hook, "other"]);
        let _listener = listen_at(&host.topology, &container.namespace, backend());
        host.connects_when_opened(&neighbour.namespace, backend(), BACKEND);
    }
}

#[test]
fn a_gate_on_the_uplink_holds_what_is_routed_to_a_container() {
    for hook in ["tc", "xdp-generic", "xdp"] {
        let host = Host::new();
        let container = host.container("web", 2, 2);
        gate(&host.topology, &["up", "--hook", hook, INTERFACE]);
        let _listener = listen_at(&host.topology, &container.namespace, backend());
        host.connects_when_opened(Side::Client, backend(), BACKEND);
    }
}

#[test]
fn a_syn_that_crosses_three_gated_interfaces_is_held_once_and_released_once() {
    let host = Host::new();
    let container = host.container("web", 2, 2);
    let neighbour = host.container("other", 3, 3);
    gate(
        &host.topology,
        &["up", INTERFACE, "br0", "web", "other", "lo"],
    );
    let _listener = listen_at(&host.topology, &container.namespace, backend());
    for place in [
        Place::from(Side::Client),
        Side::Server.into(),
        (&neighbour.namespace).into(),
    ] {
        host.connects_when_opened(place, backend(), BACKEND);
    }
    assert_eq!(count(&host.topology, BACKEND, Counter::Uncaptured), 0);
}

#[test]
fn a_container_that_comes_back_with_another_ethernet_address_gets_what_was_held_for_it() {
    let host = Host::new();
    let first = host.container("web", 2, 2);
    gate(&host.topology, &["up", "br0"]);
    gate(&host.topology, &["hold", "--for", "1m", BACKEND]);
    // Both know its first address.
    let clients = [Side::Client, Side::Server].map(|side| {
        shell(
            &host.topology,
            Side::Server,
            "ip neigh replace 172.30.0.2 lladdr 02:00:00:00:02:02 dev br0 nud reachable",
        );
        dial(&host.topology, side, Dial::to(backend()))
    });
    wait_until_held(&host.topology, BACKEND, 2);
    shell(&host.topology, Side::Server, "ip link del web");
    drop(first);
    let second = host.container("web", 2, 0x22);
    let _listener = listen_at(&host.topology, &second.namespace, backend());
    // As a container's runtime and a check of its health make the host learn it.
    shell(
        &host.topology,
        Side::Server,
        "ip neigh replace 172.30.0.2 lladdr 02:00:00:00:02:22 dev br0 nud reachable",
    );
    let opened = gate(&host.topology, &["open", BACKEND]);
    assert!(opened.stdout.contains("2 connections held"), "{opened}");
    wait_until_counted(&host.topology, BACKEND, Counter::Released, 2);
    for client in clients {
        assert_eq!(client.finish(), Ended::Connected);
    }
}

#[test]
fn a_containers_address_that_the_host_does_not_know_yet_is_resolved_on_release() {
    let host = Host::new();
    let first = host.container("web", 2, 2);
    gate(&host.topology, &["up", "br0"]);
    gate(&host.topology, &["hold", "--for", "1m", BACKEND]);
    let client = dial(&host.topology, Side::Client, Dial::to(backend()));
    wait_until_held(&host.topology, BACKEND, 1);
    shell(
        &host.topology,
        Side::Server,
        "ip link del web && ip neigh flush dev br0",
    );
    drop(first);
    let second = host.container("web", 2, 0x22);
    let _listener = listen_at(&host.topology, &second.namespace, backend());
    gate(&host.topology, &["open", BACKEND]);
    let (ended, _, socket) = client.finish_with_socket();
    assert_eq!(ended, Ended::Connected);
    let sent_again = tcp_info(&socket.unwrap()).tcpi_total_retrans;
    assert_only_while_held(&host.topology, BACKEND, sent_again.into());
}

#[test]
fn a_published_port_is_held_before_and_behind_its_translation() {
    if !has(Feature::Nftables) {
        return;
    }
    for (hooks, endpoint) in [
        (&["up", "--hook", "tc", INTERFACE][..], "10.0.0.5:80"),
        (&["up", "--hook", "xdp-generic", INTERFACE], "10.0.0.5:80"),
        (&["up", "br0"], BACKEND),
        (&["up", "web"], BACKEND),
    ] {
        let host = Host::new();
        let container = host.container("web", 2, 2);
        let rules = "table ip t { chain p { type nat hook prerouting priority dstnat; \
                     ip daddr 10.0.0.5 tcp dport 80 dnat to 172.30.0.2:8080; }; \
                     chain o { type nat hook output priority -100; \
                     ip daddr 10.0.0.5 tcp dport 80 dnat to 172.30.0.2:8080; }; \
                     chain m { type nat hook postrouting priority srcnat; \
                     oifname br0 ip saddr 10.0.0.5 masquerade; }; }";
        nft::load(&host.topology, Side::Server, rules).unwrap();
        gate(&host.topology, hooks);
        let _listener = listen_at(&host.topology, &container.namespace, backend());
        host.connects_when_opened(Side::Client, server_v4(80), endpoint);
        if endpoint == BACKEND {
            host.connects_when_opened(Side::Server, server_v4(80), endpoint);
        }
    }
}

#[test]
fn a_published_port_with_gates_before_and_behind_its_translation_opens_both() {
    if !has(Feature::Nftables) {
        return;
    }
    let host = Host::new();
    let container = host.container("web", 2, 2);
    let rules = "table ip t { chain p { type nat hook prerouting priority dstnat; \
                 ip daddr 10.0.0.5 tcp dport 80 dnat to 172.30.0.2:8080; }; }";
    nft::load(&host.topology, Side::Server, rules).unwrap();
    gate(&host.topology, &["up", INTERFACE, "br0", "web"]);
    let _listener = listen_at(&host.topology, &container.namespace, backend());
    gate(&host.topology, &["hold", "*:80", BACKEND]);
    let client = dial(&host.topology, Side::Client, Dial::to(server_v4(80)));
    wait_until_held(&host.topology, "*:80", 1);
    gate(&host.topology, &["open", "*:80", BACKEND]);
    assert_eq!(client.finish(), Ended::Connected);
    let of = |endpoint, counter| count(&host.topology, endpoint, counter);
    assert_eq!(of("*:80", Counter::Held), 1);
    assert_eq!(of("*:80", Counter::Released), 1);
    // It may come to the second gate just as that opens.
    let second = of(BACKEND, Counter::Held);
    assert!(second <= 1, "{second}");
    assert_eq!(of(BACKEND, Counter::Released), second);
}

#[test]
fn a_masqueraded_client_is_held_as_it_goes_out() {
    if !has(Feature::Nftables) {
        return;
    }
    let host = Host::new();
    let container = host.container("web", 2, 2);
    let rules = "table ip t { chain m { type nat hook postrouting priority srcnat; \
                 oifname eth0 ip saddr 172.30.0.0/24 masquerade; }; }";
    nft::load(&host.topology, Side::Server, rules).unwrap();
    for hook in ["tc", "tc-egress"] {
        gate(&host.topology, &["up", "--hook", hook, INTERFACE]);
        let outside: SocketAddr = (Ipv4Addr::new(10, 0, 0, 1), PORT).into();
        let _listener = listen_at(&host.topology, Side::Client, outside);
        host.connects_when_opened(&container.namespace, outside, "10.0.0.1:8080");
        gate(&host.topology, &["down"]);
    }
}

#[test]
fn a_rejected_client_of_a_container_is_refused_wherever_it_is() {
    for interface in ["br0", "web"] {
        for filters in [false, true] {
            let host = Host::new();
            let container = host.container("web", 2, 2);
            let neighbour = host.container("other", 3, 3);
            gate_either(&host.topology, filters, &["up", interface]);
            let v6: SocketAddr = "[fd30::2]:8080".parse().unwrap();
            let _v4 = listen_at(&host.topology, &container.namespace, backend());
            let _v6 = listen_at(&host.topology, &container.namespace, v6);
            // Once everybody knows everybody's Ethernet address.
            for target in [backend(), v6] {
                let client = dial(&host.topology, Side::Client, Dial::to(target));
                assert_eq!(client.finish(), Ended::Connected);
                let client = dial(&host.topology, &neighbour.namespace, Dial::to(target));
                assert_eq!(client.finish(), Ended::Connected);
            }
            gate(&host.topology, &["reject", BACKEND, "[fd30::2]:8080"]);
            let mut places = vec![Place::from(Side::Client), Side::Server.into()];
            if interface == "web" {
                places.push((&neighbour.namespace).into());
            }
            for place in places {
                for target in [backend(), v6] {
                    let client = dial(&host.topology, place.clone(), Dial::to(target));
                    let (ended, took, _) = client.finish_with_socket();
                    assert_eq!(ended, Ended::Refused, "{interface} {place} {target}");
                    assert!(took < BEFORE_RETRANSMISSION, "{interface} {place} {target}");
                }
            }
        }
    }
}

#[test]
fn a_containers_namespace_that_is_deleted_while_gated_takes_its_cable_along() {
    let host = Host::new();
    let container = host.container("web", 2, 2);
    gate(&host.topology, &["up", "br0", "web"]);
    gate(&host.topology, &["hold", "--for", "1m", BACKEND]);
    let client = Clients::one_at(&host.topology, Side::Client, backend());
    wait_until_held(&host.topology, BACKEND, 1);
    drop(container);
    common::wait_until("the cable is gone", || {
        gate(&host.topology, &["status"])
            .stdout
            .contains("gone from this network namespace")
    });
    let container = host.container("web", 2, 0x22);
    gate(&host.topology, &["up", "web"]);
    let text = gate(&host.topology, &["status"]).stdout;
    assert!(
        text.contains("web: attached") && !text.contains("gone"),
        "{text}"
    );
    // What br0 holds goes on being held.
    assert_eq!(gate_status(&host.topology, BACKEND).waiting.held, 1);
    let _listener = listen_at(&host.topology, &container.namespace, backend());
    // The kernel may still believe in the old container's address, and so does a release.
    shell(&host.topology, Side::Server, "ip neigh flush dev br0");
    gate(&host.topology, &["open", BACKEND]);
    client.finish_connected();
}
