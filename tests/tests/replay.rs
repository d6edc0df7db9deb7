//! A held SYN that was released meets the network exactly as one that was never held: firewall,
//! connection tracking, NAT, reverse path filter, listeners bound to an interface. Each test makes
//! the same connection twice, unheld and held, and compares. Needs root and nft.

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use common::{
    BEFORE_RETRANSMISSION, Dial, Ended, PORT, dial, gate, listen_on, shell, wait_until_held,
};
use gate_tests::nft;
use gate_tests::require::{Feature, has};
use gate_tests::topology::{CLIENT_V4, INTERFACE, SERVER_V4, Side, Topology, server_v4};

/// Everything that can tell a replayed SYN from another.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// How the client's attempt ended.
    ended: Ended,
    /// Whether the SYN was sent again, so that the counters tell nothing.
    retransmitted: bool,
    /// nft's counters.
    counters: BTreeMap<String, u64>,
    /// The tracked connections: state and addresses.
    tracked: Vec<String>,
}

/// A connection to be made, and what is around it.
#[derive(Clone)]
struct Scene<'a> {
    /// What `gate up` is told.
    up: &'a [&'a str],
    /// The endpoint that is closed.
    endpoint: &'a str,
    /// nft's rules in the client's and in the server's namespace.
    rules: [&'a str; 2],
    /// Who connects to whom.
    client: Side,
    server: Side,
    /// How the client connects.
    dial: Dial,
    /// Where the backend listens.
    listen: SocketAddr,
    /// The device that it is bound to.
    device: Option<&'a str>,
    /// A shell line for the server's namespace, before all else.
    prepare: &'a str,
}

/// A client on the cable's other side, a gate on the server's interface.
fn ingress<'a>(hook: &'a [&'a str], rules: &'a str) -> Scene<'a> {
    Scene {
        up: hook,
        endpoint: "10.0.0.5:8080",
        rules: ["", rules],
        client: Side::Client,
        server: Side::Server,
        dial: Dial::to(server_v4(PORT)).from(SocketAddr::new(CLIENT_V4.into(), SOURCE)),
        listen: server_v4(PORT),
        device: None,
        prepare: "",
    }
}

/// A client beside the gate, and its backend on the cable's other side.
fn egress<'a>(hook: &'a [&'a str], rules: [&'a str; 2]) -> Scene<'a> {
    let backend = SocketAddr::new(CLIENT_V4.into(), PORT);
    Scene {
        up: hook,
        endpoint: "10.0.0.1:8080",
        rules,
        client: Side::Server,
        server: Side::Client,
        dial: Dial::to(backend).from(SocketAddr::new(SERVER_V4.into(), SOURCE)),
        listen: backend,
        device: None,
        prepare: "",
    }
}

/// A client and a backend beside the gate.
fn loopback<'a>(rules: &'a str) -> Scene<'a> {
    let backend = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    Scene {
        up: &["lo"],
        endpoint: "127.0.0.1:8080",
        rules: ["", rules],
        client: Side::Server,
        server: Side::Server,
        dial: Dial::to(backend).from(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SOURCE)),
        listen: backend,
        device: None,
        prepare: "",
    }
}

/// The port that each client connects from.
const SOURCE: u16 = 40_000;

const INGRESS: [&[&str]; 4] = [
    &["--hook", "xdp-generic", INTERFACE],
    &["--hook", "xdp", INTERFACE],
    &["--hook", "tc-ingress", INTERFACE],
    &["--hook", "tc", INTERFACE],
];

const EGRESS: [&[&str]; 2] = [
    &["--hook", "tc-egress", INTERFACE],
    &["--hook", "tc", INTERFACE],
];

