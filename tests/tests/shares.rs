//! One prefix does not get the whole table of held SYNs. Needs root.

mod common;

use std::net::Ipv4Addr;

use aya::maps::{Array, Map, MapData};
use common::{
    ENDPOINT, PORT, count, gate, held_client, listen, wait_until_counted, wait_until_held,
};
use gate_common::abi::Counter;
use gate_common::shares::TOTAL;
use gate_tests::packet::Spec;
use gate_tests::tap::Tap;
use gate_tests::topology::{INTERFACE, Side, Topology, server_v4};
use gate_userspace::pins::Pins;

/// SYNs of so many hosts of 10.9.`prefix`.0/24, one each.
fn flood(topology: &Topology, prefix: u8, hosts: u8) {
    let from = topology.run(Side::Client, || Tap::open(INTERFACE)).unwrap();
    for host in 1..=hosts {
        let spec = Spec {
            source: Ipv4Addr::new(10, 9, prefix, host).into(),
            source_port: 1024 + u16::from(host),
            ..Spec::default()
        };
        from.send(&spec.build()).unwrap();
    }
}

/// The held SYNs, as the data path counts them: the largest share, and all.
fn shares(topology: &Topology) -> (u64, u64) {
    let read = || {
        let map = MapData::from_pin(Pins::here()?.map("SHARES"))?;
        let map: Array<_, u64> = Map::Array(map).try_into()?;
        let counts: Result<Vec<u64>, _> = map.iter().collect();
        Ok(counts?)
    };
    let counts = topology.run(Side::Server, read).unwrap();
    let (all, each) = counts.split_last().unwrap();
    assert_eq!(each.len(), TOTAL as usize);
    assert_eq!(each.iter().sum::<u64>(), *all);
    (each.iter().copied().max().unwrap(), *all)
}

#[test]
fn a_flood_from_one_prefix_leaves_room_for_a_client_from_another() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--held", "64", INTERFACE]);
    let _listener = listen(&topology, server_v4(PORT));
    gate(&topology, &["hold", ENDPOINT]);
    flood(&topology, 0, 200);
    wait_until_counted(&topology, ENDPOINT, Counter::Overflowed, 200 - 56);
    assert_eq!(count(&topology, ENDPOINT, Counter::Held), 56);
    assert_eq!(shares(&topology), (56, 56));
    let client = held_client(&topology, ENDPOINT, server_v4(PORT));
    wait_until_held(&topology, ENDPOINT, 57);
    gate(&topology, &["open", ENDPOINT]);
    client.finish_connected();
    assert_eq!(shares(&topology), (0, 0));
}

#[test]
fn what_a_discarded_gate_held_makes_room_again() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--held", "64", INTERFACE]);
    gate(&topology, &["hold", ENDPOINT]);
    flood(&topology, 0, 100);
    wait_until_held(&topology, ENDPOINT, 56);
    gate(&topology, &["drop", ENDPOINT]);
    assert_eq!(shares(&topology), (0, 0));
    gate(&topology, &["hold", ENDPOINT]);
    flood(&topology, 1, 100);
    wait_until_held(&topology, ENDPOINT, 56);
    // A gate that goes by itself leaves what another holds.
    gate(&topology, &["hold", "*:9999"]);
    gate(&topology, &["open", "*:9999"]);
    assert_eq!(shares(&topology), (56, 56));
}
