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
    /// Its name.
    name: &'static str,
    /// Debian's package.
    package: &'static str,
    /// Where the package has it.
    folder: &'static str,
    /// How it tells its version.
    version: &'static str,
    /// The variables that tell the tests where it is, and where its libraries are.
    variables: [&'static str; 2],
}

/// The web server.
const NGINX: Program = Program {
    name: "nginx",
    package: "nginx",
    folder: "usr/sbin",
    version: "-v",
    variables: ["GATE_TEST_NGINX", "GATE_TEST_NGINX_LIBS"],
};

/// The firewall's tool.
const NFT: Program = Program {
    name: "nft",
    package: "nftables",
    folder: "usr/sbin",
    version: "--version",
    variables: ["GATE_TEST_NFT", "GATE_TEST_NFT_LIBS"],
};

/// What measures throughput.
const IPERF3: Program = Program {
    name: "iperf3",
    package: "iperf3",
    folder: "usr/bin",
    version: "-v",
    variables: ["GATE_TEST_IPERF3", "GATE_TEST_IPERF3_LIBS"],
};

/// The variables that tell the tests which programs to run.
pub fn ensure(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut variables = nginx(cache)?;
    variables.extend(one(cache, NFT)?);
    Ok(variables)
}

/// Those for nginx alone.
pub fn nginx(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    one(cache, NGINX)
}

/// Those for iperf3, which only a benchmark runs.
pub fn iperf3(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    one(cache, IPERF3)
}

fn one(cache: &Cache, program: Program) -> Result<Vec<(&'static str, PathBuf)>> {
    let [path, libraries] = program.variables;
    if let Some(installed) = program.installed() {
        return Ok(vec![(path, installed)]);
    }
    let root = cache.path(program.name);
    if program.check(&root).is_err() {
        program.fetch(cache).with_context(|| {
            let Program { name, package, .. } = program;
            format!(
                "the live tests and benchmarks need {name}, and it could not be fetched; install the package \
                 {package}"
            )
        })?;
    }
    let mut variables = vec![(path, program.path(&root))];
    let folders = library_folders(&root)?;
    if !folders.as_os_str().is_empty() {
        variables.push((libraries, folders));
    }
    Ok(variables)
}

impl Program {
    /// A user's PATH often lacks the folder of services.
    fn installed(self) -> Option<PathBuf> {
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
            let apt = Apt::open(scratch)?;
            let packages = apt.with_needs(&[self.package], |_| false)?;
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

    fn path(self, root: &Path) -> PathBuf {
        root.join(self.folder).join(self.name)
    }

    fn check(self, root: &Path) -> Result<()> {
        let mut command = Command::new(self.path(root));
        let folders = library_folders(root)?;
        output(command.arg(self.version).env("LD_LIBRARY_PATH", folders))?;
        Ok(())
    }
}

fn library_folders(root: &Path) -> Result<PathBuf> {
    Ok(rustc::join(&debian::library_folders(root))?.into())
}
