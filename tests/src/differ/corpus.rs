//! Frames that were once judged differently, and others worth to be kept: text files with a line in
//! hexadecimal digits for each frame, and comments.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gate_userspace::hooks::Slot;

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

/// The examples that are kept, by their names.
pub fn read_all() -> Result<Vec<Example>> {
    let folder = folder();
    let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|it| it == "hex"));
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Example> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut example = Example {
        name: path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        seed: None,
        frames: Vec::new(),
    };
    for line in text.lines().map(str::trim) {
        if let Some(seed) = line.strip_prefix("seed 0x") {
            example.seed = Some(u64::from_str_radix(seed, 16).context("a seed")?);
        } else if !line.is_empty() && !line.starts_with('#') {
            let frame = unhex(line).with_context(|| path.display().to_string())?;
            example.frames.push(frame);
        }
    }
    Ok(example)
}

/// Writes a new example, and says where.
pub(super) fn keep(slot: Slot, seed: u64, frames: &[Vec<u8>], difference: &str) -> Result<PathBuf> {
    let path = folder().join(format!("{}-{seed:016x}.hex", slot.program()));
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
