//! Plans, without a kernel.

use std::time::Duration;

use super::*;
use crate::config::{BackendConfig, Down, Interfaces, OnDown, OnUp};
use crate::hooks::{Hook, HookChoice};
use crate::interfaces::{Interface, Kind, Layer};
use crate::reach::Place;
use gate_common::abi::Direction;

mod any;

const LEASE: Duration = Duration::from_secs(15);

fn name(text: &str) -> GateName {
    text.parse().expect(text)
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().expect(text)
}

fn endpoints(texts: &[&str]) -> BTreeSet<Endpoint> {
    texts.iter().map(|text| endpoint(text)).collect()
}

fn gate(texts: &[&str]) -> GateConfig {
    GateConfig {
        endpoints: endpoints(texts),
        interfaces: Interfaces::Named(["eth0".to_owned()].into()),
        hook: HookChoice::Auto,
        mode: DefaultMode::Open,
        max_hold: LEASE,
        allow: Vec::new(),
        checks: Vec::new(),
        on_down: OnDown {
            new: Down::Nothing,
            flush: false,
        },
        on_up: OnUp {
            release: true,
            rate: None,
        },
        backends: Vec::new(),
    }
}

fn config(gates: &[(&str, GateConfig)]) -> Config {
    let gates = gates.iter().map(|(it, gate)| (name(it), gate.clone()));
    Config {
        daemon: super::super::DaemonConfig::default(),
        gates: gates.collect(),
    }
}

/// A host with `eth0`, attached to, and with these gates, of which those with a `+` are the
/// configuration's.
fn live(gates: &[(&str, &[&str])]) -> Live {
    let mut live = Live {
        is_up: true,
        held: Some(16_384),
        interfaces: vec![Interface {
            index: 2,
            name: "eth0".to_owned(),
            address: None,
            is_up: true,
            kind: Kind::Veth,
            layer: Layer::Ethernet,
            mtu: 1500,
            controller: None,
            lower: None,
            xdp: None,
        }],
        attached: [(2, vec![Hook::Tc(Direction::Ingress)])].into(),
        ..Live::default()
    };
    for (id, (text, endpoints)) in (1..).map(GateId).zip(gates) {
        let own = text.strip_prefix('+');
        let of = name(own.unwrap_or(text));
        if own.is_some() {
            live.managed.gates.insert(of.clone(), (id, Made::default()));
        }
        live.gates.insert(
            of.clone(),
            LiveGate {
                gate: Gate {
                    id,
                    name: Some(of),
                    endpoints: endpoints.iter().map(|it| endpoint(it)).collect(),
                    aliases: Vec::new(),
                },
                is_closed: false,
                guard: None,
                handover: None,
            },
        );
    }
    live
}

/// What is changed, in short.
fn changes(plan: &Plan) -> Vec<String> {
    let short = |change: &Change| match change {
        Change::Attach(target) => format!("attach {}", target.interface),
        Change::Keep { interface } => format!("keep {interface}"),
        Change::Define { gate, before, .. } => match before {
            None => format!("make {gate}"),
            Some(_) => format!("change {gate}"),
        },
        Change::Adopt { gate } => format!("adopt {gate}"),
        Change::Guard { gate, .. } => format!("guard {gate}"),
        Change::Unguard { gate, .. } => format!("unguard {gate}"),
        Change::HandOver { gate, .. } => format!("over {gate}"),
        Change::HandBack { gate } => format!("back {gate}"),
        Change::Forget { gate } => format!("forget {gate}"),
        Change::Detach { interface, .. } => format!("detach {interface}"),
    };
    plan.changes.iter().map(short).collect()
}

#[test]
fn nothing_is_planned_where_all_is_so() {
    let live = live(&[("+a", &["10.0.0.5:80"]), ("mine", &["10.0.0.5:81"])]);
    let plan = plan(&config(&[("a", gate(&["10.0.0.5:80"]))]), &live);
    assert_eq!(changes(&plan), [] as [&str; 0]);
    assert!(plan.obstacles.is_empty() && plan.awaited.is_empty());
    assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
}

