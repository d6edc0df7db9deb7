//! Any bytes as a configuration, as a request to the API, as an answer of the kernel's: they are read or
//! refused, and nothing panics. `fuzz/` goes on with the same functions for as long as one likes.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use gate_tests::extent::Extent;
use gate_tests::fuzz::{Inputs, TARGETS};

/// The seeds of a target.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn no_input_panics(name: &str, short: u32, full: u32) {
    let (_, target) = TARGETS.into_iter().find(|(it, _)| *it == name).unwrap();
    let run = |input: &[u8]| {
        let ended = catch_unwind(AssertUnwindSafe(|| target(input)));
        assert!(ended.is_ok(), "{name}: {}", input.escape_ascii());
    };
    let seeds = seeds(name);
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| run(seed));
    let extent = Extent::wanted();
    let mut inputs = Inputs::new(extent.pick(1, fastrand::u64(..)), seeds);
    for _ in 0..extent.pick(short, full) {
        run(&inputs.make());
    }
}

#[test]
fn any_bytes_are_a_configuration_or_are_refused() {
    no_input_panics("config", 10_000, 200_000);
}

#[test]
fn any_bytes_to_the_api_are_answered_or_refused() {
    no_input_panics("api", 2_000, 40_000);
}

#[test]
fn any_bytes_from_netlink_are_read_or_refused() {
    no_input_panics("netlink", 200_000, 5_000_000);
}
