//! However the laboratory ends, it leaves no process, no namespace and no mount. Needs root.
//!
//! A file of its own: the kernel gives the numbers of namespaces out again, so nobody else may make
//! any meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gate_tests::topology::{Side, Topology};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);

/// Held by each test: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes whose environment has this marker, by what every process inherits.
fn marked(marker: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == marker.as_bytes())
        {
            found.push(entry.path());
        }
    }
    found
}

/// Every namespace that a process or thread is in, or holds a descriptor of, as `net:[402653…]`.
fn namespaces(processes: impl IntoIterator<Item = PathBuf>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for process in processes {
        let mut folders = vec![process.join("ns"), process.join("fd")];
        let threads = fs::read_dir(process.join("task"))
            .into_iter()
            .flatten()
            .flatten();
        folders.extend(threads.map(|thread| thread.path().join("ns")));
        for entry in folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten()
        {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let name = target.to_string_lossy().into_owned();
            if ["net:[", "mnt:[", "pid:["]
                .iter()
                .any(|kind| name.starts_with(kind))
            {
                found.insert(name);
            }
        }
    }
    found
}

fn all_processes() -> impl Iterator<Item = PathBuf> {
    let is_process = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(is_process)
}

/// A demo under load, marked, with its processes running.
struct Demo {
    child: Child,
    marker: String,
    own: BTreeSet<String>,
    mounts: String,
}

impl Demo {
    fn start(name: &str) -> Self {
        let marker = format!("GATE_LAB_TEST={name}-{}", std::process::id());
        let (key, value) = marker.split_once('=').unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let machine = namespaces([PathBuf::from("/proc/self")]);
        let child = Command::new(env!("CARGO_BIN_EXE_gate-lab"))
            .args(["demo", "--only", "none", "--svg", "/dev/null"])
            .env(key, value)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The demo, the first process of its namespace, and the backend; under load for a while.
        let late = Instant::now() + LIMIT;
        while marked(&marker).len() < 3 {
            assert!(Instant::now() < late, "the demo did not come up");
            sleep(MS * 10);
        }
        sleep(MS * 1_700);
        let inside = namespaces(marked(&marker));
        let own: BTreeSet<_> = inside.difference(&machine).cloned().collect();
        assert!(
            own.len() >= 5,
            "two networks, two sets of mounts, one of processes: {own:?}"
        );
        Self {
            child,
            marker,
            own,
            mounts,
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// What is left of it: processes, namespaces, and changes to the machine's mounts.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<_> = marked(&self.marker)
            .iter()
            .map(|process| process.display().to_string())
            .collect();
        left.extend(namespaces(all_processes()).intersection(&self.own).cloned());
        if fs::read_to_string("/proc/self/mountinfo").unwrap() != self.mounts {
            left.push("a mount".into());
        }
        left
    }
}

#[test]
fn a_topology_that_is_dropped_leaves_nothing() {
    let _alone = alone();
    let marker = format!("GATE_LAB_TEST=dropped-{}", std::process::id());
    let (key, value) = marker.split_once('=').unwrap();
    let topology = Topology::new().unwrap();
    let mut daemon = Command::new("sh");
    daemon
        .args(["-c", "setsid sleep 600 & sleep 600 &"])
        .env(key, value);
    topology
        .output(Side::Server, &mut daemon, LIMIT)
        .unwrap()
        .ok()
        .unwrap();
    // One that ignores signals, and whose handle outlives the topology.
    let mut stubborn = Command::new("sh");
    stubborn
        .args(["-c", "trap '' TERM INT HUP; sleep 600"])
        .env(key, value);
    let stubborn = topology.spawn(Side::Client, &mut stubborn).unwrap();
    sleep(MS * 100);
    let own = namespaces(marked(&marker));
    assert!(marked(&marker).len() >= 3, "{:?}", marked(&marker));
    drop(topology);
    assert!(marked(&marker).is_empty(), "{:?}", marked(&marker));
    assert!(stubborn.has_ended().unwrap());
    let machine = namespaces([PathBuf::from("/proc/self")]);
    let left: Vec<_> = namespaces(all_processes())
        .intersection(&own)
        .cloned()
        .collect();
    assert!(left.iter().all(|name| machine.contains(name)), "{left:?}");
}

#[test]
fn a_demo_that_is_killed_leaves_nothing() {
    let _alone = alone();
    let mut demo = Demo::start("killed");
    demo.signal(Signal::SIGKILL);
    demo.child.wait().unwrap();
    // All is dead at once, but it stays until the machine's first process has reaped it.
    let late = Instant::now() + LIMIT;
    while !demo.left().is_empty() {
        assert!(Instant::now() < late, "left: {:?}", demo.left());
        sleep(MS * 10);
    }
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_and_says_so_by_its_code() {
    let _alone = alone();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut demo = Demo::start(signal.as_str());
        demo.signal(signal);
        assert_eq!(demo.child.wait().unwrap().code(), Some(code));
        assert!(demo.left().is_empty(), "{:?}", demo.left());
    }
}
