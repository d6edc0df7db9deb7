//! Which listener counts.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;

use gate_common::abi::Counter;
use gate_tests::topology::{Side, server_v4, server_v6};

use crate::common::{
    Clients, ENDPOINT, MS, PORT, assert_connects_at_once, close, count, gate, held_client, shell,
    up,
};
use crate::{V6, listen_again, watch};

#[test]
fn a_dual_stack_listener_is_one_for_both_families() {
    let topology = up();
    gate(&topology, &["guard", ENDPOINT, V6, "--for", "30s"]);
    let _watcher = watch(&topology, &[ENDPOINT, V6, "--for", "30s"]);
    let any = SocketAddr::from(([0_u16; 8], PORT));
    for round in 0..3 {
        let listener = listen_again(&topology, any, false);
        assert_connects_at_once(&topology, server_v4(PORT));
        assert_connects_at_once(&topology, server_v6(PORT));
        close(&topology, listener);
        let clients = [(ENDPOINT, server_v4(PORT)), (V6, server_v6(PORT))]
            .map(|(endpoint, target)| held_client(&topology, endpoint, target));
        let listener = listen_again(&topology, any, false);
        let sent_again = clients.map(Clients::finish_sent_again).iter().sum::<u64>();
        let held_again =
            [ENDPOINT, V6].map(|endpoint| count(&topology, endpoint, Counter::Refreshed));
        assert!(
            sent_again <= held_again.iter().sum(),
            "round {round}: {sent_again}"
        );
        close(&topology, listener);
    }
}

#[test]
fn a_listener_for_ipv6_only_is_none_for_ipv4() {
    let topology = up();
    gate(&topology, &["guard", "*:8080", "--for", "30s"]);
    let _watcher = watch(&topology, &["*:8080", "--for", "30s"]);
    let _v6 = listen_again(&topology, SocketAddr::from(([0_u16; 8], PORT)), true);
    assert_connects_at_once(&topology, server_v6(PORT));
    let client = held_client(&topology, "*:8080", server_v4(PORT));
    sleep(200 * MS);
    assert_eq!(client.connected(), 0);
    assert_eq!(count(&topology, "*:8080", Counter::Released), 0);
    let _v4 = listen_again(&topology, server_v4(PORT), false);
    client.finish_released(&topology, "*:8080");
}

#[test]
fn a_guarded_wildcard_stands_for_every_address_of_this_host() {
    let topology = up();
    shell(
        &topology,
        Side::Server,
        "ip address add 10.0.0.6/24 dev eth0",
    );
    gate(&topology, &["guard", "*:8080", "--for", "30s"]);
    let _watcher = watch(&topology, &["*:8080", "--for", "30s"]);
    let other = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 6), PORT));
    let targets = [server_v4(PORT), other, server_v6(PORT)];
    let clients = targets.map(|target| held_client(&topology, "*:8080", target));
    // One at a time: each listener frees its own.
    for (index, client) in clients.into_iter().enumerate() {
        let _listener = listen_again(&topology, targets[index], false);
        client.finish_connected();
        assert_eq!(
            count(&topology, "*:8080", Counter::Released),
            index as u64 + 1
        );
    }
}
