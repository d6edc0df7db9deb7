//! Debian packages, unpacked into a folder of one's own: no root, nothing installed.
//!
//! apt checks signatures and hashes as ever. It works on lists and a configuration of its own, so
//! the system's stay as they are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{found, output, run};

/// The keys of Debian's archive, where Debian's own package puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What [`mirror`] reads of each of apt's indexes.
const INDEX: &str = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)";

/// One package as `apt-cache show` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, epoch and all.
    pub version: String,
    /// Bytes to download.
    pub size: u64,
    /// `libs` for shared libraries.
    pub section: String,
    /// Each entry is met by any one of its names.
    pub depends: Vec<Vec<String>>,
}

/// apt, working in a folder of its own.
pub struct Apt {
    folder: PathBuf,
    installed: BTreeSet<String>,
    lists_complete: bool,
}

impl Apt {
    /// Whether this system has what [`Apt::open`] needs.
    pub fn available() -> bool {
        [
            "apt-get",
            "apt-cache",
            "apt-config",
            "dpkg",
            "dpkg-deb",
            "dpkg-query",
        ]
        .into_iter()
        .all(found)
    }

    /// Reads the package lists anew, into `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut apt = Self::prepare(folder.join("apt"), "")?;
        apt.update();
        Ok(apt)
    }

    /// The same for suites of Debian's archive, as `sid`, from the mirror that the system uses. The
    /// last of them goes before the others.
    pub fn of_suites(&self, suites: &[&str]) -> Result<Self> {
        let indexes = output(&mut self.command(
            "apt-get",
            ["indextargets", "--format", INDEX, "Created-By: Packages"],
        ))?;
        let Some(mirror) = mirror(&indexes) else {
            bail!("none of apt's sources is Debian's own archive: add one");
        };
        let signed = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        let folder = self.folder.join("suites");
        let sources = folder.join("sources.list");
        let configuration = format!(
            "APT::Default-Release \"{}\";\n\
             Dir::Etc::sourcelist \"{}\";\n\
             Dir::Etc::sourceparts \"{}/none\";\n",
            suites.last().copied().unwrap_or_default(),
            sources.display(),
            folder.display()
        );
        let mut apt = Self::prepare(folder, &configuration)?;
        let lines: String = suites
            .iter()
            .map(|suite| format!("deb {signed}{mirror} {suite} main\n"))
            .collect();
        fs::write(&sources, lines).with_context(|| format!("write {}", sources.display()))?;
        apt.update();
        Ok(apt)
    }

    /// Makes the folders, and a configuration of the system's and `more`.
    fn prepare(folder: PathBuf, more: &str) -> Result<Self> {
        for part in [
            "lists/partial",
            "cache/archives/partial",
            "state",
            "none",
            "debs",
        ] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        }
        let system = output(Command::new("apt-config").arg("dump"))?;
        let configuration = folder.join("apt.conf");
        let text = private_configuration(&system, &folder) + more;
        fs::write(&configuration, text)
            .with_context(|| format!("write {}", configuration.display()))?;
        let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
        let states = output(Command::new("dpkg-query").args([
            "-W",
            "-f",
            "${db:Status-Status} ${Architecture} ${Package}\\n",
        ]))?;
        Ok(Self {
            folder,
            lists_complete: true,
            installed: installed(&states, architecture.trim()),
        })
    }

    fn update(&mut self) {
        eprintln!("Reading Debian's package lists (about 10 MB).");
        // A list that can't be read may be of a source that isn't needed: a missing package will
        // tell.
        self.lists_complete = run(&mut self.command("apt-get", ["update"])).is_ok();
    }

    /// The candidates of these names; a name that apt doesn't know is left out.
    pub fn show<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<Package>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = self.command("apt-cache", ["show", "--no-all-versions"]);
        command.args(names.iter().map(AsRef::as_ref));
        // apt-cache fails when it doesn't know a name, and still tells of the others.
        let output = command
            .stderr(Stdio::null())
            .output()
            .context("run apt-cache show")?;
        Ok(parse_packages(&String::from_utf8_lossy(&output.stdout)))
    }

    /// `roots`, and what they need and the system lacks; see [`needed`].
    pub fn with_needs(&self, roots: &[&str], always: fn(&str) -> bool) -> Result<Vec<Package>> {
        let packages = needed(roots, always, &self.installed, |names| self.show(names))?;
        for root in roots {
            if !packages.iter().any(|package| package.name == *root) {
                let why = if self.lists_complete {
                    ""
                } else {
                    ", and can't read all its lists"
                };
                bail!("apt has no package {root}{why}");
            }
        }
        Ok(packages)
    }

    /// Downloads the packages and unpacks them into one folder, which it returns.
    pub fn unpack(&self, packages: &[Package]) -> Result<PathBuf> {
        let debs = self.folder.join("debs");
        let mut download = self.command("apt-get", ["download"]);
        download.current_dir(&debs).args(
            packages
                .iter()
                .map(|package| format!("{}={}", package.name, package.version)),
        );
        run(&mut download)?;
        let root = self.folder.join("root");
        fs::create_dir(&root).with_context(|| format!("create {}", root.display()))?;
        let mut unpacked = 0;
        for entry in fs::read_dir(&debs).with_context(|| format!("list {}", debs.display()))? {
            let deb = entry
                .with_context(|| format!("list {}", debs.display()))?
                .path();
            run(Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&deb)
                .arg(&root))?;
            unpacked += 1;
        }
        if unpacked != packages.len() {
            bail!(
                "apt-get download left {unpacked} of {} packages",
                packages.len()
            );
        }
        Ok(root)
    }

    fn command<const N: usize>(&self, program: &str, args: [&str; N]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }
}

