//! nginx for the live tests: the system's, or Debian's unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::debian::{self, Apt};
use crate::process::{find, is_program, output};
use crate::rustc;

const NAME: &str = "nginx";

/// The variables that tell the tests which nginx to run.
pub fn ensure(cache: &Cache) -> Result<Vec<(&'static str, PathBuf)>> {
    if let Some(program) = installed() {
        return Ok(vec![("GATE_TEST_NGINX", program)]);
    }
    let root = cache.path(NAME);
    if check(&root).is_err() {
        fetch(cache).context(
            "the live tests need nginx, and it could not be fetched; install the package nginx",
        )?;
    }
    let mut variables = vec![("GATE_TEST_NGINX", program(&root))];
    let libraries = libraries(&root)?;
    if !libraries.as_os_str().is_empty() {
        variables.push(("GATE_TEST_NGINX_LIBS", libraries));
    }
    Ok(variables)
}

/// A user's PATH often lacks the folder of services.
fn installed() -> Option<PathBuf> {
    find(NAME).or_else(|| {
        ["/usr/sbin", "/usr/local/sbin"]
            .iter()
            .map(|folder| Path::new(folder).join(NAME))
            .find(|path| is_program(path))
    })
}

fn fetch(cache: &Cache) -> Result<()> {
    if !Apt::available() {
        bail!("there is no apt");
    }
    cache.install(NAME, |scratch| {
        let apt = Apt::open(scratch)?;
        let packages = apt.with_needs(&[NAME], |_| false)?;
        eprintln!(
            "Fetching nginx for the live tests ({}). It is only unpacked, into {}; nothing is \
             installed or started.",
            debian::size(&packages),
            cache.path(NAME).display()
        );
        let root = apt.unpack(&packages)?;
        check(&root)?;
        Ok(root)
    })?;
    Ok(())
}

fn program(root: &Path) -> PathBuf {
    root.join("usr/sbin/nginx")
}

fn libraries(root: &Path) -> Result<PathBuf> {
    Ok(rustc::join(&debian::library_folders(root))?.into())
}

fn check(root: &Path) -> Result<()> {
    let mut nginx = Command::new(program(root));
    output(nginx.arg("-v").env("LD_LIBRARY_PATH", libraries(root)?))?;
    Ok(())
}
