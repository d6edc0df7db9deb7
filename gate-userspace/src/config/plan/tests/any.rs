//! Whatever is configured, a plan that is carried out leaves nothing to plan.

use proptest::prelude::*;

use super::*;
use crate::config::DaemonConfig;

/// What is live once a plan is carried out, as far as gates, guards and handovers go.
fn carried_out(live: &Live, plan: &Plan) -> Live {
    let mut live = live.clone();
    for change in &plan.changes {
        match change {
            Change::Define {
                gate, endpoints, ..
            } => {
                for other in live.gates.values_mut() {
                    other.gate.endpoints.retain(|it| !endpoints.contains(it));
                }
                let id = GateId(100 + u32::try_from(live.gates.len()).expect("few"));
                let one = live.gates.entry(gate.clone()).or_insert_with(|| LiveGate {
                    gate: Gate {
                        id,
                        name: Some(gate.clone()),
                        endpoints: Vec::new(),
                        aliases: Vec::new(),
                    },
                    is_closed: false,
                    guard: None,
                    handover: None,
                });
                one.gate.endpoints = endpoints.iter().copied().collect();
            }
            Change::Guard { gate, lease, .. } => {
                live.gates.get_mut(gate).expect("a gate").guard = Some(*lease);
            }
            Change::Unguard { gate, .. } => {
                live.gates.get_mut(gate).expect("a gate").guard = None;
            }
            Change::Forget { gate } => {
                live.gates.remove(gate.name.as_ref().expect("a name"));
            }
            Change::Adopt { .. }
            | Change::HandOver { .. }
            | Change::HandBack { .. }
            | Change::Attach(_)
            | Change::Keep { .. }
            | Change::Detach { .. } => {}
        }
    }
    let ids = live.gates.iter();
    let ids = ids.map(|(name, it)| (name.clone(), it.gate.id)).collect();
    live.managed = plan.managed(&ids);
    live
}

/// Gates over a few endpoints, each endpoint in one at the most.
fn some_gates() -> impl Strategy<Value = Vec<(String, BTreeSet<u16>, bool)>> {
    let gate = (0..5_usize, proptest::bool::ANY);
    proptest::collection::vec(gate, 12).prop_map(|owners| {
        let mut gates = BTreeMap::<usize, (BTreeSet<u16>, bool)>::new();
        for (port, (owner, guarded)) in (1..).zip(owners) {
            let one = gates.entry(owner).or_default();
            one.0.insert(port);
            one.1 = guarded;
        }
        let named = gates.into_iter();
        // The last owner is nobody.
        let named = named.filter(|(owner, _)| *owner < 4);
        named
            .map(|(owner, (ports, guarded))| (format!("g{owner}"), ports, guarded))
            .collect()
    })
}

fn configured(gates: &[(String, BTreeSet<u16>, bool)]) -> Config {
    let one = |(text, ports, guarded): &(String, BTreeSet<u16>, bool)| {
        let ports: Vec<String> = ports
            .iter()
            .map(|port| format!("10.0.0.5:{port}"))
            .collect();
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let mut gate = gate(&ports);
        if *guarded {
            gate.mode = DefaultMode::Guard;
        }
        (name(text), gate)
    };
    Config {
        daemon: DaemonConfig::default(),
        gates: gates.iter().map(one).collect(),
    }
}

proptest! {
    #[test]
    fn a_plan_that_is_carried_out_leaves_nothing_to_plan(
        first in some_gates(),
        second in some_gates(),
    ) {
        let start = live(&[("mine", &["10.0.0.5:9000"])]);
        let one = plan(&configured(&first), &start);
        prop_assert!(one.obstacles.is_empty(), "{:?}", one.obstacles);
        let live = carried_out(&start, &one);
        prop_assert_eq!(changes(&plan(&configured(&first), &live)), [] as [&str; 0]);
        let two = plan(&configured(&second), &live);
        prop_assert!(two.obstacles.is_empty(), "{:?}", two.obstacles);
        let live = carried_out(&live, &two);
        prop_assert_eq!(changes(&plan(&configured(&second), &live)), [] as [&str; 0]);
        for (name, gate) in &configured(&second).gates {
            let now: BTreeSet<Endpoint> = live.gates[name].gate.endpoints.iter().copied().collect();
            prop_assert_eq!(&now, &gate.endpoints);
            prop_assert_eq!(live.gates[name].guard.is_some(), gate.mode == DefaultMode::Guard);
        }
        // And nothing of it is left when the configuration is empty.
        let none = plan(&configured(&[]), &live);
        let live = carried_out(&live, &none);
        prop_assert_eq!(live.gates.len(), 1);
    }
}
