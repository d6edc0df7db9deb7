//! `reject` and `drop` on every hook, and what a held SYN does to its sender's TCP. Needs root.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use common::{
    BEFORE_RETRANSMISSION, Dial, Ended, MS, PORT, count, dial, gate, gate_either, gate_status,
    listen_at, mode, shell, tcp_counters, tcp_info, wait_until, wait_until_counted,
    wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::topology::{CLIENT_V4, CLIENT_V6, INTERFACE, SERVER_V4, SERVER_V6, Side, Topology};

/// A way for a connection to meet a gate.
struct Path {
    up: &'static [&'static str],
    client: Side,
    server: Side,
    targets: [SocketAddr; 2],
}

fn both(v4: Ipv4Addr, v6: Ipv6Addr) -> [SocketAddr; 2] {
    [(v4, PORT).into(), (v6, PORT).into()]
}

/// Every hook.
fn paths() -> Vec<Path> {
    let mut paths = Vec::new();
    for up in [
        &["up", "--hook", "xdp-generic", INTERFACE][..],
        &["up", "--hook", "tc-ingress", INTERFACE],
        &["up", "--hook", "tc", INTERFACE],
    ] {
        paths.push(Path {
            up,
            client: Side::Client,
            server: Side::Server,
            targets: both(SERVER_V4, SERVER_V6),
        });
    }
    for up in [
        &["up", "--hook", "tc-egress", INTERFACE][..],
        &["up", "--hook", "tc", INTERFACE],
    ] {
        paths.push(Path {
            up,
            client: Side::Server,
            server: Side::Client,
            targets: both(CLIENT_V4, CLIENT_V6),
        });
    }
    for targets in [
        both(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        both(SERVER_V4, SERVER_V6),
    ] {
        paths.push(Path {
            up: &["up", "lo"],
            client: Side::Server,
            server: Side::Server,
            targets,
        });
    }
    paths
}

/// Runs `f` on every hook, attached by TCX and by filters.
fn everywhere(f: impl Fn(&Topology, &Path, SocketAddr, &str)) {
    for path in paths() {
        for filters in [false, true] {
            if filters && path.up.contains(&"xdp-generic") {
                continue;
            }
            let topology = Topology::new().unwrap();
            gate_either(&topology, filters, path.up);
            for target in path.targets {
                let what = format!("{:?} to {target}, filters: {filters}", path.up);
                f(&topology, &path, target, &what);
            }
        }
    }
}

#[test]
fn a_rejected_client_is_refused_at_once_on_every_hook() {
    everywhere(|topology, path, target, what| {
        let _listener = listen_at(topology, path.server, target);
        let endpoint = target.to_string();
        gate(topology, &["reject", &endpoint]);
        let client = dial(topology, path.client, Dial::to(target));
        let (ended, took, _) = client.finish_with_socket();
        assert_eq!(ended, Ended::Refused, "{what}");
        assert!(took < BEFORE_RETRANSMISSION, "{what}: {took:?}");
        assert_eq!(count(topology, &endpoint, Counter::Rejected), 1, "{what}");
        gate(topology, &["open", &endpoint]);
        let ended = dial(topology, path.client, Dial::to(target)).finish();
        assert_eq!(ended, Ended::Connected, "{what}");
    });
}

#[test]
fn a_dropped_client_hears_nothing_on_every_hook() {
    everywhere(|topology, path, target, what| {
        let _listener = listen_at(topology, path.server, target);
        let endpoint = target.to_string();
        gate(topology, &["drop", &endpoint]);
        let mut dialled = Dial::to(target);
        dialled.limit = MS * 300;
        let ended = dial(topology, path.client, dialled).finish();
        assert_eq!(ended, Ended::TimedOut, "{what}");
        assert_eq!(count(topology, &endpoint, Counter::Dropped), 1, "{what}");
    });
}

#[test]
fn a_lease_ends_on_every_hook_and_the_next_retransmission_connects() {
    everywhere(|topology, path, target, what| {
        let _listener = listen_at(topology, path.server, target);
        let endpoint = target.to_string();
        gate(topology, &["hold", "--for", "500ms", &endpoint]);
        let client = dial(topology, path.client, Dial::to(target));
        wait_until("the lease has run out", || {
            mode(topology, &endpoint) == "open"
        });
        assert_eq!(client.finish(), Ended::Connected, "{what}");
        wait_until_counted(topology, &endpoint, Counter::Expired, 1);
        assert_eq!(count(topology, &endpoint, Counter::Released), 0, "{what}");
        let opened = topology.gate(["open", &endpoint]).unwrap();
        assert_eq!(
            (opened.code(), &*opened.stdout),
            (124, ""),
            "{what}: {opened}"
        );
    });
}

#[test]
fn the_senders_tcp_does_not_know_that_its_syn_was_held() {
    /// What would tell of a loss, or of a congested device.
    const COUNTERS: [&str; 6] = [
        "TCPLostRetransmit",
        "TCPTimeouts",
        "TCPSynRetrans",
        "TCPSpuriousRtxHostQueues",
        "TCPSYNChallenge",
        "PAWSActive",
    ];
    let look = |path: &Path, target: SocketAddr, held: bool| {
        let topology = Topology::new().unwrap();
        gate(&topology, path.up);
        let _listener = listen_at(&topology, path.server, target);
        let endpoint = target.to_string();
        if held {
            gate(&topology, &["hold", &endpoint]);
        }
        let client = dial(&topology, path.client, Dial::to(target));
        if held {
            wait_until_held(&topology, &endpoint, 1);
            gate(&topology, &["open", &endpoint]);
        }
        let (ended, took, socket) = client.finish_with_socket();
        assert_eq!(ended, Ended::Connected);
        let info = tcp_info(&socket.unwrap());
        let counters = tcp_counters(&topology, path.client);
        let counted = COUNTERS.map(|name| counters.get(name).copied());
        let seen = (
            info.tcpi_snd_cwnd,
            info.tcpi_snd_ssthresh,
            info.tcpi_ca_state,
            info.tcpi_total_retrans,
            info.tcpi_options,
            counted,
        );
        (seen, took)
    };
    for path in paths() {
        for target in path.targets {
            let (unheld, _) = look(&path, target, false);
            // On a busy machine the SYN may be sent again while it is held.
            let held = (0..5).map(|_| look(&path, target, true));
            let (held, _) = held
                .into_iter()
                .find(|(_, took)| *took < BEFORE_RETRANSMISSION)
                .expect("released before a retransmission");
            assert_eq!(held, unheld, "{:?} {target}", path.up);
        }
    }
}

#[test]
fn a_link_local_address_of_the_host_itself_is_released_on_loopback() {
    let topology = Topology::new().unwrap();
    let line = "ip -6 -o address show dev eth0 scope link | sed 's/.*inet6 //; s,/.*,,'";
    let find = || shell(&topology, Side::Server, line).trim().to_owned();
    wait_until("there is a link-local address", || !find().is_empty());
    wait_until("it is not tentative", || {
        let line = "ip -6 address show dev eth0 tentative";
        shell(&topology, Side::Server, line).is_empty()
    });
    let address: Ipv6Addr = find().parse().unwrap();
    let index = shell(&topology, Side::Server, "cat /sys/class/net/eth0/ifindex");
    let index: u32 = index.trim().parse().unwrap();
    let target = SocketAddr::V6(std::net::SocketAddrV6::new(address, PORT, 0, index));
    gate(&topology, &["up", "lo"]);
    let _listener = listen_at(&topology, Side::Server, target);
    let endpoint = format!("[{address}]:{PORT}");
    gate(&topology, &["hold", &endpoint]);
    let client = dial(&topology, Side::Server, Dial::to(target));
    wait_until_held(&topology, &endpoint, 1);
    let opened = gate(&topology, &["open", &endpoint]).stdout;
    assert!(opened.contains("1 connection held"), "{opened}");
    let (ended, took, _) = client.finish_with_socket();
    assert_eq!(ended, Ended::Connected);
    assert!(took < BEFORE_RETRANSMISSION, "{took:?}");
    assert_eq!(gate_status(&topology, &endpoint).waiting.held, 0);
}
