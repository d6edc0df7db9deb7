//! Frames that were once judged differently, and others worth to be kept: text files with a line in
//! hexadecimal digits for each frame, and comments.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Its name, without the ending.
    pub name: String,
    /// The seed of the tables that it was found with.
    pub seed: Option<u64>,
    /// The frames, in order.
    pub frames: Vec<Vec<u8>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A frame in hexadecimal digits.
pub fn hex(frame: &[u8]) -> String {
    frame.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(line: &str) -> Result<Vec<u8>> {
    (0..line.len())
        .step_by(2)
        .map(|at| {
            let digits = line.get(at..at + 2).context("half a byte")?;
            u8::from_str_radix(digits, 16).with_context(|| format!("{digits:?} is no byte"))
        })
        .collect()
}

/// Each file of the folder, so that they are there where the sources are not.
const KEPT: [(&str, &str); 1] = [(
    "v4-mapped-destination-in-ipv6",
    include_str!("../../corpus/v4-mapped-destination-in-ipv6.hex"),
)];

/// The examples that are kept, by their names.
pub fn read_all() -> Result<Vec<Example>> {
    KEPT.iter().map(|(name, text)| read(name, text)).collect()
}

fn read(name: &str, text: &str) -> Result<Example> {
    let mut example = Example {
        name: name.to_owned(),
        seed: None,
        frames: Vec::new(),
    };
    for line in text.lines().map(str::trim) {
        if let Some(seed) = line.strip_prefix("seed 0x") {
            example.seed = Some(u64::from_str_radix(seed, 16).context("a seed")?);
        } else if !line.is_empty() && !line.starts_with('#') {
            let frame = unhex(line).with_context(|| name.to_owned())?;
            example.frames.push(frame);
        }
    }
    Ok(example)
}

/// Writes a new example, and says where.
pub(super) fn keep(hook: &str, seed: u64, frames: &[Vec<u8>], difference: &str) -> Result<PathBuf> {
    let path = folder().join(format!("{hook}-{seed:016x}.hex"));
    let mut text = String::new();
    for line in difference.lines() {
        writeln!(text, "# {line}")?;
    }
    writeln!(text, "seed {seed:#x}")?;
    for frame in frames {
        writeln!(text, "{}", hex(frame))?;
    }
    fs::create_dir_all(folder())?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_among_those_that_are_kept() {
        let entries = fs::read_dir(folder()).unwrap();
        let names = entries.map(|entry| entry.unwrap().path());
        let mut names: Vec<String> = names
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, KEPT.map(|(name, _)| name));
    }

    #[test]
    fn an_example_is_its_frames_and_its_seed() {
        let example = read("it", "# why\nseed 0x1f\n00ff\n\n0a\n").unwrap();
        assert_eq!(example.seed, Some(0x1f));
        assert_eq!(example.frames, [vec![0, 0xff], vec![10]]);
        assert_eq!(hex(&example.frames[0]), "00ff");
        assert!(read("it", "0").is_err());
    }
}
