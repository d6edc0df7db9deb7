//! The shortcuts past the hash of the endpoints lead where the endpoints lead, also when whoever writes
//! them dies. Needs root.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;

use aya::maps::{Array, Map, MapData};
use common::{Calls, ENDPOINT, LIMIT, count, gate, gate_or, listen, side_by_side, wait_until};
use gate_common::abi::Counter;
use gate_common::flow::{EndpointKey, GateId, Shortcut};
use gate_tests::extent::Extent;
use gate_tests::syscalls::{Fate, traced};
use gate_tests::topology::{INTERFACE, SCRATCH, Side, Topology};
use gate_userspace::endpoint::Endpoint;
use gate_userspace::error::exit;
use gate_userspace::pins::Pins;
use gate_userspace::sys;

/// Where the configuration lies.
const PATH: &str = "/run/gate.toml";

/// Who belongs to which gate, before and after.
const CONFIGS: [&str; 2] = [
    "[gate.a]\nendpoints = ['10.0.0.5:80', '10.0.0.5:81']\ninterfaces = ['eth0']\n\
     [gate.b]\nendpoints = ['10.0.0.5:82', '*:90']\ninterfaces = ['eth0']\n",
    "[gate.a]\nendpoints = ['10.0.0.5:82', '10.0.0.5:83']\ninterfaces = ['eth0']\n\
     [gate.b]\nendpoints = ['10.0.0.5:80']\ninterfaces = ['eth0']\n",
];

/// The endpoints with an address that the second one has.
const SECOND: [&str; 3] = ["10.0.0.5:80", "10.0.0.5:82", "10.0.0.5:83"];

fn configure(topology: &Topology, text: &str) {
    assert!(PATH.starts_with(SCRATCH));
    let write = || Ok(fs::write(PATH, text)?);
    topology.run(Side::Server, write).unwrap();
}

/// The endpoints that have a shortcut. Each must lead where `ENDPOINTS` does.
#[track_caller]
fn shortcuts(topology: &Topology) -> Vec<String> {
    let read = || {
        let pins = Pins::here()?;
        let endpoints = sys::open_pin(&pins.map("ENDPOINTS"))?;
        let endpoints = sys::lookup_all::<EndpointKey, GateId>(endpoints.as_fd())?;
        let map = MapData::from_pin(pins.map("SHORTCUTS"))?;
        let map: Array<_, Shortcut> = Map::Array(map).try_into()?;
        let slots: Result<Vec<Shortcut>, _> = map.iter().collect();
        Ok((endpoints, slots?))
    };
    let (endpoints, slots) = topology.run(Side::Server, read).unwrap();
    let endpoints: BTreeMap<Endpoint, GateId> = endpoints
        .into_iter()
        .map(|(key, gate)| (Endpoint::from(key), gate))
        .collect();
    let mut found = Vec::new();
    for (slot, shortcut) in slots.into_iter().enumerate() {
        if shortcut == Shortcut::NONE {
            continue;
        }
        let endpoint = Endpoint::from(shortcut.endpoint);
        assert_eq!(Shortcut::slot(&shortcut.endpoint) as usize, slot);
        let gate = shortcut.gate_of(&shortcut.endpoint);
        assert!(gate.is_some(), "{endpoint}: a shortcut to nowhere");
        assert_eq!(gate, endpoints.get(&endpoint).copied(), "{endpoint}");
        found.push(endpoint.to_string());
    }
    found.sort();
    found
}

#[test]
fn an_endpoint_has_a_shortcut_to_its_gate_as_long_as_it_has_one() {
    let topology = Topology::new().unwrap();
    let apply = |text| {
        configure(&topology, text);
        gate(&topology, &["apply", "--config", PATH]);
        shortcuts(&topology)
    };
    let first = ["10.0.0.5:80", "10.0.0.5:81", "10.0.0.5:82"];
    assert_eq!(apply(CONFIGS[0]), first);
    assert_eq!(apply(CONFIGS[1]), SECOND);
    assert_eq!(apply(CONFIGS[0]), first);
    gate(&topology, &["drop", ENDPOINT]);
    assert_eq!(shortcuts(&topology).len(), 4);
}

#[test]
fn of_two_endpoints_with_one_slot_each_keeps_its_gate() {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", INTERFACE]);
    let mut ports = BTreeMap::new();
    let pair = (1..=u16::MAX).find_map(|port| {
        let endpoint = format!("10.0.0.5:{port}");
        let key = EndpointKey::from(endpoint.parse::<Endpoint>().unwrap());
        let other = ports.insert(Shortcut::slot(&key), endpoint.clone())?;
        Some([other, endpoint])
    });
    let pair = pair.expect("two of 65,535 in 131,072 slots");
    for endpoint in &pair {
        gate(&topology, &["drop", endpoint]);
    }
    assert_eq!(shortcuts(&topology), pair[..1]);
    let address = |endpoint: &str| endpoint.parse::<std::net::SocketAddr>().unwrap();
    for endpoint in &pair {
        let _listener = listen(&topology, address(endpoint));
        let connect = || {
            let limit = std::time::Duration::from_millis(50);
            Ok(std::net::TcpStream::connect_timeout(&address(endpoint), limit).is_err())
        };
        assert!(topology.run(Side::Client, connect).unwrap(), "{endpoint}");
        wait_until("it is dropped by its own gate", || {
            count(&topology, endpoint, Counter::Dropped) > 0
        });
        gate(&topology, &["open", endpoint]);
    }
}

#[test]
fn who_dies_while_endpoints_change_gates_leaves_no_wrong_shortcut() {
    let apply = ["apply", "--config", PATH];
    let back = |topology: &Topology| {
        configure(topology, CONFIGS[0]);
        gate_or(topology, &apply, exit::DONE);
        configure(topology, CONFIGS[1]);
    };
    let topology = Topology::new().unwrap();
    back(&topology);
    let (output, seen) = traced(&topology, &Fate::default(), &apply, LIMIT).unwrap();
    assert_eq!(output.code(), 0, "{output}");
    drop(topology);
    // Nothing else writes maps.
    let calls: Vec<usize> = seen
        .calls
        .iter()
        .enumerate()
        .filter_map(|(index, call)| (*call == libc::SYS_bpf as u64).then_some(index + 1))
        .collect();
    assert!(calls.len() > 20, "{calls:?}");
    let step = Extent::wanted().pick(calls.len() / 24, 1).max(1);
    let calls = Calls::these("apply", calls.into_iter().step_by(step).collect());
    side_by_side(|| {
        let topology = Topology::new().unwrap();
        for (_, call) in calls.rounds() {
            back(&topology);
            let fate = Fate::killed_at(call.number);
            let (output, seen) = traced(&topology, &fate, &apply, LIMIT).unwrap();
            let found = shortcuts(&topology);
            assert!(found.len() <= 4, "{found:?}, {output}");
            gate_or(&topology, &apply, exit::DONE);
            assert_eq!(shortcuts(&topology), SECOND, "{output}");
            call.tried(&output, &seen);
        }
    });
    calls.finish();
}
