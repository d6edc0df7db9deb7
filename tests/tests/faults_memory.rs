//! Memory that runs out: a line, an exit code that is documented, and nothing left behind. Needs root.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{
    ENDPOINT, TARGET, assert_connects_at_once, assert_documented, assert_refusal, exists, gate,
    snapshot, up_with_service, with_gate,
};
use gate_tests::backend::Options;
use gate_tests::extent::Extent;
use gate_tests::service::Service;
use gate_tests::topology::{Output, Topology};

/// From this on the loader can start any program, in KiB of address space.
const LEAST: usize = 30_000;

/// Runs `gate` with so much address space, in KiB.
#[track_caller]
fn within(topology: &Topology, space: usize, args: &str) -> Output {
    with_gate(topology, &format!("ulimit -v {space}; exec \"$0\" {args}"))
}

#[test]
fn a_command_that_gets_no_memory_says_so_and_changes_nothing() {
    let topology = Topology::new().unwrap();
    let _service = Service::start(&topology, Options::new(TARGET)).unwrap();
    let step = Extent::wanted().pick(3_000, 250);
    let starts = (LEAST..).step_by(step);
    let first = starts
        .into_iter()
        .find(|space| within(&topology, *space, "--version").code() == 0);
    let before = snapshot(&topology);
    let check = "--check http://10.0.0.5:8080/";
    let restart = format!("restart {ENDPOINT} --max-hold 2s {check} -- true");
    let mut refused = 0;
    for space in (first.unwrap()..).step_by(step) {
        let output = within(&topology, space, &restart);
        assert_documented(&output);
        if output.code() == 0 {
            println!("{refused} sizes are too small, {space} KiB are enough");
            break;
        }
        assert!(
            output.stderr.lines().any(|line| line.starts_with("gate: ")),
            "{space}: {output}"
        );
        refused += 1;
        // Whoever dies may leave what the next command takes away.
        gate(&topology, &["down"]);
        assert_eq!(snapshot(&topology), before, "{space}: {output}");
        assert_connects_at_once(&topology, TARGET);
    }
    assert!(refused > 0);
}

/// A control group with a limit of memory, by cgroup v1 or v2.
struct Group(PathBuf);

impl Group {
    /// None where there is no memory controller.
    fn new() -> Option<Self> {
        let name = format!("gate-faults-{}", std::process::id());
        let roots = [
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/unified",
        ];
        roots
            .iter()
            .map(|root| Path::new(root).join(&name))
            .find_map(|path| {
                fs::create_dir(&path).ok()?;
                let group = Self(path);
                group.file().is_some().then_some(group)
            })
    }

    fn file(&self) -> Option<PathBuf> {
        let files = ["memory.limit_in_bytes", "memory.max"];
        files
            .iter()
            .map(|file| self.0.join(file))
            .find(|file| file.exists())
    }

    /// A shell line that runs the rest in the group, with so much memory, in MiB.
    fn line(&self, limit: usize) -> String {
        let file = self.file().unwrap();
        format!(
            "echo {limit}M > {} && echo $$ > {}/cgroup.procs && ",
            file.display(),
            self.0.display()
        )
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may still be leaving it.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(common::MS * 10);
        }
    }
}

#[test]
fn a_control_group_that_allows_too_little_is_told_or_ends_the_command() {
    let Some(group) = Group::new() else {
        gate_tests::require::skip("needs a memory controller of control groups");
        return;
    };
    let (topology, _service) = up_with_service();
    gate(&topology, &["down"]);
    let before = snapshot(&topology);
    let (mut told, mut killed, mut enough) = (0, 0, false);
    for limit in (2..200).step_by(2) {
        let line = group.line(limit) + "exec \"$0\" up eth0";
        let output = with_gate(&topology, &line);
        match output.code() {
            0 => {
                enough = true;
                break;
            }
            // The kernel's choice.
            137 => killed += 1,
            _ => {
                assert_refusal(&output, 1, &["not enough memory", "--held"]);
                told += 1;
            }
        }
        gate(&topology, &["down"]);
        assert_eq!(snapshot(&topology), before, "{limit} MiB: {output}");
    }
    println!("killed with {killed} limits, told with {told}");
    assert!(told > 0 && killed > 0 && enough, "{told}, {killed}");
    gate(&topology, &["down"]);
    assert!(!exists(&topology, common::ROOT));
}
