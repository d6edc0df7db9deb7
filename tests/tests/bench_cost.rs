//! The benchmarks of cost, flood and scale do what they say, in little. They need root.

use std::time::Duration;

use gate_tests::bench::cost::{self, Cost};
use gate_tests::bench::flood::{self, Device, Flood};
use gate_tests::bench::path::Path;
use gate_tests::bench::record::Output;
use gate_tests::bench::record::{self, Raw as _};
use gate_tests::bench::scale::{self, Part};
use gate_tests::require::{Feature, has};
use serde_json::json;

const MS: Duration = Duration::from_millis(1);

/// Each case checks by itself that its SYNs are dropped, and counted where it counts.
fn flood(cases: &[&str], device: Device) -> Flood {
    let options = flood::Options {
        device: vec![device],
        case: cases.iter().map(|&case| case.to_owned()).collect(),
        rounds: 1,
        slice: MS * 5,
        served: Duration::ZERO,
        output: Output::default(),
    };
    flood::measure(&options).unwrap()
}

#[test]
fn a_flood_is_dropped_by_gates_and_by_programs() {
    if !has(Feature::Tcx) {
        return;
    }
    for device in [Device::Tap, Device::Veth] {
        let raw = flood(
            &["sender's own", "drops all", "gate drop", "gate hold"],
            device,
        );
        assert_eq!(raw.cases.len(), 8);
        for case in &raw.cases {
            assert_eq!(case.slices.len(), 1, "{}", case.name);
            assert!(case.slices[0].each() > 0.0, "{}", case.name);
            if let Some((sent, counted)) = case.counted {
                assert_eq!(sent, counted, "{}", case.name);
            }
        }
        let counting = raw.cases.iter().filter(|case| case.counted.is_some());
        assert_eq!(counting.count(), 5, "every gate counts");
    }
}

#[test]
fn a_flood_is_dropped_by_nft() {
    if !has(Feature::Nftables) {
        return;
    }
    let raw = flood(&["nft"], Device::Tap);
    assert_eq!(raw.cases.len(), 2);
    assert!(raw.cases.iter().all(|case| case.counted.is_some()));
}

#[test]
fn a_verdict_is_measured_with_few_endpoints_and_with_many() {
    let raw = scale::measure(&scale::Options {
        endpoints: vec![1, 100],
        ..scale_of(vec![Part::Verdict])
    })
    .unwrap();
    assert_eq!(raw.verdicts.len(), 2 * 4 * 2);
    assert!(raw.verdicts.iter().all(|verdict| verdict.ns[0] > 0.0));
}

#[test]
fn the_memory_of_few_endpoints_and_of_many_is_measured() {
    if !has(Feature::MapUsage) {
        return;
    }
    let raw = scale::measure(&scale::Options {
        endpoints: vec![1, 100],
        ..scale_of(vec![Part::Memory])
    })
    .unwrap();
    let bytes = |at: usize| {
        let mut maps = raw.memory[at].maps.iter();
        maps.find(|(name, _)| name == "ENDPOINTS").unwrap().1
    };
    assert!(bytes(1) > bytes(0), "{:?}", raw.memory);
    let commands = raw.memory.iter().flat_map(|memory| &memory.commands_kib);
    assert!(commands.clone().all(|(_, kib)| *kib > 0));
    assert_eq!(commands.count(), 6);
}

#[test]
fn all_who_were_held_are_connected_after_a_release() {
    let raw = scale::measure(&scale::Options {
        held: vec![300],
        ..scale_of(vec![Part::Release])
    })
    .unwrap();
    let release = &raw.releases[0];
    assert_eq!((release.held, release.open_ms.len()), (300, 1));
    assert!(release.handshakes_ms[0] > 0.0, "{release:?}");
}