#[test]
fn what_changes_is_planned_and_nothing_else() {
    let live = live(&[
        ("+a", &["10.0.0.5:80"]),
        ("+b", &["10.0.0.5:81"]),
        ("+old", &["10.0.0.5:82"]),
        ("c", &["10.0.0.5:83"]),
    ]);
    let plan = plan(
        &config(&[
            ("a", gate(&["10.0.0.5:80"])),
            ("b", gate(&["10.0.0.5:91"])),
            ("c", gate(&["10.0.0.5:83"])),
            ("d", gate(&["10.0.0.5:82"])),
        ]),
        &live,
    );
    let expected = ["change b", "adopt c", "make d", "forget old"];
    assert_eq!(changes(&plan), expected);
    assert!(plan.obstacles.is_empty(), "{:?}", plan.obstacles);
}

#[test]
fn what_people_closed_guarded_or_named_stands_in_the_way() {
    let config = config(&[("a", gate(&["10.0.0.5:80", "10.0.0.5:81"]))]);
    let before = || live(&[("+a", &["10.0.0.5:80"]), ("mine", &["10.0.0.5:90"])]);
    let obstacle = |live: &Live| {
        let plan = plan(&config, live);
        let texts = plan.obstacles.iter().map(ToString::to_string);
        texts.collect::<Vec<_>>().join("; ")
    };
    assert_eq!(obstacle(&before()), "");
    let mut live = before();
    live.gates.get_mut(&name("a")).expect("a gate").is_closed = true;
    assert!(obstacle(&live).contains("a is closed"));
    let mut live = before();
    let mine = live.gates.get_mut(&name("mine")).expect("a gate");
    mine.gate.endpoints = vec![endpoint("10.0.0.5:81")];
    assert!(obstacle(&live).contains("belongs to gate mine"));
    let single = |is_closed, guard, handover| {
        let mut live = before();
        let gate = Gate {
            id: GateId(9),
            name: None,
            endpoints: vec![endpoint("10.0.0.5:81")],
            aliases: Vec::new(),
        };
        let single = LiveGate {
            gate,
            is_closed,
            guard,
            handover,
        };
        live.singles.insert(endpoint("10.0.0.5:81"), single);
        obstacle(&live)
    };
    assert_eq!(single(false, None, None), "");
    assert!(single(true, None, None).contains("10.0.0.5:81 is closed"));
    assert!(single(false, Some(LEASE), None).contains("is guarded"));
    let handover = LiveHandover {
        hook: Steered::Lookup,
        to: BTreeSet::new(),
    };
    assert!(single(false, None, Some(handover)).contains("is handed over"));
}

#[test]
fn guards_follow_the_mode_unless_made_by_hand() {
    let guarded = |lease: Option<Duration>, made: bool| {
        let mut live = live(&[("+a", &["10.0.0.5:80"])]);
        live.gates.get_mut(&name("a")).expect("a gate").guard = lease;
        let made = Made {
            guard: made,
            handover: false,
        };
        live.managed.gates.insert(name("a"), (GateId(1), made));
        live
    };
    let wanted = |mode| GateConfig {
        mode,
        ..gate(&["10.0.0.5:80"])
    };
    let short = LEASE / 2;
    for (mode, lease, made, expected) in [
        (DefaultMode::Guard, None, false, &["guard a"][..]),
        (DefaultMode::Guard, Some(LEASE), true, &[]),
        (DefaultMode::Guard, Some(LEASE), false, &[]),
        (DefaultMode::Guard, Some(short), true, &["guard a"]),
        (DefaultMode::Open, Some(LEASE), true, &["unguard a"]),
        (DefaultMode::Open, Some(LEASE), false, &[]),
        (DefaultMode::Open, None, true, &[]),
    ] {
        let plan = plan(&config(&[("a", wanted(mode))]), &guarded(lease, made));
        assert_eq!(changes(&plan), expected, "{mode:?} {lease:?} {made}");
        let is_made = plan.made[&name("a")].guard;
        assert_eq!(is_made, mode == DefaultMode::Guard, "{mode:?} {lease:?}");
    }
}