impl Scene<'_> {
    /// Makes the connection, and looks. Where the client has sent its SYN again, because the machine
    /// is busy, that tells nothing, and it is made once more.
    #[track_caller]
    fn play(&self, held: bool) -> Seen {
        const TRIES: usize = 5;
        let mut seen = self.try_once(held);
        for _ in 1..TRIES {
            if !seen.retransmitted {
                break;
            }
            seen = self.try_once(held);
        }
        seen
    }

    #[track_caller]
    fn try_once(&self, held: bool) -> Seen {
        let topology = Topology::new().unwrap();
        shell(&topology, Side::Server, self.prepare);
        for (side, rules) in [Side::Client, Side::Server].into_iter().zip(self.rules) {
            nft::load(&topology, side, rules).unwrap();
        }
        gate(&topology, &[&["up"], self.up].concat());
        let _listener = listen_on(&topology, self.server, self.listen, self.device);
        if held {
            gate(&topology, &["hold", self.endpoint]);
        }
        let start = Instant::now();
        let client = dial(&topology, self.client, self.dial.clone());
        if held {
            wait_until_held(&topology, self.endpoint, 1);
            assert!(!client.is_finished());
            let opened = gate(&topology, &["open", self.endpoint]);
            assert!(opened.stdout.contains("1 connection held"), "{opened}");
        }
        let opened = start.elapsed();
        let (ended, took, _socket) = client.finish_with_socket();
        let counters =
            [Side::Client, Side::Server].map(|side| nft::counters(&topology, side).unwrap());
        Seen {
            ended,
            retransmitted: match ended {
                Ended::TimedOut => opened > self.dial.limit,
                _ => took > BEFORE_RETRANSMISSION,
            },
            counters: counters.into_iter().flatten().collect(),
            tracked: tracked(&topology),
        }
    }

    /// Both ways; they must not differ.
    #[track_caller]
    fn compare(&self) -> Seen {
        let unheld = self.play(false);
        let held = self.play(true);
        assert_eq!(held, unheld, "{:?}", self.up);
        held
    }
}