#[test]
fn a_gate_closes_and_opens_with_its_word() {
    let raw = scale::measure(&scale::Options {
        endpoints: vec![1],
        ..scale_of(vec![Part::Toggle])
    })
    .unwrap();
    let toggle = &raw.toggles[0];
    // No SYN is held before the command begins, nor passes before the next one does.
    for times in [
        &toggle.hold_us,
        &toggle.held_us,
        &toggle.open_us,
        &toggle.passed_us,
        &toggle.store_closed_us,
        &toggle.store_open_us,
    ] {
        assert_eq!(times.len(), 2, "{toggle:?}");
        assert!(times.iter().all(|time| *time > 0.0), "{toggle:?}");
    }
}

fn scale_of(part: Vec<Part>) -> scale::Options {
    scale::Options {
        part,
        endpoints: vec![1],
        held: Vec::new(),
        rounds: 1,
        repeat: 1_000,
        releases: 1,
        toggles: 2,
        output: Output::default(),
    }
}

/// Each rig proves by itself that it is in the traffic's way, and what it keeps away.
#[test]
fn every_rig_beside_the_traffic_does_what_it_is_named_for() {
    if !has(Feature::Tcx) || !has(Feature::Nftables) {
        return;
    }
    // xdp-filter is no program of the tests.
    let rigs = ["nothing", "gate", "program", "iptables", "nft"];
    let raw = cost::measure(&cost::Options {
        part: vec![cost::Part::Thread],
        path: vec![Path::Veth, Path::Loopback],
        rig: rigs.map(str::to_owned).to_vec(),
        rounds: 1,
        repeat: 1,
        turns: 1,
        output: Output::default(),
    })
    .unwrap();
    assert_eq!(raw.traffic.len(), 2 * (11 + 7));
    for traffic in &raw.traffic {
        assert!(traffic.rate[0] > 0.0 && traffic.cpu[0] > 0.0, "{traffic:?}");
    }
}

#[test]
fn what_a_gate_costs_above_the_sender_is_told_beside_the_whole() {
    let case = |name: &str, kind: &str, each: u64| {
        json!({
            "device": "tap", "name": name, "kind": kind, "is_promised": kind == "gate-tc",
            "counted": null,
            "slices": [{ "packets": 10, "cpu_ns": each * 10, "wall_ns": each * 10 }],
        })
    };
    let cases = [
        case("sender", "sender", 100),
        case("all", "drop-tc", 200),
        case("gate drop", "gate-tc", 210),
    ];
    let raw = json!({ "version": 1, "slice_ms": 1, "cases": cases, "served": [] });
    let raw: Flood = serde_json::from_value(raw).unwrap();
    let text = raw.report().text;
    let row = "| gate drop | 210 | 210 to 210 | 110 | 4.76 M | - | 1.05 (<= 1.10) | 1.10 |";
    assert!(text.contains(row), "{text}");
}

#[test]
fn what_was_measured_of_the_cost_is_told_and_can_be_read_again() {
    let of = |rig: &str, rate: f64| cost::Traffic {
        path: Path::Veth.name().to_owned(),
        what: "bytes by one thread".to_owned(),
        rig: rig.to_owned(),
        is_gate: rig.starts_with("gate"),
        rate: vec![rate, rate * 2.0],
        cpu: vec![8e9 / rate, 4e9 / rate],
    };
    let raw = Cost {
        version: 1,
        packets: Vec::new(),
        traffic: vec![of("nothing", 40e9), of("gate, TC, open", 39e9)],
    };
    let folder = std::env::temp_dir().join(format!("gate-bench-cost-{}", std::process::id()));
    record::save(&folder, &raw).unwrap();
    let text = record::render::<Cost>(&folder).unwrap().unwrap().text;
    let row = "| gate, TC, open | 58.5 Gbit/s | 0.975 (0.975 to 0.975) |";
    assert!(text.contains(row), "{text}");
    assert_eq!(text, raw.report().text);
    let svg = std::fs::read_to_string(folder.join("cost-bytes-by-one-thread.svg")).unwrap();
    assert!(svg.contains("gate, TC, open") && !svg.contains("NaN"));
    std::fs::remove_dir_all(&folder).unwrap();
}