#[test]
fn handovers_follow_the_backends_unless_made_by_hand() {
    let backend = BackendConfig {
        address: endpoint("10.0.0.5:90"),
        weight: 2,
    };
    let shares = |weight| LiveHandover {
        hook: Steered::Lookup,
        to: BTreeSet::from([(endpoint("10.0.0.5:90"), weight)]),
    };
    for (backends, now, made, expected) in [
        (&[backend.clone()][..], None, false, &["over a"][..]),
        (std::slice::from_ref(&backend), Some(shares(2)), true, &[]),
        (
            std::slice::from_ref(&backend),
            Some(shares(1)),
            false,
            &["over a"],
        ),
        (&[], Some(shares(2)), true, &["back a"]),
        (&[], Some(shares(2)), false, &[]),
        (&[], None, true, &[]),
    ] {
        let mut live = live(&[("+a", &["10.0.0.5:80"])]);
        live.gates.get_mut(&name("a")).expect("a gate").handover = now.clone();
        let made = Made {
            guard: false,
            handover: made,
        };
        live.managed.gates.insert(name("a"), (GateId(1), made));
        let wanted = GateConfig {
            backends: backends.to_vec(),
            ..gate(&["10.0.0.5:80"])
        };
        let plan = plan(&config(&[("a", wanted)]), &live);
        assert_eq!(changes(&plan), expected, "{backends:?} {now:?} {made:?}");
    }
}

#[test]
fn a_handover_waits_until_its_hook_can_be_told() {
    let wanted = GateConfig {
        backends: vec![BackendConfig {
            address: endpoint("10.0.0.5:90"),
            weight: 1,
        }],
        ..gate(&["10.0.0.5:80"])
    };
    let now = |hook| LiveHandover {
        hook,
        to: BTreeSet::from([(endpoint("10.0.0.5:90"), 1)]),
    };
    for (place, handover, expected) in [
        (Some(Place::Here), None, &["over a"][..]),
        (Some(Place::Here), Some(now(Steered::Lookup)), &[]),
        // Its address was not there yet.
        (Some(Place::Here), Some(now(Steered::Connect)), &["over a"]),
        (Some(Place::Behind(2)), Some(now(Steered::Connect)), &[]),
        (
            Some(Place::Behind(2)),
            Some(now(Steered::Lookup)),
            &["over a"],
        ),
        (None, None, &[]),
        (None, Some(now(Steered::Lookup)), &[]),
    ] {
        let mut live = live(&[("+a", &["10.0.0.5:80"])]);
        live.attached.insert(
            2,
            vec![Hook::Tc(Direction::Ingress), Hook::Tc(Direction::Egress)],
        );
        live.places.insert(endpoint("10.0.0.5:80"), place);
        live.gates.get_mut(&name("a")).expect("a gate").handover = handover.clone();
        let plan = plan(&config(&[("a", wanted.clone())]), &live);
        assert_eq!(changes(&plan), expected, "{place:?} {handover:?}");
        let waits = plan
            .awaited
            .contains(&Awaited::Route(endpoint("10.0.0.5:80")));
        assert_eq!(waits, place.is_none());
        assert_eq!(
            plan.made[&name("a")].handover,
            place.is_some() || handover.is_some()
        );
    }
}

#[test]
fn a_guard_of_an_address_that_is_elsewhere_is_told() {
    let mut live = live(&[("+a", &["10.0.0.9:80"])]);
    live.attached.insert(
        2,
        vec![Hook::Tc(Direction::Ingress), Hook::Tc(Direction::Egress)],
    );
    live.places
        .insert(endpoint("10.0.0.9:80"), Some(Place::Behind(2)));
    let wanted = GateConfig {
        mode: DefaultMode::Guard,
        ..gate(&["10.0.0.9:80"])
    };
    let plan = plan(&config(&[("a", wanted)]), &live);
    assert_eq!(changes(&plan), ["guard a"]);
    assert!(plan.obstacles.is_empty(), "{:?}", plan.obstacles);
    assert!(plan.notes[0].contains("10.0.0.9:80 is no address of this host now"));
}

