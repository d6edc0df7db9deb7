//! What a benchmark's figures depend on is asked before they are made. Needs root.

use std::path::Path;

use gate_tests::bench::setup::{Answer, Setup};

fn value<'a>(answers: &'a [Answer], name: &str) -> Option<&'a str> {
    let answer = answers.iter().find(|answer| answer.name == name);
    answer
        .unwrap_or_else(|| panic!("nobody asked {name}: {answers:?}"))
        .value
        .as_deref()
}

#[test]
fn the_programs_that_benchmarks_run_tell_their_versions() {
    let setup = Setup::here().unwrap().asked().unwrap();
    for (name, variable, word) in [
        ("iptables", "GATE_TEST_IPTABLES", "iptables v1."),
        ("nft", "GATE_TEST_NFT", "nftables v1."),
        ("HAProxy 2.6", "GATE_TEST_HAPROXY", "HAProxy version "),
        ("HAProxy 3.0", "GATE_TEST_HAPROXY_3", "HAProxy version 3."),
        (
            "xdp-filter",
            "GATE_TEST_XDP_FILTER",
            "xdp-filter version 1.",
        ),
        ("iperf3", "GATE_TEST_IPERF3", "iperf 3."),
    ] {
        let told = value(&setup.programs, name);
        // A machine may lack what the variable names; then the page says so.
        match std::env::var_os(variable) {
            Some(path) if Path::new(&path).exists() => {
                assert!(
                    told.is_some_and(|told| told.starts_with(word)),
                    "{name}: {told:?}"
                );
            }
            Some(_) => assert_eq!(told, None, "{name}"),
            // It is the system's, of whatever release.
            None => assert!(told.is_none_or(|told| told.contains(['1', '2', '3']))),
        }
    }
    assert!(
        value(&setup.programs, "tc")
            .unwrap()
            .starts_with("tc utility, ")
    );
}

#[test]
fn what_the_network_does_by_itself_is_known() {
    let setup = Setup::here().unwrap().asked().unwrap();
    for name in [
        "net.core.somaxconn",
        "net.ipv4.tcp_max_syn_backlog",
        "net.core.netdev_max_backlog",
    ] {
        let number = value(&setup.sysctls, name).unwrap();
        assert!(number.parse::<u32>().unwrap() > 0, "{name}: {number}");
    }
    let cookies = value(&setup.sysctls, "net.ipv4.tcp_syncookies").unwrap();
    assert!(["0", "1", "2"].contains(&cookies), "{cookies}");
    for name in ["GRO", "GSO", "TSO", "TX checksums", "RX checksums"] {
        let word = value(&setup.offloads, name).unwrap();
        assert!(["on", "off"].contains(&word), "{name}: {word}");
    }
    // As a new veth interface is.
    assert_eq!(value(&setup.offloads, "TSO"), Some("on"));
}
