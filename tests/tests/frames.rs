//! Frames as they come: tags, extension headers, options, no Ethernet header at all. What is
//! released is, byte for byte, what was held. Needs root.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{
    BEFORE_RETRANSMISSION, Dial, Ended, LIMIT, MS, PORT, count, dial, gate, gate_either, listen,
    listen_at, refused, shell, wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::packet::{Spec, extension, flags, options_header};
use gate_tests::tap::{Seen, Tap};
use gate_tests::topology::{INTERFACE, Namespace, Side, Topology};
use gate_tests::tun::{Cable, TUN};

// ---- Byte for byte ----

const V4: &str = "10.0.0.5:8080";
const V6: &str = "[fd00::5]:8080";

/// Frames that a stack may send, with what they are.
fn frames() -> Vec<(&'static str, Spec)> {
    let tagged = |vlans: &[(u16, u16)], spec: Spec| Spec {
        vlans: vlans.to_vec(),
        ..spec
    };
    let with = |options: &[u8]| {
        let mut spec = Spec::default();
        spec.tcp_options.truncate(4);
        spec.tcp_options.extend(options);
        spec.tcp_options
            .resize(spec.tcp_options.len().next_multiple_of(4), 1);
        spec
    };
    let mut all = vec![
        ("plain", Spec::default()),
        ("IPv6", Spec::v6()),
        ("a tag", tagged(&[(0x8100, 5)], Spec::default())),
        ("a tag, IPv6", tagged(&[(0x8100, 5)], Spec::v6())),
        (
            "a priority and VLAN 0",
            tagged(&[(0x8100, 0xe000)], Spec::default()),
        ),
        ("VLAN 0", tagged(&[(0x8100, 0)], Spec::default())),
        ("an 802.1ad tag", tagged(&[(0x88a8, 7)], Spec::default())),
        (
            "QinQ",
            tagged(&[(0x88a8, 7), (0x8100, 0x6005)], Spec::default()),
        ),
        (
            "QinQ, IPv6",
            tagged(&[(0x88a8, 7), (0x8100, 5)], Spec::v6()),
        ),
        (
            "two tags of one kind",
            tagged(&[(0x8100, 7), (0x8100, 5)], Spec::default()),
        ),
        (
            "no TCP options",
            Spec {
                tcp_options: Vec::new(),
                ..Spec::default()
            },
        ),
        (
            "ECN",
            Spec {
                flags: flags::SYN | flags::ECE | flags::CWR,
                ..Spec::default()
            },
        ),
        (
            "IP options",
            Spec {
                options: vec![148, 4, 0, 0, 1, 1, 1, 1],
                ..Spec::default()
            },
        ),
        ("MD5", with(&[&[19, 18][..], &[7; 16]].concat())),
        ("AO", with(&[&[29, 16, 1, 2][..], &[9; 12]].concat())),
        ("MPTCP", with(&[30, 4, 1, 0x81])),
        ("a request for a cookie", with(&[34, 2])),
        ("all options that fit", with(&[1; 36])),
    ];
    let mut extended = Spec::v6();
    extended.extensions = vec![
        (extension::HOP_BY_HOP, options_header(8)),
        (extension::DESTINATION, options_header(24)),
    ];
    all.push(("extension headers", extended));
    for (index, (_, spec)) in all.iter_mut().enumerate() {
        spec.source_port += index as u16;
    }
    all
}

/// The SYN among the frames that come in, up to the end of its IP packet.
fn the_syn(tap: &Tap, spec: &Spec, limit: Duration) -> Option<Seen> {
    let wanted = spec.build();
    // From the IP header on: tags may lie beside the frame.
    let packet = &wanted[14 + 4 * spec.vlans.len()..];
    let found = tap.next(limit, |seen| {
        !seen.outgoing && seen.frame.windows(packet.len()).any(|part| part == packet)
    });
    found.unwrap().map(|mut seen| {
        let start = seen
            .frame
            .windows(packet.len())
            .position(|part| part == packet);
        seen.frame
            .truncate(start.unwrap_or_default() + packet.len());
        seen
    })
}

/// A bridge at the server, and a container behind it with the server's addresses, so that what comes
/// over the cable crosses the server: in on `eth0`, out on `web`.
fn behind_a_bridge(topology: &Topology) -> Namespace {
    let container = topology.namespace().unwrap();
    let line = format!(
        "ip address flush dev eth0 && ip link set eth0 address 02:00:00:00:00:77 && \
         ip link add br0 address 02:00:00:00:00:78 type bridge && ip link set br0 up && ip link set eth0 master br0 && \
         ip link add web type veth peer name eth0 netns {} && ip link set web master br0 up",
        container.name()
    );
    shell(topology, Side::Server, &line);
    shell(
        topology,
        &container,
        "ip link set eth0 address 02:00:00:00:00:05 up && \
         echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
    );
    common::wait_until_forwarding(topology, "web", "br0");
    container
}