#[test]
fn another_hook_on_an_interface_of_the_configuration_is_attached_anew() {
    let wanted = GateConfig {
        hook: HookChoice::XdpGeneric,
        ..gate(&["10.0.0.5:80"])
    };
    let config = config(&[("a", wanted)]);
    let mut live = live(&[("+a", &["10.0.0.5:80"])]);
    let by_hand = plan(&config, &live);
    assert!(matches!(by_hand.obstacles[..], [Error::OtherHook { .. }]));
    live.managed.interfaces = [2].into();
    let anew = plan(&config, &live);
    assert_eq!(changes(&anew), ["detach eth0", "attach eth0"]);
    assert!(anew.obstacles.is_empty(), "{:?}", anew.obstacles);
    assert_eq!(anew.interfaces, [2].into());
    live.gates.get_mut(&name("a")).expect("a gate").is_closed = true;
    let closed = plan(&config, &live).obstacles;
    assert!(matches!(closed[..], [Error::Closed { .. }]));
}

#[test]
fn interfaces_come_and_go() {
    let with = |names: &[&str]| GateConfig {
        interfaces: Interfaces::Named(names.iter().map(|it| (*it).to_owned()).collect()),
        ..gate(&["10.0.0.5:80"])
    };
    let mut live = live(&[("+a", &["10.0.0.5:80"])]);
    let plan_for = |live: &Live, names: &[&str]| plan(&config(&[("a", with(names))]), live);
    let plan = plan_for(&live, &["eth0", "eth1"]);
    assert_eq!(plan.awaited, [Awaited::Interface("eth1".to_owned())]);
    let mut eth1 = live.interfaces[0].clone();
    (eth1.index, eth1.name) = (3, "eth1".to_owned());
    live.interfaces.push(eth1);
    let plan = plan_for(&live, &["eth0", "eth1"]);
    assert_eq!(changes(&plan), ["attach eth1"]);
    // What `gate up` attached stays, what the configuration did goes.
    assert_eq!(plan.interfaces, [3].into());
    live.attached.insert(3, vec![Hook::Tc(Direction::Ingress)]);
    live.managed.interfaces = [3].into();
    assert_eq!(changes(&plan_for(&live, &["eth0"])), ["detach eth1"]);
    assert_eq!(changes(&plan_for(&live, &["eth1"])), [] as [&str; 0]);
    live.gates.get_mut(&name("a")).expect("a gate").is_closed = true;
    let plan = plan_for(&live, &["eth0"]);
    assert!(plan.obstacles[0].to_string().contains("a is closed"));
}

#[test]
fn what_a_gate_s_interfaces_do_not_see_is_told() {
    let mut live = live(&[("+a", &["127.0.0.1:80"])]);
    live.places
        .insert(endpoint("127.0.0.1:80"), Some(Place::Loopback));
    let mut wanted = gate(&["127.0.0.1:80"]);
    let obstacles = plan(&config(&[("a", wanted.clone())]), &live).obstacles;
    assert!(matches!(obstacles[..], [Error::GateNotCovered { .. }]));
    // One that is waited for may see it.
    wanted.interfaces = Interfaces::Named(["eth0".to_owned(), "eth9".to_owned()].into());
    let plan = plan(&config(&[("a", wanted)]), &live);
    assert!(plan.obstacles.is_empty(), "{:?}", plan.obstacles);
}

#[test]
fn tables_that_are_too_small_are_told() {
    let most = MAX_GATES as usize - 1;
    let gates = |count: usize| {
        let one = |n: usize| (name(&format!("g{n}")), gate(&[&format!("*:{}", n + 1)]));
        Config {
            daemon: super::super::DaemonConfig::default(),
            gates: (0..count).map(one).collect(),
        }
    };
    let none = live(&[]);
    assert!(plan(&gates(most), &none).obstacles.is_empty());
    let mine = live(&[("mine", &["10.0.0.5:80"])]);
    assert!(plan(&gates(most - 1), &mine).obstacles.is_empty());
    let obstacles = plan(&gates(most), &mine).obstacles;
    assert!(
        matches!(obstacles[..], [Error::Full { .. }]),
        "{obstacles:?}"
    );
}
