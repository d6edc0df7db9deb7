//! What a machine is made of: QEMU, busybox and kernels, from Debian's packages.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::matrix::Kernel;
use crate::cache::Cache;
use crate::debian::{self, Apt};
use crate::process::{find, output, run};
use crate::rustc;

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
const BUSYBOX: &str = "busybox-static";

/// QEMU: the system's, or Debian's unpacked.
pub struct Qemu {
    program: PathBuf,
    /// What it must be told of where it is, if it isn't where it belongs.
    unpacked: Option<PathBuf>,
}

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// What `uname -r` says.
    pub release: String,
    /// The kernel itself.
    pub image: PathBuf,
    /// What it was built with.
    pub config: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// Version 7.2 emulates wrongly: of the boots of Linux 6.12 it crashes one in five.
const LEAST_QEMU: u32 = 8;

impl Qemu {
    /// Finds or fetches it.
    pub fn ensure(cache: &Cache) -> Result<Self> {
        const NAME: &str = "qemu";
        if let Some(program) = find(QEMU) {
            let qemu = Self {
                program,
                unpacked: None,
            };
            if qemu.check().is_ok() {
                return Ok(qemu);
            }
        }
        let in_root = |root: PathBuf| Self {
            program: root.join("usr/bin").join(QEMU),
            unpacked: Some(root),
        };
        let qemu = in_root(cache.path(NAME));
        if qemu.check().is_ok() {
            return Ok(qemu);
        }
        // Emulation is a module in the common package.
        let part = |name: &str| name.starts_with("qemu-system-") || name == "seabios";
        let check = |root: &Path| in_root(root.to_owned()).check();
        fetch(
            cache,
            NAME,
            "QEMU",
            recent_qemu,
            &[QEMU_PACKAGE],
            part,
            check,
        )
        .context("virtual machines need QEMU; install the package qemu-system-x86")?;
        Ok(in_root(cache.path(NAME)))
    }

    /// The command, still without arguments.
    pub fn command(&self) -> Result<Command> {
        // Whatever ends us ends the machine too.
        let mut command = match find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        if let Some(root) = &self.unpacked {
            let libraries: OsString = rustc::join(&debian::library_folders(root))?;
            command.env("LD_LIBRARY_PATH", libraries);
            for folder in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(folder));
            }
        }
        Ok(command)
    }

    fn check(&self) -> Result<()> {
        let text = output(self.command()?.arg("--version"))?;
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("QEMU emulator version "));
        match version.map(|version| (version, major(version))) {
            Some((_, major)) if major >= LEAST_QEMU => Ok(()),
            Some((version, _)) => {
                bail!("QEMU {version} is too old: it takes {LEAST_QEMU} or newer")
            }
            None => bail!("{} does not tell its version", self.program.display()),
        }
    }
}

/// The system's own sources, or else the backports, if they have a newer one.
fn recent_qemu(system: Apt) -> Result<Apt> {
    let packages = system.show(&[QEMU_PACKAGE])?;
    if packages.iter().any(|one| major(&one.version) >= LEAST_QEMU) {
        return Ok(system);
    }
    let about = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let suite = about
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("find the system's suite in /etc/os-release")?;
    system.of_suites(&[suite, &format!("{suite}-backports")])
}

/// The first number of a version, behind its epoch.
fn major(version: &str) -> u32 {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A busybox that needs no libraries.
pub fn busybox(cache: &Cache) -> Result<PathBuf> {
    const NAME: &str = "busybox";
    let program = |root: &Path| {
        ["usr/bin/busybox", "bin/busybox"]
            .map(|path| root.join(path))
            .into_iter()
            .find(|path| path.is_file())
            .context("its package has no busybox")
    };
    if let Ok(found) = program(&cache.path(NAME)) {
        return Ok(found);
    }
    let roots = [BUSYBOX];
    fetch(
        cache,
        NAME,
        "busybox",
        Ok,
        &roots,
        |_| false,
        |root| program(root).map(drop),
    )
    .context("virtual machines need busybox")?;
    program(&cache.path(NAME))
}

/// Finds or fetches a kernel; with `fresh`, fetches the suite's newest.
pub fn kernel(
    cache: &Cache,
    kernel: &Kernel,
    package: &str,
    busybox: &Path,
    fresh: bool,
) -> Result<Unpacked> {
    let name = format!("kernel-{}", kernel.name);
    if !fresh && let Ok(unpacked) = locate(&cache.path(&name)) {
        return Ok(unpacked);
    }
    let what = format!("Linux {}", kernel.name);
    // The kernel may be in one package or in several.
    let part = |package: &str| package.starts_with("linux-") && package.ends_with("-amd64");
    let sources = |system: Apt| system.of_suites(&[&kernel.suite]);
    fetch(cache, &name, &what, sources, &[package], part, |root| {
        let unpacked = locate(root)?;
        // Debian leaves this to the installation.
        if fs::symlink_metadata(root.join("lib")).is_err() {
            std::os::unix::fs::symlink("usr/lib", root.join("lib"))
                .with_context(|| format!("link {}/lib", root.display()))?;
        }
        run(Command::new(busybox)
            .args(["depmod", "-b"])
            .arg(root)
            .arg(&unpacked.release))
    })
    .with_context(|| format!("fetch {what} from Debian's suite {}", kernel.suite))?;
    locate(&cache.path(&name))
}

/// Unpacks packages from `sources` into the cache as `name`, if `check` is content with them.
fn fetch(
    cache: &Cache,
    name: &str,
    what: &str,
    sources: impl Fn(Apt) -> Result<Apt>,
    roots: &[&str],
    always: fn(&str) -> bool,
    check: impl Fn(&Path) -> Result<()>,
) -> Result<()> {
    if !Apt::available() {
        bail!("there is no apt");
    }
    cache.install(name, |scratch| {
        let apt = sources(Apt::open(scratch)?)?;
        let packages = apt.with_needs(roots, always)?;
        eprintln!(
            "Fetching {what} for virtual machines ({}), into {}; nothing is installed.",
            debian::size(&packages),
            cache.path(name).display()
        );
        let root = apt.unpack(&packages)?;
        check(&root)?;
        Ok(root)
    })?;
    Ok(())
}

/// Finds the parts of a kernel. Newer packages have all of them in one folder.
fn locate(root: &Path) -> Result<Unpacked> {
    for base in ["usr/lib/modules", "lib/modules"] {
        let entries = fs::read_dir(root.join(base)).into_iter().flatten();
        for modules in entries.flatten().map(|entry| entry.path()) {
            let release = modules.file_name().unwrap_or_default().to_string_lossy();
            let part = |name: &str, boot: &str| {
                [
                    modules.join(name),
                    root.join("boot").join(format!("{boot}-{release}")),
                ]
                .into_iter()
                .find(|path| path.is_file())
            };
            if let (Some(image), Some(config)) =
                (part("vmlinuz", "vmlinuz"), part("config", "config"))
                && modules.join("kernel").is_dir()
            {
                return Ok(Unpacked {
                    release: release.into_owned(),
                    image,
                    config,
                    modules: modules.clone(),
                });
            }
        }
    }
    bail!("no kernel in {}", root.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_of_a_version_counts() {
        assert_eq!(major("1:7.2+dfsg-7+deb12u18"), 7);
        assert_eq!(major("10.0.2 (Debian 1:10.0.2+ds-2)"), 10);
        assert_eq!(major("unknown"), 0);
    }
}