/// Where the system has Debian's archive from.
fn mirror(indexes: &str) -> Option<&str> {
    let wanted = "Debian|Debian|main|";
    indexes.lines().find_map(|line| line.strip_prefix(wanted))
}

/// The folders for LD_LIBRARY_PATH in an unpacked tree.
pub fn library_folders(root: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["usr/lib", "lib"]
        .iter()
        .filter_map(|base| fs::read_dir(root.join(base)).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.is_dir()
                && path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().contains("-linux-"))
        })
        .collect();
    folders.sort();
    folders
}

/// The number of packages and their size, for a message.
pub fn size(packages: &[Package]) -> String {
    let bytes: u64 = packages.iter().map(|package| package.size).sum();
    let plural = if packages.len() == 1 { "" } else { "s" };
    format!(
        "{} package{plural}, {} MB",
        packages.len(),
        bytes.div_ceil(1_000_000)
    )
}

/// What to fetch: `roots`, what they depend on among `always`, and the shared libraries the
/// system lacks. Other dependencies are programs (a compiler, a service's set-up) that unpacking
/// would not make work.
fn needed(
    roots: &[&str],
    always: fn(&str) -> bool,
    installed: &BTreeSet<String>,
    mut show: impl FnMut(&[String]) -> Result<Vec<Package>>,
) -> Result<Vec<Package>> {
    let mut seen: BTreeSet<String> = roots.iter().map(|&root| root.to_owned()).collect();
    let mut ask: Vec<String> = seen.iter().cloned().collect();
    let mut chosen = Vec::new();
    while !ask.is_empty() {
        let answer = show(&ask)?;
        ask.clear();
        for package in answer {
            let root = roots.contains(&package.name.as_str());
            if !root && !always(&package.name) && !is_library(&package) {
                continue;
            }
            for alternatives in &package.depends {
                let met = |name: &String| {
                    seen.contains(name) || (installed.contains(name) && !always(name))
                };
                if !alternatives.iter().any(met)
                    && let Some(name) = alternatives.first()
                {
                    seen.insert(name.clone());
                    ask.push(name.clone());
                }
            }
            chosen.push(package);
        }
    }
    chosen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(chosen)
}

/// A section may have an area before it: `contrib/libs`.
fn is_library(package: &Package) -> bool {
    package.section.rsplit('/').next() == Some("libs")
}

/// apt's own answer for how to reach its sources (a proxy, say), and nothing else of the system's:
/// its hooks would run commands as root.
fn private_configuration(system: &str, folder: &Path) -> String {
    let mut text = String::new();
    for line in system.lines() {
        let kept = line.starts_with("Acquire::") || line.starts_with("Dir::Etc");
        let replaced = [
            "Acquire::IndexTargets",
            "Acquire::Languages",
            "Dir::Etc::main",
            "Dir::Etc::parts",
        ];
        if kept && !replaced.iter().any(|name| line.starts_with(name)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    let folder = folder.display();
    text.push_str(&format!(
        "Acquire::Languages \"none\";\n\
         Acquire::Retries \"2\";\n\
         Acquire::http::Timeout \"20\";\n\
         Acquire::https::Timeout \"20\";\n\
         APT::Update::Error-Mode \"any\";\n\
         APT::Sandbox::User \"root\";\n\
         Debug::NoLocking \"1\";\n\
         Dir::Etc::main \"none\";\n\
         Dir::Etc::parts \"{folder}/none\";\n\
         Dir::State \"{folder}/state\";\n\
         Dir::State::Lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}/cache\";\n"
    ));
    text
}

fn installed(states: &str, architecture: &str) -> BTreeSet<String> {
    states
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (state, of, name) = (words.next()?, words.next()?, words.next()?);
            (state == "installed" && (of == architecture || of == "all")).then(|| name.to_owned())
        })
        .collect()
}

fn parse_packages(text: &str) -> Vec<Package> {
    text.split("\n\n")
        .map(parse_package)
        .filter(|package| !package.name.is_empty())
        .collect()
}