#[test]
fn what_is_released_is_byte_for_byte_what_was_held() {
    for (interface, hook, filters) in [
        (INTERFACE, "xdp-generic", false),
        (INTERFACE, "xdp", false),
        (INTERFACE, "tc-ingress", false),
        (INTERFACE, "tc-ingress", true),
        ("web", "tc-egress", false),
        ("web", "tc-egress", true),
    ] {
        let topology = Topology::new().unwrap();
        let container = behind_a_bridge(&topology);
        // Nobody is behind its own address any more but the container.
        let up = ["up", "--hook", hook, interface];
        gate_either(&topology, filters, &up);
        let from = topology.run(Side::Client, || Tap::open(INTERFACE)).unwrap();
        let to = topology.run(&container, || Tap::open(INTERFACE)).unwrap();
        let all = frames();
        let send = || {
            for (_, spec) in &all {
                from.send(&spec.build()).unwrap();
            }
        };
        // In order, and nothing else of the kind in between.
        let receive = || -> Vec<(&str, Option<Seen>)> {
            let seen = all
                .iter()
                .map(|(what, spec)| (*what, the_syn(&to, spec, LIMIT)));
            seen.collect()
        };
        send();
        let unheld = receive();
        gate(&topology, &["hold", V4, V6]);
        send();
        let of_v6 = all.iter().filter(|(_, spec)| spec.source.is_ipv6()).count();
        wait_until_held(&topology, V6, of_v6);
        wait_until_held(&topology, V4, all.len() - of_v6);
        gate(&topology, &["open", V4, V6]);
        let held = receive();
        for (held, unheld) in held.iter().zip(&unheld) {
            assert_eq!(held, unheld, "at {interface}, {hook}, filters: {filters}");
        }
        let again = to.next(MS * 50, |seen| {
            let port = PORT.to_be_bytes();
            seen.frame[6..12] == Side::Client.mac() && seen.frame.windows(2).any(|it| it == port)
        });
        assert_eq!(
            again.unwrap(),
            None,
            "at {interface}, {hook}, filters: {filters}"
        );
    }
}

// ---- Without an Ethernet header ----

/// A cable of tun devices beside the usual one.
fn with_tun() -> (Topology, Cable) {
    let topology = Topology::new().unwrap();
    let cable = Cable::new(&topology).unwrap();
    for (side, own, peer) in [(Side::Client, 1, 5), (Side::Server, 5, 1)] {
        let line = format!(
            "ip link set {TUN} up && ip address add 10.9.0.{own} peer 10.9.0.{peer} dev {TUN} && \
             ip -6 address add fd09::{own} peer fd09::{peer} dev {TUN} nodad"
        );
        shell(&topology, side, &line);
    }
    (topology, cable)
}

/// Both directions, both families: who connects to whom.
const OVER_TUN: [(Side, Side, &str); 4] = [
    (Side::Client, Side::Server, "10.9.0.5:8080"),
    (Side::Client, Side::Server, "[fd09::5]:8080"),
    (Side::Server, Side::Client, "10.9.0.1:8080"),
    (Side::Server, Side::Client, "[fd09::1]:8080"),
];

#[test]
fn packets_without_an_ethernet_header_are_held_released_and_rejected() {
    for filters in [false, true] {
        let (topology, _cable) = with_tun();
        let up = gate_either(&topology, filters, &["up", TUN]);
        assert!(up.stdout.contains("tc-ingress, tc-egress"), "{up}");
        for (client, server, endpoint) in OVER_TUN {
            let target: SocketAddr = endpoint.parse().unwrap();
            let _listener = listen_at(&topology, server, target);
            gate(&topology, &["hold", endpoint]);
            let held = dial(&topology, client, Dial::to(target));
            wait_until_held(&topology, endpoint, 1);
            gate(&topology, &["open", endpoint]);
            assert_eq!(held.finish(), Ended::Connected, "{endpoint}");
            assert_eq!(
                count(&topology, endpoint, Counter::Released),
                1,
                "{endpoint}"
            );
            gate(&topology, &["reject", endpoint]);
            let (ended, took, _) = dial(&topology, client, Dial::to(target)).finish_with_socket();
            assert_eq!(ended, Ended::Refused, "{endpoint}");
            assert!(took < BEFORE_RETRANSMISSION, "{endpoint}: {took:?}");
        }
    }
}

#[test]
fn xdp_is_refused_where_there_is_no_ethernet_header() {
    let (topology, _cable) = with_tun();
    for hook in ["xdp", "xdp-generic"] {
        let words = ["no Ethernet header", "--hook tc"];
        refused(&topology, &["up", "--hook", hook, TUN], 1, &words);
    }
}

#[test]
fn interfaces_with_and_without_an_ethernet_header_are_gated_together() {
    let (topology, _cable) = with_tun();
    gate(&topology, &["up", TUN, INTERFACE, "lo"]);
    let _listener = listen(&topology, "0.0.0.0:8080".parse().unwrap());
    let endpoint = "*:8080";
    gate(&topology, &["hold", endpoint]);
    let clients = ["10.9.0.5:8080", "10.0.0.5:8080"]
        .map(|target| dial(&topology, Side::Client, Dial::to(target.parse().unwrap())));
    let local = dial(
        &topology,
        Side::Server,
        Dial::to("127.0.0.1:8080".parse().unwrap()),
    );
    wait_until_held(&topology, endpoint, 3);
    gate(&topology, &["open", endpoint]);
    for client in clients.into_iter().chain([local]) {
        assert_eq!(client.finish(), Ended::Connected);
    }
    assert_eq!(count(&topology, endpoint, Counter::Released), 3);
}
