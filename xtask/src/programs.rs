//! Programs that the live tests and benchmarks run: the system's, or Debian's unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::debian::{self, Apt};
use crate::process::{find, is_program, output};
use crate::rustc;

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Program {
    /// Its name, and that of its folder in the cache.
    name: &'static str,
    /// Debian's packages: its own first.
    packages: &'static [&'static str],
    /// Whether to take a package that it needs even where the system has it.
    always: fn(&str) -> bool,
    /// Where its package has it.
    path: &'static str,
    /// The words by which it tells its version.
    version: &'static str,
    /// The variables that tell the tests where it is, and where its libraries are.
    variables: [&'static str; 2],
    /// What else the tests must know: a variable, and a folder or a file of the packages.
    folders: &'static [(&'static str, &'static str)],
    /// What runs it.
    by: By,
    /// Other suites of Debian's archive than the system's.
    suites: &'static [&'static str],
}

/// What runs a program. One that brings that with it is never the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The kernel.
    Itself,
    /// A Python whose home this folder of the packages is.
    Python(&'static str),
    /// The loader of a newer C library than the system's.
    Loader(&'static str),
    /// The system's Perl, with the packages' modules.
    Perl,
}

/// What most of them are.
const PLAIN: Program = Program {
    name: "",
    packages: &[],
    always: |_| false,
    path: "",
    version: "-v",
    variables: ["", ""],
    folders: &[],
    by: By::Itself,
    suites: &[],
};

/// The web server.
const NGINX: Program = Program {
    name: "nginx",
    packages: &["nginx"],
    path: "usr/sbin/nginx",
    variables: ["GATE_TEST_NGINX", "GATE_TEST_NGINX_LIBS"],
    ..PLAIN
};

/// The firewall's tool.
const NFT: Program = Program {
    name: "nft",
    packages: &["nftables"],
    path: "usr/sbin/nft",
    version: "--version",
    variables: ["GATE_TEST_NFT", "GATE_TEST_NFT_LIBS"],
    ..PLAIN
};

/// What measures throughput.
const IPERF3: Program = Program {
    name: "iperf3",
    packages: &["iperf3"],
    path: "usr/bin/iperf3",
    variables: ["GATE_TEST_IPERF3", "GATE_TEST_IPERF3_LIBS"],
    ..PLAIN
};

/// A web server that is also a reverse proxy.
const APACHE: Program = Program {
    name: "apache2",
    packages: &["apache2-bin"],
    path: "usr/sbin/apache2",
    variables: ["GATE_TEST_APACHE", "GATE_TEST_APACHE_LIBS"],
    folders: &[("GATE_TEST_APACHE_MODULES", "usr/lib/apache2/modules")],
    ..PLAIN
};

/// The load balancer.
const HAPROXY: Program = Program {
    name: "haproxy",
    packages: &["haproxy"],
    path: "usr/sbin/haproxy",
    variables: ["GATE_TEST_HAPROXY", "GATE_TEST_HAPROXY_LIBS"],
    ..PLAIN
};

/// Debian 13's, because Debian 12's aborts when `maxconn` is raised with connections pending.
const HAPROXY_3: Program = Program {
    name: "haproxy-3",
    always: |name| name.starts_with("lib") || name.starts_with("zlib"),
    variables: ["GATE_TEST_HAPROXY_3", "GATE_TEST_HAPROXY_3_LIBS"],
    folders: &[("GATE_TEST_HAPROXY_3_LOADER", LOADER)],
    by: By::Loader(LOADER),
    suites: &["trixie"],
    ..HAPROXY
};

/// Where Debian 13's C library has its loader.
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// The application server.
const GUNICORN: Program = Program {
    name: "gunicorn",
    packages: &["gunicorn", "python3-gunicorn"],
    always: |name| name.starts_with("python3") || name.starts_with("libpython3"),
    path: "usr/bin/gunicorn",
    version: "--version",
    variables: ["GATE_TEST_GUNICORN", "GATE_TEST_GUNICORN_LIBS"],
    folders: &[("GATE_TEST_GUNICORN_PYTHON", "usr")],
    by: By::Python("usr"),
    ..PLAIN
};

/// The checker of Debian's packages: a program in Perl, with many modules.
const LINTIAN: Program = Program {
    name: "lintian",
    packages: &["lintian"],
    always: |name| {
        (name.starts_with("lib") && name.ends_with("-perl"))
            || matches!(
                name,
                "diffstat" | "patchutils" | "plzip" | "lzop" | "t1utils"
            )
    },
    path: "usr/bin/lintian",
    version: "--version",
    variables: ["GATE_TEST_LINTIAN", "GATE_TEST_LINTIAN_LIBS"],
    by: By::Perl,
    ..PLAIN
};

/// What renders manual pages.
const GROFF: Program = Program {
    name: "groff",
    packages: &["groff-base"],
    path: "usr/bin/groff",
    version: "--version",
    variables: ["GATE_TEST_GROFF", "GATE_TEST_GROFF_LIBS"],
    folders: &[("GATE_TEST_GROFF_ROOT", "usr")],
    ..PLAIN
};

/// The firewall's older tool.
const IPTABLES: Program = Program {
    name: "iptables",
    packages: &["iptables"],
    path: "usr/sbin/iptables-nft",
    version: "--version",
    variables: ["GATE_TEST_IPTABLES", "GATE_TEST_IPTABLES_LIBS"],
    ..PLAIN
};

/// The firewall by XDP. It fails even when it has told its version.
const XDP_FILTER: Program = Program {
    name: "xdp-filter",
    packages: &["xdp-tools", "libxdp1"],
    path: "usr/sbin/xdp-filter",
    version: "load --version",
    variables: ["GATE_TEST_XDP_FILTER", "GATE_TEST_XDP_FILTER_LIBS"],
    ..PLAIN
};

/// The variables that tell the tests which programs to run.
pub fn ensure(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    all(
        cache,
        &[NGINX, NFT, IPTABLES, APACHE, HAPROXY, HAPROXY_3, GUNICORN],
    )
}

/// Those for the tests of what is no matter of the kernel's: the manual and the package.
pub fn host(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    all(cache, &[GROFF])
}

/// The checker of Debian's packages, ready to be given one.
pub fn lintian(cache: &Cache) -> Result<Command> {
    if let Some(installed) = find(LINTIAN.name) {
        return Ok(Command::new(installed));
    }
    let variables = one(cache, LINTIAN)?;
    let root = cache.path(LINTIAN.name);
    let mut lintian = Command::new(root.join(LINTIAN.path));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [root.join("usr/bin")]
        .into_iter()
        .chain(std::env::split_paths(&path));
    lintian
        .env("PATH", std::env::join_paths(folders).context("join PATH")?)
        .env("LINTIAN_BASE", root.join("usr/share/lintian"))
        .env("PERL5LIB", perl(&root)?);
    if let Some((_, folders)) = variables
        .iter()
        .find(|(name, _)| *name == LINTIAN.variables[1])
    {
        lintian.env("LD_LIBRARY_PATH", folders);
    }
    Ok(lintian)
}

/// Where Debian's packages put Perl's modules.
fn perl(root: &Path) -> Result<std::ffi::OsString> {
    let mut folders = vec![root.join("usr/share/perl5")];
    for libraries in debian::library_folders(root) {
        let versions = std::fs::read_dir(libraries.join("perl5"))
            .into_iter()
            .flatten();
        folders.extend(versions.flatten().map(|version| version.path()));
    }
    std::env::join_paths(folders).context("join PERL5LIB")
}

/// Those for nginx alone.
pub fn nginx(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    one(cache, NGINX)
}

/// Those for iperf3, which only a benchmark runs.
pub fn iperf3(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    one(cache, IPERF3)
}

/// Those for the scenarios of the recipes, and for what they are compared with.
pub fn recipes(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    all(
        cache,
        &[NGINX, APACHE, HAPROXY, HAPROXY_3, GUNICORN, IPTABLES],
    )
}

/// Those for the ways to restart a backend that gate is compared with.
pub fn restart(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    all(cache, &[NFT, IPTABLES, HAPROXY, HAPROXY_3])
}

/// Those that a flood is dropped by.
pub fn flood(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    all(cache, &[NFT, IPTABLES, XDP_FILTER])
}

/// Those that the cost of an open gate is compared with, and what measures it.
pub fn cost(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    all(cache, &[NFT, IPTABLES, XDP_FILTER, IPERF3])
}

/// Those for all that stands side by side with what people use.
pub fn compared(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    all(
        cache,
        &[NFT, IPTABLES, HAPROXY, HAPROXY_3, XDP_FILTER, IPERF3],
    )
}

fn all(cache: &Cache, programs: &[Program]) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut variables = Vec::new();
    for &program in programs {
        variables.extend(one(cache, program)?);
    }
    Ok(variables)
}