fn parse_package(text: &str) -> Package {
    let mut package = Package::default();
    for line in text.lines() {
        let Some((field, value)) = line.split_once(": ") else {
            continue;
        };
        match field {
            "Package" => package.name = value.to_owned(),
            "Version" => package.version = value.to_owned(),
            "Section" => package.section = value.to_owned(),
            "Size" => package.size = value.parse().unwrap_or(0),
            "Depends" | "Pre-Depends" => package.depends.extend(parse_depends(value)),
            _ => {}
        }
    }
    package
}

/// `a (>= 1), b | c:any` without versions and architectures.
fn parse_depends(value: &str) -> impl Iterator<Item = Vec<String>> {
    value.split(',').map(|entry| {
        entry
            .split('|')
            .filter_map(|name| name.split([' ', '(', ':']).find(|part| !part.is_empty()))
            .map(str::to_owned)
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "\
Package: libstd-rust-dev
Version: 1.96.0+dfsg1-1
Depends: libstd-rust-1.96 (= 1.96.0+dfsg1-1)
Description-en: Rust standard libraries - development files
 Depends: this is prose
Section: libdevel
Size: 35

Package: libstd-rust-1.96
Version: 1.96.0+dfsg1-1
Pre-Depends: libllvm22
Depends: libc6 (>= 2.34), libz3-4:any | libz3-5
Section: libs
Size: 21

Package: libllvm22
Version: 1:22.1.8-1
Depends: zlib1g, gcc | clang
Section: libs
Size: 29

Package: libz3-4
Version: 4
Section: libs
Size: 7

Package: gcc
Version: 12
Section: devel
Size: 1
";

    fn names(installed: &[&str]) -> Vec<String> {
        let known = parse_packages(SHOWN);
        let installed = installed.iter().map(|&name| name.to_owned()).collect();
        let chosen = needed(
            &["libstd-rust-dev"],
            |name| name.starts_with("libllvm"),
            &installed,
            |names| {
                Ok(known
                    .iter()
                    .filter(|package| names.contains(&package.name))
                    .cloned()
                    .collect())
            },
        );
        chosen
            .unwrap()
            .into_iter()
            .map(|package| package.name)
            .collect()
    }

    #[test]
    fn fields_are_read() {
        let packages = parse_packages(SHOWN);
        assert_eq!(packages.len(), 5);
        assert_eq!(packages[1].version, "1.96.0+dfsg1-1");
        assert_eq!(
            packages[1].depends,
            [vec!["libllvm22"], vec!["libc6"], vec!["libz3-4", "libz3-5"]]
        );
        assert_eq!(size(&packages[..2]), "2 packages, 1 MB");
    }

    #[test]
    fn what_the_system_has_is_not_fetched() {
        assert_eq!(
            names(&["libc6", "zlib1g", "libz3-5"]),
            ["libllvm22", "libstd-rust-1.96", "libstd-rust-dev"]
        );
    }

    #[test]
    fn missing_libraries_are_fetched_but_no_programs() {
        assert_eq!(
            names(&["libc6", "libllvm22"]),
            [
                "libllvm22",
                "libstd-rust-1.96",
                "libstd-rust-dev",
                "libz3-4"
            ]
        );
    }

    #[test]
    fn only_this_architecture_counts_as_installed() {
        let states = "installed amd64 libc6\ninstalled i386 libz3-4\nconfig-files amd64 nginx\ninstalled all adduser\n";
        let expected = ["adduser", "libc6"].map(str::to_owned);
        assert_eq!(installed(states, "amd64"), BTreeSet::from(expected));
    }

    #[test]
    fn the_mirror_is_that_of_debians_archive() {
        let indexes = "Debian|Debian-Security|main|http://mirror/debian-security/\n\
                       Ubuntu|Ubuntu|main|http://mirror/ubuntu/\n\
                       Debian|Debian|main|http://mirror/debian/\n";
        assert_eq!(mirror(indexes), Some("http://mirror/debian/"));
        assert_eq!(mirror(""), None);
    }

    #[test]
    fn the_systems_hooks_are_left_out() {
        let system = "APT::Update::Post-Invoke:: \"rm -rf x\";\n\
                      DPkg::Post-Invoke:: \"y\";\n\
                      Acquire::http::Proxy \"p\";\n\
                      Acquire::IndexTargets::deb::DEP-11 \"z\";\n\
                      Dir::Etc::parts \"apt.conf.d\";\n";
        let text = private_configuration(system, Path::new("/c"));
        assert!(
            text.starts_with("Acquire::http::Proxy \"p\";\nAcquire::Languages"),
            "{text}"
        );
        assert!(
            !text.contains("Invoke") && !text.contains("apt.conf.d"),
            "{text}"
        );
    }
}
