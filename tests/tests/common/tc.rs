//! Traffic control: what is on an interface, and whether gate works there.

use std::ffi::OsStr;

use gate_common::abi::Counter;
use gate_tests::topology::{Output, Side, Topology, server_v4};

use super::{
    Clients, ENDPOINT, PORT, count, gate, gate_by_filters, listen, listen_at, shell,
    wait_until_held,
};

/// Runs `gate` as [`gate_by_filters`] or as [`gate()`].
#[track_caller]
pub fn gate_either<S: AsRef<OsStr>>(topology: &Topology, filters: bool, args: &[S]) -> Output {
    match filters {
        true => gate_by_filters(topology, args),
        false => gate(topology, args),
    }
}

/// The filters of both directions and the qdiscs of an interface, as `tc` shows them, without
/// what counts.
pub fn tc_state(topology: &Topology, interface: &str) -> String {
    let line = format!(
        "tc qdisc show dev {interface} ingress; tc qdisc show dev {interface} clsact; \
         tc filter show dev {interface} ingress; tc filter show dev {interface} egress"
    );
    shell(topology, Side::Server, &line)
}

/// Holds a SYN that comes in on the cable, and one that goes out there, and opens: both connect.
#[track_caller]
pub fn holds_and_releases_both_ways(topology: &Topology) {
    let out = "10.0.0.1:8080";
    let _in = listen(topology, server_v4(PORT));
    let _out = listen_at(topology, Side::Client, out.parse().unwrap());
    gate(topology, &["hold", ENDPOINT, out]);
    let clients = [
        (Side::Client, server_v4(PORT)),
        (Side::Server, out.parse().unwrap()),
    ]
    .map(|(side, target)| Clients::one_at(topology, side, target));
    for endpoint in [ENDPOINT, out] {
        wait_until_held(topology, endpoint, 1);
    }
    gate(topology, &["open", ENDPOINT, out]);
    for client in clients {
        client.finish_connected();
    }
    for endpoint in [ENDPOINT, out] {
        assert_eq!(
            count(topology, endpoint, Counter::Released),
            1,
            "{endpoint}"
        );
        assert_eq!(count(topology, endpoint, Counter::Held), 1, "{endpoint}");
    }
}
