//! What a benchmark keeps of a run: the raw figures as JSON, and what is made of them, tables and
//! plots. Whoever has the raw figures can make the rest again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::plot::Plot;

/// The raw figures of one benchmark.
pub trait Raw: Serialize + DeserializeOwned {
    /// The name of the benchmark, and of its file.
    const NAME: &'static str;

    /// What is made of them.
    fn report(&self) -> Report;
}

/// What is made of raw figures.
#[derive(Clone, Debug)]
pub struct Report {
    /// The table that tells the most, in Markdown, for who reads no more; none where all are as good.
    pub brief: Option<String>,
    /// Text in Markdown: what was measured, and the tables.
    pub text: String,
    /// The plots, and the name of each file, without `.svg`.
    pub plots: Vec<(String, Plot)>,
}

/// Where a benchmark's figures go; part of its command line.
#[derive(Args, Clone, Debug, Default)]
pub struct Output {
    /// Print the raw figures as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the raw figures, the tables and the plots to this folder
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

impl Output {
    /// Writes and prints them.
    pub fn publish<R: Raw>(&self, raw: &R) -> Result<()> {
        if let Some(folder) = &self.out {
            save(folder, raw)?;
            render::<R>(folder)?;
        }
        match self.json {
            true => println!("{}", serde_json::to_string(raw)?),
            false => print!("{}", raw.report().text),
        }
        Ok(())
    }
}

/// Writes the raw figures into a folder, `NAME.json`.
pub fn save<R: Raw>(folder: &Path, raw: &R) -> Result<()> {
    let mut text = serde_json::to_string_pretty(raw).context("make JSON of the figures")?;
    text.push('\n');
    write(folder, &format!("{}.json", R::NAME), &text)
}

/// Reads the raw figures from a folder; none where that benchmark did not run.
pub fn read<R: Raw>(folder: &Path) -> Result<Option<R>> {
    let file = folder.join(format!("{}.json", R::NAME));
    if !file.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let raw = serde_json::from_str(&text);
    raw.map(Some)
        .with_context(|| format!("read the figures in {}", file.display()))
}

/// Writes the plots of a folder's raw figures beside them, and returns all that is made of them; none
/// where that benchmark did not run.
pub fn render<R: Raw>(folder: &Path) -> Result<Option<Report>> {
    let Some(raw) = read::<R>(folder)? else {
        return Ok(None);
    };
    let report = raw.report();
    for (name, plot) in &report.plots {
        write(folder, &format!("{name}.svg"), &plot.to_svg())?;
    }
    Ok(Some(report))
}

/// A ratio beside the most that was promised of it: `1.05 (<= 1.10)`, `1.35 (above 1.10)`.
pub fn against(ratio: f64, most: f64) -> String {
    match ratio <= most {
        true => format!("{ratio:.2} (<= {most:.2})"),
        false => format!("{ratio:.2} (above {most:.2})"),
    }
}

/// Writes one file into a folder, which is made where there is none.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_compared_with_what_was_promised() {
        assert_eq!(against(1.046, 1.1), "1.05 (<= 1.10)");
        assert_eq!(against(1.35, 1.1), "1.35 (above 1.10)");
        assert_eq!(against(f64::NAN, 1.1), "NaN (above 1.10)");
    }
}