fn one(cache: &Cache, program: Program) -> Result<Vec<(&'static str, PathBuf)>> {
    let [path, libraries] = program.variables;
    if let Some(installed) = program.installed() {
        let mut variables = vec![(path, installed)];
        variables.extend(program.folders_in(Path::new("/")));
        return Ok(variables);
    }
    let root = cache.path(program.name);
    if program.check(&root).is_err() {
        program.fetch(cache).with_context(|| {
            let Program { name, packages, .. } = program;
            format!(
                "the live tests and benchmarks need {name}, and it could not be fetched; install the package \
                 {}",
                packages[0]
            )
        })?;
    }
    let mut variables = vec![(path, root.join(program.path))];
    let folders = library_folders(&root)?;
    if !folders.as_os_str().is_empty() {
        variables.push((libraries, folders));
    }
    variables.extend(program.folders_in(&root));
    Ok(variables)
}

impl Program {
    /// A user's PATH often lacks the folder of services.
    fn installed(self) -> Option<PathBuf> {
        if self.by != By::Itself {
            return None;
        }
        find(self.name).or_else(|| {
            ["/usr/sbin", "/usr/local/sbin"]
                .iter()
                .map(|folder| Path::new(folder).join(self.name))
                .find(|path| is_program(path))
        })
    }

