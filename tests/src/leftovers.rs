//! What is left of a run of tests: BPF objects, pins, processes, namespaces and mounts that were not
//! there before.
//!
//! BPF objects and namespaces belong to the whole machine, so what others make meanwhile counts, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use clap::Args;
use gate_userspace::pins::BPFFS;

/// The environment variable that a run's processes inherit, and by which they are known.
pub const RUN: &str = "GATE_TEST_RUN";

/// The kernel frees programs, maps and network namespaces a while after their last holder is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks.
const GLANCE: Duration = Duration::from_millis(100);

/// The command line of `gate-lab left`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Write down what is there
    #[arg(long, value_name = "FILE", conflicts_with = "since")]
    pub note: Option<PathBuf>,
    /// Fail where something is there that was not when this file was written
    #[arg(long, value_name = "FILE", required_unless_present = "note")]
    pub since: Option<PathBuf>,
    /// The value of GATE_TEST_RUN of the run whose processes are looked for
    #[arg(long, value_name = "NAME")]
    pub run: String,
}

/// Notes what is there, or compares.
pub fn left(options: &Options) -> Result<()> {
    let Some(before) = &options.since else {
        let path = options
            .note
            .as_ref()
            .context("neither --note nor --since")?;
        let text: String = there(&options.run)?
            .iter()
            .map(|it| format!("{it}\n"))
            .collect();
        return fs::write(path, text).with_context(|| format!("write {}", path.display()));
    };
    let text = fs::read_to_string(before).with_context(|| format!("read {}", before.display()))?;
    let before: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let left = left_since(&before, &options.run, PATIENCE)?;
    if !left.is_empty() {
        bail!(
            "{} things are left that were not there before: {}",
            left.len(),
            left.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

/// What is there that was not `before`, once nothing of that goes any more within `patience`.
pub fn left_since(
    before: &BTreeSet<String>,
    run: &str,
    patience: Duration,
) -> Result<BTreeSet<String>> {
    let late = Instant::now() + patience;
    // What comes after the first look is somebody else's.
    let mut left: BTreeSet<String> = there(run)?.difference(before).cloned().collect();
    while !left.is_empty() && Instant::now() < late {
        sleep(GLANCE);
        let still = there(run)?;
        left.retain(|it| still.contains(it));
    }
    Ok(left)
}

/// All that a run of tests could leave behind, a line each.
pub fn there(run: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    // What goes while it is looked at is not left.
    for map in loaded_maps().flatten() {
        let name = map.name_as_str().unwrap_or_default();
        found.insert(format!("map {} {name}", map.id()));
    }
    for program in loaded_programs().flatten() {
        let name = program.name_as_str().unwrap_or_default();
        found.insert(format!("program {} {name}", program.id()));
    }
    for link in loaded_links().flatten() {
        found.insert(format!("link {}", link.id()));
    }
    pins(Path::new(BPFFS), &mut found);
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").context("read the mounts")?;
    for line in mounts.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        found.insert(format!("mount at {point}"));
    }
    processes(run, &mut found);
    Ok(found)
}

/// The files below a folder.
fn pins(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(format!("pin {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pins(&path, found);
        }
    }
}

/// The run's processes, and the namespaces that anybody's processes are in or hold.
fn processes(run: &str, found: &mut BTreeSet<String>) {
    let marker = format!("{RUN}={run}");
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) || name == own {
            continue;
        }
        let process = entry.path();
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let is_of_run = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == marker.as_bytes());
        if is_of_run {
            let line = fs::read_to_string(process.join("comm")).unwrap_or_default();
            found.insert(format!("process {name} {}", line.trim()));
        }
        for folder in ["ns", "fd"] {
            for held in fs::read_dir(process.join(folder))
                .into_iter()
                .flatten()
                .flatten()
            {
                let target = fs::read_link(held.path()).unwrap_or_default();
                let target = target.to_string_lossy();
                if ["net:[", "mnt:[", "pid:["]
                    .iter()
                    .any(|kind| target.starts_with(kind))
                {
                    found.insert(format!("namespace {target}"));
                }
            }
        }
    }
}
