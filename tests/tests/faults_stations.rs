//! SYNs in frames for all stations, for a group of them, or for another one than the server. Needs root.

mod common;

use std::net::TcpListener;

use common::{
    ANSWER, ENDPOINT, HOOKS, PORT, acknowledged, gate, gate_either, listen, parsed, run_gate,
    status, wait_until,
};
use gate_common::abi::Counter;
use gate_tests::packet::{Spec, flags};
use gate_tests::tap::{Seen, Tap};
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4};

/// A station that is not there.
const ANOTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x09];

/// The client's port of SYNs that go elsewhere.
const OTHERS_PORT: u16 = 30_000;

/// The client's port of those for the server.
const OWN_PORT: u16 = 30_001;

/// A server that listens, with the gate up at one of its hooks and closed, and a client's tap, which
/// hears what XDP answers.
fn closed(hook: &str, filters: bool, mode: &str, endpoint: &str) -> (Topology, TcpListener, Tap) {
    let topology = Topology::new().unwrap();
    gate_either(&topology, filters, &["up", "--hook", hook, INTERFACE]);
    // A veth is woken for what the other end sends by XDP_TX only where it has a program, too.
    let args = ["up", "--hook", "xdp", INTERFACE];
    run_gate(&topology, Side::Client, &args).ok().unwrap();
    let listener = listen(&topology, server_v4(PORT));
    gate(&topology, &[mode, endpoint]);
    let tap = topology.run(Side::Client, || Tap::open(INTERFACE)).unwrap();
    (topology, listener, tap)
}

#[test]
fn a_syn_to_all_or_to_a_group_opens_nothing_and_is_answered_by_nobody() {
    for mode in ["hold", "reject"] {
        for (hook, filters) in HOOKS {
            let (topology, _listener, tap) = closed(hook, filters, mode, "*:8080");
            for station in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1]] {
                tap.send(&to_station(station, OTHERS_PORT)).unwrap();
            }
            let any = tap.next(ANSWER, |seen| parsed(seen).is_some()).unwrap();
            assert_eq!(any, None, "{mode}, {hook}");
            assert_eq!(status(&topology).gates[0].waiting.held, 0, "{mode}, {hook}");
            assert_judged_before(&topology, &tap, mode, 0);
        }
    }
}

/// A SYN from this port in a frame for this station.
fn to_station(station: [u8; 6], source_port: u16) -> Vec<u8> {
    let spec = Spec {
        source_port,
        isn: u32::from(source_port),
        ..Spec::default()
    };
    let mut frame = spec.build();
    frame[..6].copy_from_slice(&station);
    frame
}

/// A SYN for the server itself comes last and is judged, so what was sent before it has arrived: of
/// that, so many were judged and no more.
#[track_caller]
fn assert_judged_before(topology: &Topology, tap: &Tap, mode: &str, before: u64) {
    let counter = match mode {
        "hold" => Counter::Held,
        _ => Counter::Rejected,
    };
    let judged = || status(topology).gates[0].stats.counts[counter as usize];
    tap.send(&to_station(Side::Server.mac(), OWN_PORT)).unwrap();
    wait_until("it is judged", || judged() > before);
    assert_eq!(judged(), before + 1);
}

/// The ports of the client that get a reset.
fn reset(tap: &Tap) -> Vec<u16> {
    let is_reset = |seen: &Seen| parsed(seen).is_some_and(|at| at.flags & flags::RST != 0);
    let mut all = Vec::new();
    while let Some(seen) = tap.next(ANSWER, is_reset).unwrap() {
        let at = parsed(&seen).unwrap().transport + 2;
        all.push(u16::from_be_bytes(
            seen.frame[at..at + 2].try_into().unwrap(),
        ));
    }
    all
}

#[test]
fn a_syn_to_another_station_is_judged_where_its_address_says_so_and_makes_no_connection() {
    for (hook, filters) in HOOKS {
        for endpoint in ["*:8080", ENDPOINT] {
            // An address may be that of a host behind a bridge here. A wildcard stands for this host, and XDP
            // comes before the kernel has looked whose frame it is.
            let is_judged = endpoint == ENDPOINT || hook.starts_with("xdp");
            for mode in ["hold", "reject"] {
                let what = format!("{hook}, {endpoint}, {mode}");
                println!("{what}");
                let (topology, _listener, tap) = closed(hook, filters, mode, endpoint);
                tap.send(&to_station(ANOTHER, OTHERS_PORT)).unwrap();
                assert_judged_before(&topology, &tap, mode, u64::from(is_judged));
                let judged = match is_judged {
                    true => vec![OTHERS_PORT, OWN_PORT],
                    false => vec![OWN_PORT],
                };
                let held = || status(&topology).gates[0].waiting.held;
                if mode == "reject" {
                    assert_eq!(reset(&tap), judged, "{what}");
                    assert_eq!(held(), 0, "{what}");
                    continue;
                }
                assert_eq!(held(), judged.len(), "{what}");
                gate(&topology, &["open", endpoint]);
                // What goes to another station is injected as it came, and the stack takes none of it.
                assert_eq!(acknowledged(&tap), [u32::from(OWN_PORT) + 1], "{what}");
                assert_eq!(held(), 0, "{what}");
            }
        }
    }
}
