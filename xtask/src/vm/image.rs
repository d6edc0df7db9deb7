//! What is in a machine: the kernel's modules, busybox, the tests, and the host's own programs
//! with their libraries, each where the host has it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::matrix::Vm;
use super::packages::Unpacked;
use crate::process::{find, is_program, output};

const INIT: &str = include_str!("init.sh");

/// A machine's files, to be written as an initramfs.
pub struct Image {
    archive: Archive,
    variables: String,
    tasks: String,
    /// What was asked for its libraries already.
    known: BTreeSet<PathBuf>,
}

impl Image {
    /// What boots, and no more.
    pub fn new(busybox: &Path) -> Self {
        let mut archive = Archive::new();
        for folder in ["/dev", "/proc", "/root", "/run", "/sys", "/tmp", "/var/tmp"] {
            archive.folder(folder);
        }
        archive.copy(busybox, "/bin/busybox");
        archive.text("/init", INIT, 0o755);
        Self {
            archive,
            variables: String::new(),
            tasks: String::new(),
            known: BTreeSet::new(),
        }
    }

    /// The kernel's own files: these folders of modules, what finds them, and its configuration.
    pub fn kernel(&mut self, kernel: &Unpacked, folders: &[String]) -> Result<()> {
        // The kernel calls this to load a module.
        self.archive.link("/sbin/modprobe", "../bin/busybox");
        let release = &kernel.release;
        let config = format!("/boot/config-{release}");
        self.archive.copy(&kernel.config, config);
        let place = Path::new("/lib/modules").join(release);
        let mut pending: Vec<PathBuf> = folders
            .iter()
            .map(|folder| Path::new("kernel").join(folder))
            .chain([PathBuf::new()])
            .collect();
        while let Some(folder) = pending.pop() {
            let source = kernel.modules.join(&folder);
            // An older kernel may have no such folder.
            for entry in fs::read_dir(&source).into_iter().flatten().flatten() {
                let inner = folder.join(entry.file_name());
                let name = entry.file_name();
                if folder == Path::new("") {
                    if name.to_string_lossy().starts_with("modules.") {
                        self.archive.copy(entry.path(), place.join(inner));
                    }
                } else if entry.path().is_dir() {
                    pending.push(inner);
                } else {
                    self.archive.copy(entry.path(), place.join(inner));
                }
            }
        }
        Ok(())
    }

    /// What tests run and read of the host's. Programs that the host lacks are named in the answer.
    pub fn host(&mut self, vm: &Vm) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for name in &vm.programs {
            match find(name).or_else(|| in_folders_of_root(name)) {
                Some(path) => self.program(&path, None)?,
                None => missing.push(name.clone()),
            }
        }
        // Many call it by this path.
        self.program(Path::new("/bin/sh"), None)?;
        for file in vm.files.iter().map(Path::new).filter(|file| file.exists()) {
            self.archive.host(file)?;
        }
        let users = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
        self.archive.text("/etc/passwd", users, 0o644);
        let groups = "root:x:0:\nusers:x:100:\nnogroup:x:65534:\n";
        self.archive.text("/etc/group", groups, 0o644);
        Ok(missing)
    }

    /// A program where the host has it, and its libraries, which may be in folders of their own.
    pub fn program(&mut self, path: &Path, libraries: Option<&Path>) -> Result<()> {
        if !self.known.insert(path.to_owned()) {
            return Ok(());
        }
        self.archive.host(path)?;
        let mut ldd = Command::new("ldd");
        ldd.arg(path);
        if let Some(folders) = libraries {
            ldd.env("LD_LIBRARY_PATH", folders);
        }
        // It fails for what has no libraries.
        let text = output(&mut ldd).unwrap_or_default();
        for library in needed(&text) {
            if self.known.insert(library.clone()) {
                self.archive.host(&library)?;
            }
        }
        Ok(())
    }

    /// A file, or all files below a folder, where the host has it, and what its programs and modules need.
    pub fn tree(&mut self, folder: &Path, libraries: Option<&Path>) -> Result<()> {
        if folder.is_file() {
            return self.archive.host(folder);
        }
        let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", folder.display()))?;
            let path = entry.path();
            let kind = entry.file_type();
            if kind
                .with_context(|| format!("look at {}", path.display()))?
                .is_dir()
            {
                self.tree(&path, libraries)?;
            } else if is_program(&path) || path.extension().is_some_and(|end| end == "so") {
                self.program(&path, libraries)?;
            } else if path.is_file() {
                // What leads nowhere, as into an /etc that is not unpacked, is left out.
                self.archive.host(&path)?;
            }
        }
        Ok(())
    }

    /// Sets an environment variable of all tasks.
    pub fn variable(&mut self, name: &str, value: &str) {
        self.variables += &format!("export {name}={}\n", quoted(value));
    }

    /// Adds a program of tests to what is to be run.
    pub fn task(
        &mut self,
        name: &str,
        folder: &Path,
        program: &Path,
        args: &[String],
    ) -> Result<()> {
        self.program(program, None)?;
        self.archive.folder(folder);
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let args: String = args
            .iter()
            .map(|arg| " ".to_owned() + &quoted(arg))
            .collect();
        self.tasks += &format!(
            "run {} {} {}{args}\n",
            quoted(name),
            path(folder),
            path(program)
        );
        Ok(())
    }

    /// Has a shell run instead of tests.
    pub fn shell(&mut self) {
        self.tasks = "$b stty sane; echo 'The tests are as on this machine; exit ends it.'\n\
             $b setsid -c sh -i\n"
            .to_owned();
    }

    /// Writes the initramfs.
    pub fn write(mut self, path: &Path) -> Result<()> {
        let tasks = self.variables + &self.tasks;
        self.archive.text("/tasks.sh", tasks, 0o644);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        self.archive.write(path)
    }
}

/// A user's PATH often lacks these.
fn in_folders_of_root(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

/// The paths in what `ldd` prints: `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld.so (0x…)`.
fn needed(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(path.into())
    })
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_a_library_too() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \tlibmissing.so => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(
            needed(text).collect::<Vec<_>>(),
            expected.map(PathBuf::from)
        );
    }

    #[test]
    fn a_quote_stays_in_its_word() {
        assert_eq!(quoted("it's $x"), r"'it'\''s $x'");
    }
}
