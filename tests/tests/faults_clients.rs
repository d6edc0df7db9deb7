//! Clients that do what clients seldom do, live: they send a SYN again and again, begin anew from the
//! same port, give up, or connect to each other. Needs root.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use common::{
    BEFORE_RETRANSMISSION, Dial, ENDPOINT, Ended, HOOKS, LIMIT, PORT, acknowledged, count, dial,
    gate, gate_either, listen, shell, status, wait_until, wait_until_held,
};
use gate_common::abi::Counter;
use gate_common::checksum::{add, fold};
use gate_tests::packet::{Checksum, Spec, flags};
use gate_tests::tap::Tap;
use gate_tests::topology::{CLIENT_V4, INTERFACE, SERVER_V4, Side, Topology, server_v4};
use gate_tests::tun::{Cable, TUN};

/// A server that listens, with the gate up at one of its hooks and holding, and a client's tap.
fn holding(hook: &str, filters: bool) -> (Topology, std::net::TcpListener, Tap) {
    let topology = Topology::new().unwrap();
    gate_either(&topology, filters, &["up", "--hook", hook, INTERFACE]);
    let listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    let tap = topology.run(Side::Client, || Tap::open(INTERFACE)).unwrap();
    (topology, listener, tap)
}

/// Half-open requests and connections that nobody took yet, at the server.
fn at_the_listener(topology: &Topology) -> usize {
    let text = shell(
        topology,
        Side::Server,
        "grep -c '^ *[0-9]*: 0500000A:1F90 [0-9A-F:]* 0[13] ' /proc/thread-self/net/tcp || true",
    );
    text.trim().parse().unwrap()
}

#[test]
fn a_syn_that_came_five_times_is_injected_once() {
    for (hook, filters) in HOOKS {
        let (topology, _listener, tap) = holding(hook, filters);
        let spec = Spec::default();
        for _ in 0..5 {
            tap.send(&spec.build()).unwrap();
        }
        wait_until("all came", || {
            count(&topology, ENDPOINT, Counter::Refreshed) == 4
        });
        assert_eq!(count(&topology, ENDPOINT, Counter::Held), 1);
        gate(&topology, &["open", ENDPOINT]);
        assert_eq!(acknowledged(&tap), [spec.isn + 1], "{hook}");
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1, "{hook}");
    }
}

#[test]
fn a_syn_that_comes_again_when_its_gate_is_closed_again_is_another_attempt() {
    for (hook, filters) in HOOKS {
        let (topology, _listener, tap) = holding(hook, filters);
        let spec = Spec::default();
        tap.send(&spec.build()).unwrap();
        wait_until_held(&topology, ENDPOINT, 1);
        gate(&topology, &["open", ENDPOINT]);
        gate(&topology, &["hold", ENDPOINT]);
        assert_eq!(acknowledged(&tap), [spec.isn + 1], "{hook}");
        // What was injected before is over.
        for _ in 0..3 {
            tap.send(&spec.build()).unwrap();
        }
        wait_until_held(&topology, ENDPOINT, 1);
        gate(&topology, &["open", ENDPOINT]);
        assert_eq!(acknowledged(&tap), [spec.isn + 1], "{hook}");
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 2, "{hook}");
    }
}

#[test]
fn a_port_that_is_used_again_while_its_syn_is_held_makes_the_newer_connection_only() {
    for (hook, filters) in HOOKS {
        let (topology, _listener, tap) = holding(hook, filters);
        let of = |isn| Spec {
            isn,
            ..Spec::default()
        };
        for isn in [1000, 5000, 0xffff_fff0, 70_000] {
            tap.send(&of(isn).build()).unwrap();
        }
        wait_until("all came", || {
            count(&topology, ENDPOINT, Counter::Held) == 4
        });
        wait_until_held(&topology, ENDPOINT, 1);
        gate(&topology, &["open", ENDPOINT]);
        assert_eq!(acknowledged(&tap), [70_001], "{hook}");
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1, "{hook}");
    }
}

#[test]
fn clients_that_gave_up_while_they_were_held_leave_nothing_and_are_in_nobodys_way() {
    for (hook, filters) in HOOKS {
        let (topology, _listener, tap) = holding(hook, filters);
        let gave_up: [&[u8]; 4] = [
            &[flags::RST],
            &[flags::RST | flags::ACK],
            &[flags::FIN | flags::ACK],
            // Without a word.
            &[],
        ];
        for port in 0..40 {
            let spec = Spec {
                source_port: 30_000 + port,
                ..Spec::default()
            };
            tap.send(&spec.build()).unwrap();
            for flags in gave_up[usize::from(port) % gave_up.len()] {
                let isn = spec.isn + 1;
                let last = Spec {
                    flags: *flags,
                    isn,
                    tcp_options: Vec::new(),
                    ..spec.clone()
                };
                tap.send(&last.build()).unwrap();
            }
        }
        wait_until_held(&topology, ENDPOINT, 40);
        let client = dial(&topology, Side::Client, Dial::to(server_v4(PORT)));
        wait_until_held(&topology, ENDPOINT, 41);
        gate(&topology, &["open", ENDPOINT]);
        let (ended, took, socket) = client.finish_with_socket();
        assert_eq!(ended, Ended::Connected, "{hook}");
        assert!(took < LIMIT);
        // Their hosts answer with a reset to what they no longer want; only the client is left.
        wait_until("they are gone", || at_the_listener(&topology) == 1);
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 41, "{hook}");
        drop(socket);
    }
}