/// `/proc/net/nf_conntrack` without what changes with time and from run to run.
fn tracked(topology: &Topology) -> Vec<String> {
    let text = shell(
        topology,
        Side::Server,
        // There is none where nothing asks for tracking.
        "cat /proc/thread-self/net/nf_conntrack 2>/dev/null || true",
    );
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.contains("tcp"))
        .map(|line| {
            line.split_whitespace()
                .enumerate()
                // Family, protocol, timeout: only the state and the tuples count.
                .filter(|(index, word)| *index > 4 && !word.starts_with("use="))
                .map(|(_, word)| word)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    lines.sort();
    lines
}

/// Counters for all that a rule can ask of a SYN, in each of these chains: name and hook.
fn rules(chains: &[(&str, &str)], matches: &[(&str, &str)]) -> String {
    let (mut counters, mut all) = (String::new(), String::new());
    for (chain, hook) in chains {
        all += &format!("chain {chain} {{ type filter {hook}; ");
        for (name, matched) in matches {
            // Linux 5.10 can't ask that so late.
            if (*chain, *name) == ("in", "fib") {
                continue;
            }
            counters += &format!("counter {chain}_{name} {{}}; ");
            all += &format!(
                "tcp dport {PORT} tcp flags & (syn|ack) == syn {matched} \
                 counter name {chain}_{name}; "
            );
        }
        all += "}; ";
    }
    format!("table inet t {{ {counters} {all} }}")
}

const INCOMING: [(&str, &str); 3] = [
    ("raw", "hook prerouting priority raw"),
    ("pre", "hook prerouting priority mangle"),
    ("in", "hook input priority filter"),
];

const OUTGOING: [(&str, &str); 2] = [
    ("out", "hook output priority mangle"),
    ("post", "hook postrouting priority mangle"),
];

/// The counters that differ from 1.
fn not_once(seen: &Seen) -> Vec<(&str, u64)> {
    let other = seen.counters.iter().filter(|(_, count)| **count != 1);
    other.map(|(name, count)| (name.as_str(), *count)).collect()
}

#[test]
fn a_firewall_sees_a_replayed_syn_that_came_in_as_one_that_was_never_held() {
    if !has(Feature::Nftables) {
        return;
    }
    let matches = [
        ("iif", "iif eth0"),
        ("new", "ct state new"),
        ("from", "ether saddr 02:00:00:00:00:01"),
        ("to", "ether daddr 02:00:00:00:00:05"),
        ("mark", "meta mark 0"),
        ("priority", "meta priority 0"),
        ("host", "meta pkttype host"),
        ("fib", "fib saddr . iif oif exists"),
        ("length", "meta length 60"),
        ("local", "fib daddr type local"),
    ];
    let rules = rules(&INCOMING, &matches);
    for hook in INGRESS {
        let seen = ingress(hook, &rules).compare();
        assert_eq!(seen.ended, Ended::Connected, "{hook:?}");
        // Connection tracking comes behind "raw".
        assert_eq!(not_once(&seen), [("raw_new", 0)], "{hook:?}");
        assert_eq!(seen.tracked.len(), 1, "{hook:?}: {:?}", seen.tracked);
    }
}

#[test]
fn a_firewall_sees_a_replayed_syn_that_went_out_as_one_that_was_never_held() {
    if !has(Feature::Nftables) {
        return;
    }
    let here = rules(
        &OUTGOING,
        &[
            ("oif", "oif eth0"),
            ("new", "ct state new"),
            ("mark", "meta mark 7"),
            ("uid", "meta skuid 0"),
        ],
    );
    let there = rules(
        &INCOMING,
        &[
            ("iif", "iif eth0"),
            ("from", "ether saddr 02:00:00:00:00:05"),
            ("to", "ether daddr 02:00:00:00:00:01"),
            ("length", "meta length 60"),
        ],
    );
    for hook in EGRESS {
        let mut scene = egress(hook, [&there, &here]);
        scene.dial.mark = 7;
        let seen = scene.compare();
        assert_eq!(seen.ended, Ended::Connected, "{hook:?}");
        assert_eq!(not_once(&seen), [], "{hook:?}");
        assert_eq!(seen.tracked.len(), 1, "{hook:?}: {:?}", seen.tracked);
    }
}

#[test]
fn a_firewall_sees_a_replayed_syn_on_loopback_as_a_retransmission() {
    if !has(Feature::Nftables) {
        return;
    }
    let matches = [("new", "ct state new"), ("mark", "meta mark 7")];
    let rules = rules(
        &[INCOMING.as_slice(), OUTGOING.as_slice()].concat(),
        &matches,
    );
    let mut scene = loopback(&rules);
    scene.dial.mark = 7;
    let (unheld, held) = (scene.play(false), scene.play(true));
    assert_eq!(not_once(&unheld), []);
    // It leaves once more, and comes in once.
    let twice = OUTGOING
        .iter()
        .flat_map(|(chain, _)| matches.map(|(name, _)| (format!("{chain}_{name}"), 2)));
    let expected: BTreeMap<String, u64> =
        unheld.counters.clone().into_iter().chain(twice).collect();
    assert_eq!(held.counters, expected);
    assert_eq!((held.ended, held.retransmitted), (Ended::Connected, false));
    assert_eq!(held.tracked, unheld.tracked);
}

#[test]
fn a_rule_that_drops_a_syn_drops_it_as_well_when_it_is_replayed() {
    if !has(Feature::Nftables) {
        return;
    }
    let rules = |chain: &str, matched: &str| {
        format!(
            "table inet t {{ counter c {{}}; chain c {{ type filter {chain} priority 0; \
             tcp dport {PORT} {matched} counter name c drop; }}; }}"
        )
    };
    let input = rules("hook input", "iif eth0 ct state new");
    for hook in INGRESS {
        let mut scene = ingress(hook, &input);
        scene.dial.limit = BEFORE_RETRANSMISSION;
        let seen = scene.compare();
        assert_eq!(
            (seen.ended, seen.counters["c"]),
            (Ended::TimedOut, 1),
            "{hook:?}"
        );
    }
    for hook in EGRESS {
        let mut scene = egress(hook, [&input, ""]);
        scene.dial.limit = BEFORE_RETRANSMISSION;
        let seen = scene.compare();
        assert_eq!(
            (seen.ended, seen.counters["c"]),
            (Ended::TimedOut, 1),
            "{hook:?}"
        );
    }
    let input = rules("hook input", "iif lo ct state new");
    let mut scene = loopback(&input);
    scene.dial.limit = BEFORE_RETRANSMISSION;
    let seen = scene.compare();
    assert_eq!((seen.ended, seen.counters["c"]), (Ended::TimedOut, 1));
}

#[test]
fn the_reverse_path_filter_drops_a_replayed_syn_as_it_drops_another() {
    if !has(Feature::Nftables) {
        return;
    }
    let rules = "table inet t { counter pre {}; counter in {}; \
                 chain p { type filter hook prerouting priority raw; tcp dport 8080 counter name pre; }; \
                 chain i { type filter hook input priority 0; tcp dport 8080 counter name in; }; }";
    for hook in INGRESS {
        let mut scene = ingress(hook, rules);
        // Its source is behind another interface.
        scene.prepare = "ip link add eth1 type veth peer name peer1 && ip link set eth1 up && \
                         ip link set peer1 up && ip route add 10.0.0.1/32 dev eth1 && \
                         echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter";
        scene.dial.limit = BEFORE_RETRANSMISSION;
        let seen = scene.compare();
        assert_eq!(seen.ended, Ended::TimedOut, "{hook:?}");
        assert_eq!(
            (seen.counters["pre"], seen.counters["in"]),
            (1, 0),
            "{hook:?}"
        );
    }
}

#[test]
fn a_listener_that_is_bound_to_an_interface_gets_a_replayed_syn_from_there_only() {
    if !has(Feature::Nftables) {
        return;
    }
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
    for (device, ended) in [(INTERFACE, Ended::Connected), ("lo", Ended::Refused)] {
        for hook in INGRESS {
            let mut scene = ingress(hook, "");
            (scene.listen, scene.device) = (any, Some(device));
            assert_eq!(scene.compare().ended, ended, "{hook:?}");
        }
        for hook in EGRESS {
            let mut scene = egress(hook, ["", ""]);
            (scene.listen, scene.device) = (any, Some(device));
            assert_eq!(scene.compare().ended, ended, "{hook:?}");
        }
    }
    for (device, ended) in [("lo", Ended::Connected), (INTERFACE, Ended::Refused)] {
        let mut scene = loopback("");
        (scene.listen, scene.device) = (any, Some(device));
        assert_eq!(scene.compare().ended, ended);
    }
}

#[test]
fn a_replayed_syn_is_redirected_to_another_port_as_it_comes_in() {
    if !has(Feature::Nftables) {
        return;
    }
    let rules = "table ip t { chain p { type nat hook prerouting priority dstnat; \
                 tcp dport 8080 redirect to :9090; }; }";
    for hook in INGRESS {
        let mut scene = ingress(hook, rules);
        scene.listen = server_v4(9090);
        let seen = scene.compare();
        assert_eq!(
            (seen.ended, seen.tracked.len()),
            (Ended::Connected, 1),
            "{hook:?}"
        );
    }
}

#[test]
fn a_replayed_syn_that_went_out_keeps_the_address_that_nat_gave_it() {
    if !has(Feature::Nftables) {
        return;
    }
    let rules = "table ip t { chain p { type nat hook postrouting priority srcnat; \
                 tcp dport 8080 snat to 10.0.0.77:50000; }; \
                 chain o { type nat hook output priority -100; \
                 tcp dport 80 dnat to 10.0.0.1:8080; }; }";
    for hook in EGRESS {
        let mut scene = egress(hook, ["", rules]);
        scene.prepare = "ip address add 10.0.0.77/24 dev eth0";
        scene.dial.target = SocketAddr::new(Ipv4Addr::new(10, 0, 0, 99).into(), 80);
        let seen = scene.compare();
        assert_eq!(
            (seen.ended, seen.tracked.len()),
            (Ended::Connected, 1),
            "{hook:?}"
        );
    }
}

#[test]
fn a_replayed_syn_on_loopback_is_redirected_as_its_retransmission_would_be() {
    if !has(Feature::Nftables) {
        return;
    }
    let localhost: [(&str, IpAddr); 2] = [
        ("ip", Ipv4Addr::LOCALHOST.into()),
        ("ip6", Ipv6Addr::LOCALHOST.into()),
    ];
    for (family, address) in localhost {
        let rules = format!(
            "table {family} t {{ chain o {{ type nat hook output priority -100; \
             tcp dport 80 redirect to :8080; }}; }}"
        );
        let mut scene = loopback(&rules);
        scene.dial = Dial::to(SocketAddr::new(address, 80)).from(SocketAddr::new(address, SOURCE));
        scene.listen = SocketAddr::new(address, PORT);
        let endpoint = scene.listen.to_string();
        scene.endpoint = &endpoint;
        let seen = scene.compare();
        assert_eq!(
            (seen.ended, seen.tracked.len()),
            (Ended::Connected, 1),
            "{family}"
        );
    }
}
