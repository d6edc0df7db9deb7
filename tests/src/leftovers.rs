//! What is left of a run of tests: BPF objects, pins, processes, namespaces and mounts that were not
//! there before.
//!
//! BPF objects and namespaces belong to the whole machine. Those that processes hold which are not the
//! run's, or that are pinned where these see it, are theirs; what a run leaks is held by its own
//! processes, or by nobody. What others attach and neither hold nor pin can't be told from that.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use clap::Args;
use gate_userspace::pins::BPFFS;

use crate::bpf;
use crate::text::parse_duration;

/// The environment variable that a run's processes inherit, and by which they are known.
pub const RUN: &str = "GATE_TEST_RUN";

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
    /// How long to wait until it is gone: the kernel frees programs, maps and network namespaces a while
    /// after their last holder
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub patience: Duration,
}

/// Whose things are looked at.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// Those of the run with this value of [`RUN`].
    Run(&'a str),
    /// Everybody's.
    All,
}

/// Notes what is there, or compares.
pub fn left(options: &Options) -> Result<()> {
    let whose = Whose::Run(&options.run);
    let Some(before) = &options.since else {
        let path = options
            .note
            .as_ref()
            .context("neither --note nor --since")?;
        let text: String = there(whose)?.iter().map(|it| format!("{it}\n")).collect();
        return fs::write(path, text).with_context(|| format!("write {}", path.display()));
    };
    let text = fs::read_to_string(before).with_context(|| format!("read {}", before.display()))?;
    let before: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    judge(&left_since(&before, whose, options.patience)?)
}

/// Fails where anything is left, and names it.
fn judge(left: &BTreeSet<String>) -> Result<()> {
    let names: Vec<&str> = left.iter().map(String::as_str).collect();
    match names.len() {
        0 => Ok(()),
        1 => bail!("1 thing is left that was not there before: {}", names[0]),
        many => bail!(
            "{many} things are left that were not there before: {}",
            names.join(", ")
        ),
    }
}

/// What is there that was not `before`, once nothing of that goes any more within `patience`.
pub fn left_since(
    before: &BTreeSet<String>,
    whose: Whose<'_>,
    patience: Duration,
) -> Result<BTreeSet<String>> {
    let late = Instant::now() + patience;
    // What comes after the first look is somebody else's.
    let mut left = new(before, &there(whose)?);
    while !left.is_empty() && Instant::now() < late {
        sleep(GLANCE);
        let still = there(whose)?;
        left.retain(|it| still.contains(it));
    }
    Ok(left)
}

/// What was not there before. Each line has what its thing is known by for as long as it is there: the
/// id of a BPF object, which the kernel gives out once; the inode of a pin and of a namespace; when a
/// process began; the id of a mount.
fn new(before: &BTreeSet<String>, now: &BTreeSet<String>) -> BTreeSet<String> {
    now.difference(before).cloned().collect()
}

/// All that a run of tests could leave behind, a line each.
pub fn there(whose: Whose<'_>) -> Result<BTreeSet<String>> {
    // Before it is looked who has them: what is made in between is nobody's yet.
    let objects = loaded();
    let processes = all_processes(whose);
    let theirs = match whose {
        Whose::Run(_) => of_others(&processes),
        Whose::All => BTreeSet::new(),
    };
    let mut found = BTreeSet::new();
    for (object, name) in objects {
        if !theirs.contains(&object) {
            found.insert(format!("{object}{name}"));
        }
    }
    pins(Path::new(BPFFS), &mut |path, inode| {
        found.insert(format!("pin {} ({inode})", path.display()));
    });
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").context("read the mounts")?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (id, point) = (words.next(), words.nth(3));
        let (id, point) = (id.unwrap_or_default(), point.unwrap_or_default());
        found.insert(format!("mount at {point} ({id})"));
    }
    let namespaces = |ours: bool| -> BTreeSet<&String> {
        let those = processes.iter().filter(|process| process.is_ours == ours);
        those.flat_map(|process| &process.namespaces).collect()
    };
    let (ours, others) = (namespaces(true), namespaces(false));
    found.extend(ours.difference(&others).map(|it| format!("namespace {it}")));
    if let Whose::Run(_) = whose {
        let ours = processes.iter().filter(|process| process.is_ours);
        found.extend(ours.map(Process::line));
    }
    Ok(found)
}

/// A BPF object of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Map(u32),
    Program(u32),
    Link(u32),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(id) => write!(f, "map {id}"),
            Self::Program(id) => write!(f, "program {id}"),
            Self::Link(id) => write!(f, "link {id}"),
        }
    }
}

/// All there are, and their names behind a space. What goes while it is looked at is not left.
fn loaded() -> Vec<(Object, String)> {
    let named = |object, name: Option<&str>| (object, format!(" {}", name.unwrap_or_default()));
    let maps = loaded_maps().flatten();
    let programs = loaded_programs().flatten();
    let links = loaded_links().flatten();
    maps.map(|map| named(Object::Map(map.id()), map.name_as_str()))
        .chain(programs.map(|it| named(Object::Program(it.id()), it.name_as_str())))
        .chain(links.map(|link| (Object::Link(link.id()), String::new())))
        .collect()
}

/// The objects that a descriptor is of, by what the kernel tells in /proc/PID/fdinfo: a link's program
/// as well.
fn objects_of(fdinfo: &str) -> impl Iterator<Item = Object> {
    fdinfo.lines().filter_map(|line| {
        let (name, id) = line.split_once(':')?;
        let id = id.trim().parse().ok()?;
        match name {
            "map_id" => Some(Object::Map(id)),
            "prog_id" => Some(Object::Program(id)),
            "link_id" => Some(Object::Link(id)),
            _ => None,
        }
    })
}

