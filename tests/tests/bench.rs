//! The benchmarks do what they say, in little. They need root.

use std::process::Command;

use gate_tests::bench::path::Path;
use gate_tests::bench::throughput::{self, By, What, measure};
use gate_tests::require::{Feature, has};
use serde_json::Value;

fn lab(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_gate-lab"))
        .arg("bench")
        .args(args)
        .arg("--json")
        .output()
        .unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn each_program_of_the_data_path_is_measured() {
    for hook in ["xdp", "tc-ingress", "tc-egress"] {
        let args = [
            "datapath", "--hook", hook, "--rounds", "1", "--repeat", "1000",
        ];
        let json = lab(&args);
        assert_eq!(json["hook"], hook);
        let cases = json["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            assert!(case["ns"].as_f64().unwrap() > 0.0, "{case}");
        }
    }
}

#[test]
fn a_connect_that_is_handed_over_is_measured() {
    if !has(Feature::NamespaceCookie) {
        return;
    }
    let json = lab(&[
        "handover",
        "--part",
        "connect",
        "--rounds",
        "2",
        "--connections",
        "5",
    ]);
    let cases = json["parts"][0]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        for what in ["without_ns", "with_ns"] {
            assert!(case[what]["median"].as_f64().unwrap() > 0.0, "{case}");
        }
    }
}

#[test]
fn traffic_gets_through_with_a_gate_and_without() {
    for ipv6 in [false, true] {
        for (path, what) in [
            (Path::Loopback, What::Connections),
            (Path::Loopback, What::In),
            (Path::Veth, What::Connections),
            (Path::Veth, What::In),
            (Path::Veth, What::Out),
        ] {
            let options = throughput::Options {
                path: vec![path],
                what: vec![what],
                by: vec![By::Thread],
                hook: "auto".to_owned(),
                ipv6,
                rounds: 1,
                seconds: 1,
                turns: 1,
                json: true,
            };
            let row = measure(&options, path, what, By::Thread).unwrap();
            for ratios in [&row.control, &row.open, &row.closed] {
                assert_eq!(ratios.len(), 1, "{row:?}");
                assert!(ratios[0] > 0.0, "{row:?}");
            }
            assert!(row.without > 0.0, "{row:?}");
        }
    }
}
