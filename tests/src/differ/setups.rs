//! Tables made by chance.

use std::net::IpAddr;

use fastrand::Rng;
use gate_common::abi::{Guard, Missing};
use gate_common::flow::{Address, AttemptKey, EndpointKey, FlowKey, GateId, Isn, Port};
use gate_common::shares::Room;
use gate_common::state::{BootTime, Closed, StateWord};
use gate_userspace::clock;

use super::frames::{BARE_V4, BARE_V6, ISNS, PORTS, V4, V6};
use crate::kernel::{Setup, Shortcuts};

/// A lease that outlasts every run, in nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

/// Gates that there are.
const GATES: u32 = 5;

/// Where sockets may listen.
const LISTENERS: [&str; 6] = [
    "10.0.0.5:8080",
    "10.0.0.6:8080",
    "[fd00::5]:8080",
    "[fd00::6]:8081",
    "0.0.0.0:8081",
    "[::]:80",
];

/// Sources that may be allowed.
const SOURCES: [&str; 7] = [
    "10.0.0.1",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "fd00::1",
    "fd00::/8",
    "::/0",
    "10.0.0.2",
];

/// The tables of a seed.
pub fn setup(seed: u64) -> Setup {
    let mut random = Rng::with_seed(seed ^ 0x5e7_0b5);
    let random = &mut random;
    let now = clock::now();
    let mut setup = Setup {
        armed: random.u8(..32) != 0,
        ..Setup::default()
    };
    setup.room = Room {
        capacity: [0, 1, 4, 32, 16_384][random.usize(..5)],
        seed: random.u64(..),
    };
    // One endpoint belongs to one gate.
    for endpoint in endpoints() {
        if random.u8(..3) != 0 {
            setup
                .endpoints
                .push((endpoint, GateId(random.u32(1..=GATES))));
        }
    }
    for gate in (1..=GATES).map(GateId) {
        setup.words.push((gate, word(random, now)));
        let lease = if random.u8(..4) == 0 { 0 } else { HOUR };
        let dirty = u64::from(random.bool());
        setup.guards.push((gate, Guard { lease, dirty }));
        for source in SOURCES {
            if random.u8(..6) == 0 {
                let source = source.parse().expect("a prefix");
                setup.allowed.push((gate, source));
            }
        }
    }
    for _ in 0..random.usize(..12) {
        setup.checks.push(flow(random));
        let (flow, isn) = (flow(random), isn(random));
        setup.released.push(AttemptKey { flow, isn });
    }
    if random.bool() {
        let some = LISTENERS.iter().filter(|_| random.u8(..3) == 0);
        setup.listening = some.map(|it| it.parse().expect("an address")).collect();
    }
    for endpoint in endpoints() {
        if random.u8(..5) == 0 && endpoint.address != Address::ANY {
            let since = [0, now.0][random.usize(..2)];
            let gate = GateId(random.u32(1..=GATES));
            let zero = 0;
            setup
                .missing
                .push((endpoint, Missing { since, gate, zero }));
        }
    }
    setup.shortcuts = [Shortcuts::Made, Shortcuts::None, Shortcuts::Torn][random.usize(..3)];
    setup
}

fn endpoints() -> impl Iterator<Item = EndpointKey> {
    let v4 = V4[..2].iter().map(|octets| Address::from_v4(*octets));
    let v6 = V6[..2].iter().map(|ip| Address::from_v6(ip.octets()));
    let addresses: Vec<Address> = v4.chain(v6).chain([Address::ANY]).collect();
    let ports = [8080, 8081, 80].into_iter();
    ports.flat_map(move |port| {
        let of_port = addresses.clone().into_iter();
        of_port.map(move |address| EndpointKey::new(address, Port::new(port)))
    })
}

fn word(random: &mut Rng, now: BootTime) -> StateWord {
    let closed = [Closed::Hold, Closed::Hold, Closed::Drop, Closed::Reject][random.usize(..4)];
    let word = match random.u8(..8) {
        0 | 1 => StateWord::OPEN,
        2 => StateWord::closed(closed, BootTime(now.0 / 2)),
        // What no gate of this version writes: an unknown mode, unknown flags.
        3 => StateWord(u64::MAX << 40 | u64::from(random.u16(..))),
        _ => StateWord::closed(closed, BootTime(now.0 + HOUR)),
    };
    let word = if random.bool() {
        word.with_checks()
    } else {
        word
    };
    let word = if random.bool() {
        word.with_allows()
    } else {
        word
    };
    word.guarded(random.bool())
}

fn flow(random: &mut Rng) -> FlowKey {
    let v6 = random.bool();
    let address = |random: &mut Rng, among: usize| match v6 {
        true => IpAddr::V6(V6[random.usize(..among)]),
        false => IpAddr::from(V4[random.usize(..among)]),
    };
    let words = |address| match address {
        IpAddr::V4(v4) => Address::from_v4(v4.octets()),
        IpAddr::V6(v6) => Address::from_v6(v6.octets()),
    };
    let destination = words(address(random, 2));
    let own = match (v6, random.bool()) {
        (true, true) => IpAddr::V6(V6[2]),
        (true, false) => IpAddr::V6(BARE_V6),
        (false, true) => IpAddr::from(V4[2]),
        (false, false) => IpAddr::V4(BARE_V4),
    };
    FlowKey {
        endpoint: EndpointKey::new(destination, Port::new(PORTS[random.usize(..3)])),
        source: words(own),
        source_port: Port::new(40_000 + random.u16(..4)),
        zero: 0,
    }
}

fn isn(random: &mut Rng) -> Isn {
    Isn::from_octets(ISNS[random.usize(..ISNS.len())].to_be_bytes())
}
