//! An initramfs: files in memory, written as the kernel reads them (cpio's `newc` format).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

/// What is at one path.
#[derive(Debug, PartialEq, Eq)]
enum Node {
    Folder,
    Link(PathBuf),
    /// A file of the host's, copied when the archive is written.
    Copy(PathBuf),
    Text(String, u32),
}

/// Folders at the root that are links into `/usr`, whether the host has them so or not.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What the archive will hold, by absolute path.
#[derive(Debug)]
pub struct Archive {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Archive {
    /// Nothing but the links into `/usr`.
    pub fn new() -> Self {
        let mut archive = Self {
            nodes: BTreeMap::new(),
        };
        for name in MERGED {
            archive.folder(Path::new("/usr").join(name));
            let link = Node::Link(Path::new("usr").join(name));
            archive.nodes.insert(Path::new("/").join(name), link);
        }
        archive
    }

    /// An empty folder.
    pub fn folder(&mut self, path: impl AsRef<Path>) {
        self.insert(path.as_ref(), Node::Folder);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.insert(path.as_ref(), Node::Link(target.into()));
    }

    /// A file with this text.
    pub fn text(&mut self, path: impl AsRef<Path>, text: impl Into<String>, mode: u32) {
        self.insert(path.as_ref(), Node::Text(text.into(), mode));
    }

    /// The host's file `source` at `path`.
    pub fn copy(&mut self, source: impl Into<PathBuf>, path: impl AsRef<Path>) {
        self.insert(path.as_ref(), Node::Copy(source.into()));
    }

    /// A file of the host's where the host has it, with the links on the way to it.
    pub fn host(&mut self, path: &Path) -> Result<()> {
        let mut so_far = PathBuf::new();
        let mut rest = path.components();
        while let Some(part) = rest.next() {
            match part {
                Component::ParentDir => {
                    so_far.pop();
                }
                other => so_far.push(other),
            }
            let data = fs::symlink_metadata(&so_far)
                .with_context(|| format!("look at {}", so_far.display()))?;
            if data.is_symlink() {
                let target = fs::read_link(&so_far)
                    .with_context(|| format!("read the link {}", so_far.display()))?;
                if !is_merged(&so_far) {
                    self.link(&so_far, target.clone());
                }
                let parent = so_far.parent().unwrap_or(Path::new("/"));
                return self.host(&parent.join(target).join(rest.as_path()));
            }
        }
        self.copy(so_far.clone(), so_far);
        Ok(())
    }

    fn insert(&mut self, path: &Path, node: Node) {
        let path = &merged(path);
        for parent in path.ancestors().skip(1) {
            self.nodes.entry(parent.to_owned()).or_insert(Node::Folder);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Writes the archive to a file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut out = BufWriter::new(file);
        // The number of an entry tells hard links apart; there are none.
        for (number, (at, node)) in (1..).zip(&self.nodes) {
            // The kernel makes the root itself.
            if let Ok(name) = at.strip_prefix("/")
                && name != Path::new("")
            {
                node.write(&mut out, number, name)
                    .with_context(|| format!("write {} to {}", at.display(), path.display()))?;
            }
        }
        entry(&mut out, 0, 0, Path::new("TRAILER!!!"), &[])
            .and_then(|()| out.flush())
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Is it one of the links into `/usr` itself?
fn is_merged(path: &Path) -> bool {
    MERGED.iter().any(|name| path == Path::new("/").join(name))
}

/// Where a path leads by the links into `/usr`.
fn merged(path: &Path) -> PathBuf {
    match path.strip_prefix("/") {
        Ok(inner) if MERGED.iter().any(|name| inner.starts_with(name)) => {
            Path::new("/usr").join(inner)
        }
        _ => path.to_owned(),
    }
}

impl Node {
    fn write(&self, out: &mut impl Write, number: u32, name: &Path) -> io::Result<()> {
        const FOLDER: u32 = 0o040_000;
        const FILE: u32 = 0o100_000;
        const LINK: u32 = 0o120_000;
        match self {
            Self::Folder => entry(out, number, FOLDER | 0o755, name, &[]),
            Self::Link(target) => {
                let target = target.as_os_str().as_encoded_bytes();
                entry(out, number, LINK | 0o777, name, target)
            }
            Self::Text(text, mode) => entry(out, number, FILE | mode, name, text.as_bytes()),
            Self::Copy(source) => {
                let mode = fs::metadata(source)?.permissions().mode() & 0o777;
                entry(out, number, FILE | mode, name, &fs::read(source)?)
            }
        }
    }
}

fn entry(out: &mut impl Write, number: u32, mode: u32, name: &Path, data: &[u8]) -> io::Result<()> {
    let name = name.as_os_str().as_encoded_bytes();
    let size = u32::try_from(data.len()).map_err(io::Error::other)?;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    // Owner, group, time, devices and the check sum are 0; one name for each file.
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    const HEADER: usize = 6 + 13 * 8;
    out.write_all(name)?;
    // The name's end and the padding up to four bytes, both of zeros.
    out.write_all(&[0; 4][..4 - (HEADER + name.len()) % 4])?;
    out.write_all(data)?;
    out.write_all(&[0; 4][..(4 - data.len() % 4) % 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_aligned_with_its_name_and_its_data() {
        for (name, data) in [("a", "x"), ("ab", "xy"), ("abc", ""), ("abcd", "12345")] {
            let mut out = Vec::new();
            entry(&mut out, 7, 0o100_644, Path::new(name), data.as_bytes()).unwrap();
            assert_eq!(out.len() % 4, 0);
            let header = format!(
                "07070100000007000081a4{:0>24}{:0>8}{:08x}{:0>32}{:08x}{:0>8}",
                1,
                0,
                data.len(),
                0,
                name.len() + 1,
                0
            );
            assert_eq!(std::str::from_utf8(&out[..110]).unwrap(), header);
            assert_eq!(&out[110..110 + name.len()], name.as_bytes());
            assert_eq!(out[110 + name.len()], 0);
            let start = (110 + name.len() + 1).next_multiple_of(4);
            assert_eq!(&out[start..start + data.len()], data.as_bytes());
        }
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut archive = Archive::new();
        archive.text("/lib/b/c", "", 0o644);
        archive.link("/lib-b", "a/b");
        let paths: Vec<_> = archive
            .nodes
            .keys()
            .filter_map(|path| path.to_str())
            .filter(|path| path.contains("lib") && !path.contains("lib64"))
            .collect();
        let expected = ["/lib", "/lib-b", "/usr/lib", "/usr/lib/b", "/usr/lib/b/c"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn links_on_the_way_to_a_file_are_kept() {
        let folder = std::env::temp_dir().join(format!("gate-cpio-{}", std::process::id()));
        fs::create_dir_all(folder.join("usr/bin")).unwrap();
        fs::write(folder.join("usr/bin/dash"), "#!").unwrap();
        std::os::unix::fs::symlink("dash", folder.join("usr/bin/sh")).unwrap();
        std::os::unix::fs::symlink("usr/bin", folder.join("bin")).unwrap();
        let mut archive = Archive::new();
        let made = archive.host(&folder.join("bin/sh"));
        fs::remove_dir_all(&folder).unwrap();
        made.unwrap();
        let node = |path: &str| archive.nodes.get(&folder.join(path));
        assert_eq!(node("bin"), Some(&Node::Link("usr/bin".into())));
        assert_eq!(node("usr/bin/sh"), Some(&Node::Link("dash".into())));
        let dash = folder.join("usr/bin/dash");
        assert_eq!(node("usr/bin/dash"), Some(&Node::Copy(dash)));
    }
}