#[test]
fn ends_that_connect_to_each_other_are_connected_while_the_gate_is_closed_and_stay_so() {
    for (hook, filters) in HOOKS {
        let topology = Topology::new().unwrap();
        gate_either(&topology, filters, &["up", "--hook", hook, INTERFACE]);
        gate(&topology, &["hold", ENDPOINT]);
        let [one, other] = [
            SocketAddr::new(CLIENT_V4.into(), 40_000),
            SocketAddr::new(SERVER_V4.into(), PORT),
        ];
        let client = dial(&topology, Side::Client, Dial::to(other).from(one));
        wait_until_held(&topology, ENDPOINT, 1);
        // The server's own SYN meets a socket that sent one to it, which answers with SYN and ACK.
        let server = dial(&topology, Side::Server, Dial::to(one).from(other));
        let (ended, took, server) = server.finish_with_socket();
        assert_eq!(ended, Ended::Connected, "{hook}");
        assert!(took < BEFORE_RETRANSMISSION, "{hook}: {took:?}");
        let (ended, _, client) = client.finish_with_socket();
        assert_eq!(ended, Ended::Connected, "{hook}");
        // The SYN that is still held is old news to a connection.
        gate(&topology, &["open", ENDPOINT]);
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1, "{hook}");
        let mut ends: Vec<TcpStream> = [client, server]
            .into_iter()
            .map(|it| it.unwrap().into())
            .collect();
        let (mut client, mut server) = (ends.remove(0), ends.remove(0));
        let mut byte = [0];
        client.write_all(&[7]).unwrap();
        server.read_exact(&mut byte).unwrap();
        server.write_all(&[8]).unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [8], "{hook}");
    }
}

#[test]
fn a_wrong_checksum_is_dropped_at_the_release_and_a_partial_one_completed() {
    for (hook, filters) in HOOKS {
        let (topology, _listener, tap) = holding(hook, filters);
        let kinds = [Checksum::Whole, Checksum::Partial, Checksum::Wrong];
        for (port, checksum) in kinds.into_iter().enumerate() {
            let isn = 1000 * (port as u32 + 1);
            let source_port = 30_000 + port as u16;
            let spec = Spec {
                source_port,
                isn,
                checksum,
                ..Spec::default()
            };
            tap.send(&spec.build()).unwrap();
        }
        wait_until_held(&topology, ENDPOINT, 3);
        let output = gate(&topology, &["open", ENDPOINT]);
        assert!(
            output.stdout.contains("1 dropped with a wrong checksum"),
            "{output}"
        );
        let mut answers = acknowledged(&tap);
        answers.sort_unstable();
        assert_eq!(answers, [1001, 2001], "{hook}");
    }
}

#[test]
fn a_frame_that_was_cut_to_any_length_passes_live_and_only_the_whole_one_is_held() {
    for (hook, filters) in HOOKS {
        let (topology, _listener, tap) = holding(hook, filters);
        // That of IPv4 last, whose count is waited for.
        for spec in [Spec::v6(), Spec::default()] {
            let frame = Spec {
                padded_to: 128,
                ..spec
            }
            .build();
            for len in 14..=128 {
                tap.send(&frame[..len]).unwrap();
            }
        }
        // 74 bytes are a whole frame, and what is longer is padded: the same SYN 55 times.
        wait_until("all came", || {
            count(&topology, ENDPOINT, Counter::Refreshed) == 54
        });
        // That of IPv6 has 94 bytes, and no gate.
        let unparsed = status(&topology).unparsed;
        assert_eq!(unparsed, (74 - 14) + (94 - 14), "{hook}");
        assert_eq!(count(&topology, ENDPOINT, Counter::Held), 1, "{hook}");
        gate(&topology, &["open", ENDPOINT]);
        assert_eq!(count(&topology, ENDPOINT, Counter::Released), 1, "{hook}");
    }
}

#[test]
fn a_packet_without_an_ethernet_header_that_was_cut_to_any_length_passes_live() {
    for filters in [false, true] {
        let topology = Topology::new().unwrap();
        let _cable = Cable::new(&topology).unwrap();
        for side in [Side::Client, Side::Server] {
            shell(&topology, side, &format!("ip link set {TUN} up"));
        }
        gate_either(&topology, filters, &["up", TUN]);
        gate(&topology, &["hold", ENDPOINT]);
        let tap = topology.run(Side::Client, || Tap::open(TUN)).unwrap();
        let packet = &Spec::default().build()[14..];
        for len in 1..=packet.len() {
            tap.send(&packet[..len]).unwrap();
        }
        wait_until_held(&topology, ENDPOINT, 1);
        assert_eq!(status(&topology).unparsed, 59, "filters: {filters}");
    }
}

/// Both fragments of a frame's IPv4 packet, whose segment is cut in two.
fn in_two(spec: &Spec) -> [Vec<u8>; 2] {
    const FIRST: usize = 24;
    let whole = spec.build();
    let segment = &whole[34..];
    [
        (0x2000, &segment[..FIRST]),
        (FIRST as u16 / 8, &segment[FIRST..]),
    ]
    .map(|(field, part)| {
        let mut frame = whole[..34].to_vec();
        let len = 20 + part.len() as u16;
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        frame[20..22].copy_from_slice(&u16::to_be_bytes(field));
        frame[24..26].fill(0);
        let sum = !fold(add(0, &frame[14..34]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(part);
        frame
    })
}

#[test]
fn a_syn_in_fragments_is_not_judged_and_reaches_the_listener_of_a_closed_gate() {
    for (hook, filters) in HOOKS {
        let (topology, _listener, tap) = holding(hook, filters);
        let spec = Spec::default();
        for fragment in in_two(&spec) {
            tap.send(&fragment).unwrap();
        }
        assert_eq!(acknowledged(&tap), [spec.isn + 1], "{hook}");
        assert_eq!(status(&topology).gates[0].waiting.held, 0, "{hook}");
    }
}
