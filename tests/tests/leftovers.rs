//! What `cargo xtask faults` looks for at its end is found where it is left. Needs root.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{MS, ROOT, gate, up};
use gate_tests::foreign;
use gate_tests::leftovers::{RUN, left_since, there};
use gate_tests::topology::{INTERFACE, SCRATCH, Side, Topology};
use nix::mount::{MsFlags, mount};

/// What is left within a moment, of that which has this in its line.
fn left(before: &BTreeSet<String>, run: &str, word: &str) -> usize {
    let left = left_since(before, run, MS * 300).unwrap();
    left.iter().filter(|it| it.contains(word)).count()
}

#[test]
fn objects_that_outlive_a_run_are_told() {
    let before = there("none").unwrap();
    // Nobody else calls theirs so, so tests that run at the same time do no harm.
    let name = "foreign";
    let program = foreign::classifier(0).unwrap();
    assert_eq!(left(&before, "none", name), 1);
    drop(program);
    // The kernel frees it a while later.
    let late = left_since(&before, "none", Duration::from_secs(10)).unwrap();
    assert!(!late.iter().any(|it| it.contains(name)), "{late:?}");

    let topology = Topology::new().unwrap();
    // XDP is attached by a link on every kernel.
    gate(&topology, &["up", "--hook", "xdp-generic", INTERFACE]);
    for kind in [
        "map ",
        "program ",
        "link ",
        "namespace net:[",
        "namespace pid:[",
    ] {
        assert!(left(&before, "none", kind) > 0, "{kind}");
    }
    drop(topology);
}

#[test]
fn pins_and_processes_that_outlive_a_run_are_told() {
    let topology = up();
    let inside = |run: &'static str, before: &BTreeSet<String>| {
        let before = before.clone();
        topology.run(Side::Server, move || left_since(&before, run, MS * 300))
    };
    let pins = inside("none", &BTreeSet::new()).unwrap();
    assert!(
        pins.iter()
            .any(|it| it.starts_with(&format!("pin {ROOT}/"))),
        "{pins:?}"
    );

    let run = format!("test-{}", std::process::id());
    let before = there(&run).unwrap();
    let mut daemon = Command::new("sleep");
    daemon.arg("600").env(RUN, &run);
    let daemon = topology.spawn(Side::Server, &mut daemon).unwrap();
    assert_eq!(left(&before, &run, "process "), 1);
    assert_eq!(left(&before, "another", "process "), 0);
    drop(topology);
    assert!(daemon.has_ended().unwrap());
    assert_eq!(left(&before, &run, "process "), 0);
}

#[test]
fn a_mount_that_outlives_a_run_is_told() {
    let topology = Topology::new().unwrap();
    let left = topology.run(Side::Server, || {
        let before = there("none")?;
        let point = Path::new(SCRATCH).join("left");
        fs::create_dir(&point)?;
        let none = None::<&str>;
        mount(Some("none"), &point, Some("tmpfs"), MsFlags::empty(), none)?;
        left_since(&before, "none", MS * 300)
    });
    let left = left.unwrap();
    assert!(left.contains("mount at /run/left"), "{left:?}");
}
