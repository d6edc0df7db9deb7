//! All benchmarks side by side, one after the other, into one folder; and their tables and plots.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::record::{self, Raw};
use super::setup::Setup;
use super::{cost, flood, restart, scale};
use crate::exe;

/// The benchmarks that stand side by side with what people use today, in the order of the page.
const PARTS: [Part; 4] = [
    Part::of::<restart::Figures>("Restart"),
    Part::of::<cost::Cost>("Cost"),
    Part::of::<flood::Flood>("Flood"),
    Part::of::<scale::Scale>("Scale"),
];

/// One of them.
struct Part {
    name: &'static str,
    title: &'static str,
    render: fn(&Path) -> Result<Option<String>>,
}

impl Part {
    const fn of<R: Raw>(title: &'static str) -> Self {
        Self {
            name: R::NAME,
            title,
            render: record::render::<R>,
        }
    }
}

/// The command line of `gate-lab bench all`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// In which folder to make the run's own, named by the day
    #[arg(long, value_name = "FOLDER", default_value = "bench/runs")]
    pub runs: PathBuf,
}

/// The command line of `gate-lab bench report`.
#[derive(Args, Clone, Debug)]
pub struct ReportOptions {
    /// A run's folder
    pub folder: PathBuf,
}

/// Measures everything, and makes the tables and plots. A benchmark is a process of its own, so
/// none has to do with what another left in memory.
pub fn all(options: &Options) -> Result<()> {
    let setup = Setup::here()?;
    let folder = options.runs.join(setup.day());
    record::save(&folder, &setup)?;
    let lab = exe::lab()?;
    for Part { name, .. } in PARTS {
        eprintln!("gate-lab: bench {name}");
        let status = Command::new(&lab)
            .args(["bench", name, "--out"])
            .arg(&folder)
            .status()
            .with_context(|| format!("run {}", lab.display()))?;
        ensure!(status.success(), "bench {name} failed ({status})");
    }
    report(&folder)?;
    eprintln!(
        "gate-lab: the figures, tables and plots are in {}",
        folder.display()
    );
    Ok(())
}

/// Makes the tables and plots of a run's raw figures again.
pub fn report(folder: &Path) -> Result<()> {
    let setup = record::render::<Setup>(folder)?
        .with_context(|| format!("{} has no run: it has no setup.json", folder.display()))?;
    let mut text = format!(
        "# One run of `cargo xtask bench`\n\n\
         All of it in one go, on one machine. The `.json` files have each single figure; `gate-lab bench report` \
         makes this page and the plots from them.\n\n{setup}"
    );
    for Part { title, render, .. } in PARTS {
        if let Some(part) = render(folder)? {
            text += &format!("\n## {title}\n\n{}\n", part.trim_end());
        }
    }
    record::write(folder, "README.md", &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_made_of_what_was_measured_and_of_nothing_else() {
        let folder = std::env::temp_dir().join(format!("gate-run-{}", std::process::id()));
        assert!(report(&folder).is_err(), "there is no run");
        record::save(&folder, &Setup::here().unwrap()).unwrap();
        record::save(&folder, &restart::Figures::default()).unwrap();
        report(&folder).unwrap();
        let page = std::fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(
            page.contains("## Restart") && !page.contains("## Flood"),
            "{page}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
