//! The programs stay as small for the verifier as they were: what they grow in one kernel may be
//! what another refuses. Needs root.

use std::collections::BTreeMap;

use gate_tests::verifier::{PROGRAMS, STEERING, processed, processed_on_sockets};
use nix::sys::utsname::uname;

/// The most that any program may take on any kernel.
const LIMIT: u64 = 20_000;

/// What they took when that was last recorded: kernel, program, Ethernet header or none, figure.
const RECORDED: &str = include_str!("../verifier.txt");

/// `6.18` of `6.18.44-fc`.
fn version() -> String {
    let name = uname().unwrap();
    let release = name.release().to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']);
    let (major, minor) = (parts.next().unwrap(), parts.next().unwrap());
    format!("{major}.{minor}")
}

#[test]
fn no_program_takes_the_verifier_longer_than_it_did() {
    let version = version();
    let recorded: BTreeMap<(&str, &str), u64> = RECORDED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words[0] == version)
        .map(|words| ((words[1], words[2]), words[3].parse().unwrap()))
        .collect();
    let mut refused = Vec::new();
    let mut check = |name: &str, header: &str, figure: u64| {
        // As a line of the record.
        println!("{version} {name} {header} {figure}");
        let before = recorded.get(&(name, header)).copied();
        if figure > LIMIT || before.is_some_and(|before| figure * 10 > before * 11) {
            let before = before.map_or("never recorded".to_owned(), |it| format!("{it} before"));
            refused.push(format!("{name}, header {header}: {figure}, {before}"));
        }
    };
    for (header, layer3) in [("ethernet", false), ("none", true)] {
        for ((name, ..), figure) in PROGRAMS.iter().zip(processed(layer3).unwrap()) {
            if !layer3 || name.starts_with("gate_tc") {
                check(name, header, figure);
            }
        }
    }
    for ((name, ..), figure) in STEERING.iter().zip(processed_on_sockets().unwrap()) {
        check(name, "socket", figure);
    }
    // Told of all, so that they can be recorded at once.
    assert!(
        refused.is_empty(),
        "make it smaller (at most {LIMIT}), or record it in tests/verifier.txt and say why: {refused:#?}"
    );
}
