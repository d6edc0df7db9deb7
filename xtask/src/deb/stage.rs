//! The tree of files that becomes the package.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{self, cargo};
use crate::process::{line, output, run};

/// Where documentation goes.
const DOC: &str = "usr/share/doc/gate";

/// Files of the repository, and where they go.
const FILES: [(&str, &str); 3] = [
    (
        "packaging/gate.service",
        "usr/lib/systemd/system/gate.service",
    ),
    ("packaging/gate.sysusers", "usr/lib/sysusers.d/gate.conf"),
    ("packaging/gate.toml", "etc/gate/gate.toml"),
];

/// Folders of the repository, and where in [`DOC`] they go, as far as they are there.
const FOLDERS: [(&str, &str); 3] = [
    ("docs", "book"),
    ("packaging/examples", "examples"),
    ("contrib", "examples"),
];

/// What its shell looks for completions in.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/gate"),
    ("zsh", "usr/share/zsh/vendor-completions/_gate"),
    ("fish", "usr/share/fish/vendor_completions.d/gate.fish"),
];

/// The maintainer's scripts.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// A text file of the repository.
pub fn read(path: &str) -> Result<String> {
    let path = cargo::workspace().join(path);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Puts the program in, stripped, with what it tells of itself; returns the packages of the libraries
/// that it is linked with.
pub fn program(gate: &Path, tree: &Path) -> Result<String> {
    let place = tree.join("usr/sbin/gate");
    folder_of(&place)?;
    run(Command::new("strip")
        .args(["--strip-unneeded", "--remove-section=.comment", "-o"])
        .arg(&place)
        .arg(gate))?;
    mode(&place, 0o755)?;
    let pages = tree.join("usr/share/man/man8");
    // What it prints is for people; here it only would be in the way.
    output(Command::new(&place).arg("man").arg("--out").arg(&pages))?;
    for page in list(&pages)? {
        compress(&page)?;
    }
    for (shell, path) in COMPLETIONS {
        let script = output(Command::new(&place).args(["completions", shell]))?;
        write(&tree.join(path), &script, 0o644)?;
    }
    libraries(&place)
}

/// What the program needs, as `libc6 (>= 2.36)`.
fn libraries(program: &Path) -> Result<String> {
    // dpkg-shlibdeps wants to be in a source tree.
    let scratch = cargo::binary("debian", "shlibdeps")?;
    write(
        &scratch.join("debian/control"),
        "Source: gate\n\nPackage: gate\nArchitecture: any\n",
        0o644,
    )?;
    let text = output(
        Command::new("dpkg-shlibdeps")
            .arg("-O")
            .arg(program)
            .current_dir(&scratch),
    )
    .context("install the package dpkg-dev")?;
    text.trim()
        .strip_prefix("shlibs:Depends=")
        .map(str::to_owned)
        .context("read what dpkg-shlibdeps prints")
}

/// Puts in what does not depend on the program.
pub fn files(tree: &Path) -> Result<()> {
    for (from, to) in FILES {
        write(&tree.join(to), &read(from)?, 0o644)?;
    }
    folder_of(&tree.join("etc/gate/conf.d/any"))?;
    let doc = tree.join(DOC);
    for (from, to) in FOLDERS {
        let from = cargo::workspace().join(from);
        if from.is_dir() {
            copy_all(&from, &doc.join(to))?;
        }
    }
    let changelog = doc.join("changelog.Debian");
    write(&changelog, &read("packaging/debian/changelog")?, 0o644)?;
    compress(&changelog)?;
    let changelog = doc.join("changelog");
    write(&changelog, &read("CHANGELOG.md")?, 0o644)?;
    compress(&changelog)?;
    let libraries = doc.join("libraries");
    write(&libraries, &crates()?, 0o644)?;
    compress(&libraries)?;
    let copyright = read("packaging/debian/copyright")?.replace("@MIT@", &mit()?);
    write(&doc.join("copyright"), &copyright, 0o644)
}

/// The licence as the format of copyright files has it: indented, with dots for empty lines. Its title
/// is the name before it.
fn mit() -> Result<String> {
    let text = read("LICENSE-MIT")?;
    let mut lines = Vec::new();
    for line in text
        .trim()
        .lines()
        .skip_while(|line| line.contains("License") || line.is_empty())
    {
        lines.push(match line.trim() {
            "" => " .".to_owned(),
            line => format!(" {line}"),
        });
    }
    Ok(lines.join("\n"))
}

/// The crates that are linked in, and their licences.
fn crates() -> Result<String> {
    let text = output(cargo().args(["metadata", "--format-version=1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("read what cargo metadata prints")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let ours = |package: &Value| package["source"].is_null();
    let lines: BTreeSet<String> = packages
        .filter(|package| !ours(package))
        .map(|package| {
            let part = |name: &str| package[name].as_str().unwrap_or("unknown").to_owned();
            format!(
                "{} {}: {}\n",
                part("name"),
                part("version"),
                part("license")
            )
        })
        .collect();
    Ok(lines.into_iter().collect())
}

/// Writes the folder DEBIAN; all else must be in its place.
pub fn control(tree: &Path, version: &str, architecture: &str, libraries: &str) -> Result<()> {
    let folder = tree.join("DEBIAN");
    let mut sums = String::new();
    let mut conffiles = String::new();
    let mut bytes = 0;
    for path in files_in(tree)? {
        let name = path
            .strip_prefix(tree)
            .unwrap_or(&path)
            .display()
            .to_string();
        bytes += fs::metadata(&path)?.len();
        let sum = output(Command::new("md5sum").arg("--binary").arg(&path))?;
        let sum = sum.split(' ').next().unwrap_or_default();
        sums += &format!("{sum}  {name}\n");
        if name.starts_with("etc/") {
            conffiles += &format!("/{name}\n");
        }
    }
    let control = read("packaging/debian/control")?
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@DEPENDS@", libraries)
        .replace("@SIZE@", &bytes.div_ceil(1024).to_string());
    write(&folder.join("control"), &control, 0o644)?;
    write(&folder.join("md5sums"), &sums, 0o644)?;
    write(&folder.join("conffiles"), &conffiles, 0o644)?;
    for script in SCRIPTS {
        let text = read(&format!("packaging/debian/{script}"))?;
        write(&folder.join(script), &text, 0o755)?;
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for path in files_in(from)? {
        let place = to.join(path.strip_prefix(from).unwrap_or(&path));
        folder_of(&place)?;
        fs::copy(&path, &place).with_context(|| format!("copy {}", path.display()))?;
        mode(&place, 0o644)?;
    }
    Ok(())
}

/// All files below a folder, in the order of their names.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in list(folder)? {
        match path.is_dir() {
            true => files.extend(files_in(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let told = || format!("list {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(told)? {
        paths.push(entry.with_context(told)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn write(path: &Path, text: &str, bits: u32) -> Result<()> {
    folder_of(path)?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    mode(path, bits)
}

/// Makes the folders above a file, each with mode 0755 whatever the umask is.
fn folder_of(path: &Path) -> Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.exists()) else {
        return Ok(());
    };
    folder_of(folder)?;
    fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
    mode(folder, 0o755)
}

fn mode(path: &Path, bits: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(bits))
        .with_context(|| format!("chmod {}", path.display()))
}

/// Compresses a file, without the name and time that would differ from build to build.
fn compress(path: &Path) -> Result<()> {
    let mut gzip = Command::new("gzip");
    gzip.args(["-9", "--no-name", "--force"])
        .arg(path)
        .stdin(Stdio::null());
    run(&mut gzip).with_context(|| line(&gzip))
}