/// The objects that processes hold which are not the run's, or that are pinned where these see it, and
/// the maps of the programs among them.
fn of_others(processes: &[Process]) -> BTreeSet<Object> {
    let mut theirs = BTreeSet::new();
    let own = fs::read_link("/proc/thread-self/ns/mnt").unwrap_or_default();
    let mut seen = BTreeSet::from([own]);
    for process in processes.iter().filter(|process| !process.is_ours) {
        theirs.extend(&process.objects);
        let folder = PathBuf::from(format!("/proc/{}", process.id));
        let mounts = fs::read_link(folder.join("ns/mnt")).unwrap_or_default();
        if seen.insert(mounts) {
            let root = format!("{}/root{BPFFS}", folder.display());
            pins(Path::new(&root), &mut |path, _| theirs.extend(pinned(path)));
        }
    }
    let is_theirs = |id: u32| theirs.contains(&Object::Program(id));
    let programs = loaded_programs().flatten();
    let used: Vec<Object> = programs
        .filter(|program| is_theirs(program.id()))
        .filter_map(|program| program.map_ids().ok().flatten())
        .flat_map(|ids| ids.into_iter().map(Object::Map))
        .collect();
    theirs.extend(used);
    theirs
}

/// What is pinned there; nothing for a folder, or what goes meanwhile.
fn pinned(path: &Path) -> Vec<Object> {
    let Ok(fd) = bpf::pinned(path) else {
        return Vec::new();
    };
    let info = format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd());
    objects_of(&fs::read_to_string(info).unwrap_or_default()).collect()
}

/// Tells of each file and folder below a folder, with its inode.
fn pins(folder: &Path, tell: &mut impl FnMut(&Path, u64)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        tell(&path, entry.ino());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pins(&path, tell);
        }
    }
}

/// What a process is, and what it holds.
struct Process {
    id: u32,
    name: String,
    /// Since boot, in ticks.
    began: u64,
    is_ours: bool,
    namespaces: BTreeSet<String>,
    objects: BTreeSet<Object>,
}

impl Process {
    fn line(&self) -> String {
        format!("process {} {} ({})", self.id, self.name, self.began)
    }

    /// None where it is gone.
    fn read(id: u32, whose: Whose<'_>) -> Option<Self> {
        let folder = PathBuf::from(format!("/proc/{id}"));
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // The name is in brackets, and may have some itself.
        let (head, tail) = stat.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let began = tail.split_whitespace().nth(19)?.parse().ok()?;
        let is_ours = match whose {
            Whose::All => true,
            Whose::Run(run) => {
                let marker = format!("{RUN}={run}");
                let environment = fs::read(folder.join("environ")).unwrap_or_default();
                let mut variables = environment.split(|byte| *byte == 0);
                variables.any(|variable| variable == marker.as_bytes())
            }
        };
        let entries = |name: &str| fs::read_dir(folder.join(name)).into_iter().flatten();
        let links = entries("ns").chain(entries("fd")).flatten();
        let targets = links.filter_map(|entry| fs::read_link(entry.path()).ok());
        let names = targets.map(|target| target.to_string_lossy().into_owned());
        let is_namespace = |name: &String| {
            let mut kinds = ["net:[", "mnt:[", "pid:["].iter();
            kinds.any(|kind| name.starts_with(kind))
        };
        let infos = entries("fdinfo").flatten();
        let infos = infos.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        Some(Self {
            id,
            name: name.to_owned(),
            began,
            is_ours,
            namespaces: names.filter(is_namespace).collect(),
            objects: infos
                .flat_map(|info| objects_of(&info).collect::<Vec<_>>())
                .collect(),
        })
    }
}

/// All but this one, and those that are gone meanwhile.
fn all_processes(whose: Whose<'_>) -> Vec<Process> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id| *id != own)
        .filter_map(|id| Process::read(id, whose))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lines: &[&str]) -> BTreeSet<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn what_was_there_before_is_not_left_and_a_leak_is_named() {
        let before = set(&["map 7 HELD", "namespace net:[402]", "process 9 cat (100)"]);
        judge(&new(&before, &before)).unwrap();
        // What is gone is no leak.
        judge(&new(&before, &set(&["map 7 HELD"]))).unwrap();
        let mut after = before.clone();
        after.insert("map 8 HELD".to_owned());
        let error = judge(&new(&before, &after)).unwrap_err().to_string();
        let one = "1 thing is left that was not there before: map 8 HELD";
        assert_eq!(error, one);
        // Another process that has the number of one that is gone.
        after.insert("process 9 cat (200)".to_owned());
        let error = judge(&new(&before, &after)).unwrap_err().to_string();
        assert!(error.starts_with("2 things are left"), "{error}");
        assert!(
            error.ends_with(": map 8 HELD, process 9 cat (200)"),
            "{error}"
        );
    }

    #[test]
    fn the_kernel_tells_what_a_descriptor_is_of() {
        let of = |text| objects_of(text).collect::<Vec<_>>();
        assert_eq!(of("pos:\t0\nmap_id:\t12\n"), [Object::Map(12)]);
        let link = "link_type:\ttcx\nlink_id:\t3\nprog_tag:\tab\nprog_id:\t45\n";
        assert_eq!(of(link), [Object::Link(3), Object::Program(45)]);
        assert_eq!(of("pos:\t0\nflags:\t02\n"), []);
    }
}