    fn fetch(self, cache: &Cache) -> Result<()> {
        if !Apt::available() {
            bail!("there is no apt");
        }
        cache.install(self.name, |scratch| {
            let mut apt = Apt::open(scratch)?;
            if !self.suites.is_empty() {
                apt = apt.of_suites(self.suites)?;
            }
            let packages = apt.with_needs(self.packages, self.always)?;
            eprintln!(
                "Fetching {} for tests and benchmarks ({}). It is only unpacked, into {}; nothing is \
                 installed or started.",
                self.name,
                debian::size(&packages),
                cache.path(self.name).display()
            );
            let root = apt.unpack(&packages)?;
            self.check(&root)?;
            Ok(root)
        })?;
        Ok(())
    }

    fn folders_in(self, root: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let folders = self.folders.iter();
        folders.map(move |(variable, folder)| (*variable, root.join(folder)))
    }

    fn check(self, root: &Path) -> Result<()> {
        let path = root.join(self.path);
        let folders = library_folders(root)?;
        let mut command = match self.by {
            By::Itself => Command::new(&path),
            By::Loader(loader) => {
                let mut command = Command::new(root.join(loader));
                command.arg(&path);
                command
            }
            By::Perl => {
                let mut command = Command::new(&path);
                command
                    .env("LINTIAN_BASE", root.join("usr/share/lintian"))
                    .env("PERL5LIB", perl(root)?);
                command
            }
            By::Python(home) => {
                let home = root.join(home);
                let mut command = Command::new(home.join("bin/python3"));
                command
                    .arg(&path)
                    .env("PYTHONPATH", home.join("lib/python3/dist-packages"))
                    .env("PYTHONHOME", home);
                command
            }
        };
        let words = self.version.split(' ');
        command.args(words).env("LD_LIBRARY_PATH", folders);
        let told = command.output().is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).starts_with(&format!("{} version", self.name))
        });
        if !told {
            output(&mut command)?;
        }
        Ok(())
    }
}

fn library_folders(root: &Path) -> Result<PathBuf> {
    Ok(rustc::join(&debian::library_folders(root))?.into())
}
