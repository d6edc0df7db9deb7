//! What `cargo xtask faults` looks for at its end is found where it is left. Needs root.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use common::{MS, ROOT, gate, up, wait_until};
use gate_tests::foreign;
use gate_tests::leftovers::{RUN, Whose, left_since, there};
use gate_tests::topology::{INTERFACE, SCRATCH, Side, Topology};

use gate_userspace::pins::BPFFS;
use gate_userspace::sys;
use nix::mount::{MsFlags, mount};

/// What is left within a moment, of that which has this in its line.
fn left(before: &BTreeSet<String>, whose: Whose<'_>, word: &str) -> usize {
    let left = left_since(before, whose, MS * 300).unwrap();
    left.iter().filter(|it| it.contains(word)).count()
}

#[test]
fn objects_that_outlive_a_run_are_told() {
    let before = there(Whose::All).unwrap();
    // Nobody else calls theirs so, so tests that run at the same time do no harm.
    let name = "foreign";
    let program = foreign::classifier(0).unwrap();
    assert_eq!(left(&before, Whose::All, name), 1);
    drop(program);
    // The kernel frees it a while later.
    let late = left_since(&before, Whose::All, Duration::from_secs(10)).unwrap();
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
        assert!(left(&before, Whose::All, kind) > 0, "{kind}");
    }
    drop(topology);
}

#[test]
fn pins_and_processes_that_outlive_a_run_are_told() {
    let topology = up();
    let none = BTreeSet::new();
    let inside = || left_since(&none, Whose::All, MS * 300);
    let pins = topology.run(Side::Server, inside).unwrap();
    assert!(
        pins.iter()
            .any(|it| it.starts_with(&format!("pin {ROOT}/"))),
        "{pins:?}"
    );

    let run = format!("test-{}", std::process::id());
    let before = there(Whose::Run(&run)).unwrap();
    let mut daemon = Command::new("sleep");
    daemon.arg("600").env(RUN, &run);
    let daemon = topology.spawn(Side::Server, &mut daemon).unwrap();
    assert_eq!(left(&before, Whose::Run(&run), "process "), 1);
    assert_eq!(left(&before, Whose::Run("another"), "process "), 0);
    drop(topology);
    assert!(daemon.has_ended().unwrap());
    assert_eq!(left(&before, Whose::Run(&run), "process "), 0);
}

#[test]
fn a_mount_that_outlives_a_run_is_told() {
    let topology = Topology::new().unwrap();
    let left = topology.run(Side::Server, || {
        let before = there(Whose::All)?;
        let point = Path::new(SCRATCH).join("left");
        fs::create_dir(&point)?;
        let none = None::<&str>;
        mount(Some("none"), &point, Some("tmpfs"), MsFlags::empty(), none)?;
        left_since(&before, Whose::All, MS * 300)
    });
    let left = left.unwrap();
    let is_it = |it: &String| it.starts_with("mount at /run/left (");
    assert!(left.iter().any(is_it), "{left:?}");
}

/// A process that holds a program of this name, of this run.
fn holder(program: &OwnedFd, run: &str) -> Child {
    let program = program.try_clone().unwrap();
    let mut command = Command::new("sleep");
    command.arg("600").env(RUN, run).stdin(program);
    command.spawn().unwrap()
}

#[test]
fn what_processes_of_others_hold_or_see_pinned_is_theirs() {
    let before = there(Whose::Run("mine")).unwrap();
    let program = foreign::named("left_theirs").unwrap();
    let mut theirs = holder(&program, "another");
    let mine = || left(&before, Whose::Run("mine"), "left_theirs");
    assert_eq!(mine(), 0);
    let mut ours = holder(&program, "mine");
    // Still: who shares it may be who made it.
    assert_eq!(mine(), 0);
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    // A child of another test, between fork and exec, may have it for a moment.
    wait_until("it is ours", || mine() == 1);
    ours.kill().unwrap();
    ours.wait().unwrap();
    // Pinned where only processes of a topology see it, and held by nobody.
    let topology = up();
    let pinned = topology.run(Side::Server, || {
        sys::pin(program.as_fd(), &Path::new(BPFFS).join("left_theirs"))?;
        Ok(())
    });
    pinned.unwrap();
    drop(program);
    assert_eq!(mine(), 0);
    let all = there(Whose::All).unwrap();
    assert!(all.iter().any(|it| it.contains("left_theirs")), "{all:?}");
}

#[test]
fn a_run_that_leaks_fails_and_the_leak_is_named() {
    let run = format!("leaks-{}", std::process::id());
    let note = std::env::temp_dir().join(&run);
    let lab_with = |patience: &str, what: &str| {
        let mut command = Command::new(gate_tests::exe::lab().unwrap());
        command.args(["left", "--patience", patience, "--run", &run, what]);
        command.arg(&note).output().unwrap()
    };
    let lab = |what: &str| lab_with("300ms", what);
    let noted = lab("--note");
    assert!(noted.status.success(), "{noted:?}");
    let program = foreign::named("left_leak").unwrap();
    let mut leaked = holder(&program, &run);
    drop(program);
    let told = lab("--since");
    let stderr = String::from_utf8(told.stderr).unwrap();
    assert_eq!(told.status.code(), Some(1), "{stderr}");
    for name in [" left_leak", " sleep ("] {
        assert!(stderr.contains(name), "{stderr}");
    }
    leaked.kill().unwrap();
    leaked.wait().unwrap();
    // Others on this machine may leak meanwhile, but not this.
    let stderr = String::from_utf8(lab_with("5s", "--since").stderr).unwrap();
    assert!(!stderr.contains("left_leak"), "{stderr}");
    fs::remove_file(note).unwrap();
}
