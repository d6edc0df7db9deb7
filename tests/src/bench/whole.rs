//! All benchmarks side by side, one after the other, into one folder; and their tables and plots.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::record::{self, Raw, Report};
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
    render: fn(&Path) -> Result<Option<Report>>,
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
    let setup = Setup::here()?.asked()?;
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
         makes this page and the plots from them.\n\n{}",
        setup.text
    );
    let mut parts = Vec::new();
    for Part { title, render, .. } in PARTS {
        parts.extend(render(folder)?.map(|part| (title, part)));
    }
    let brief = parts.iter().filter_map(|(_, part)| part.brief.as_ref());
    for (index, table) in brief.enumerate() {
        if index == 0 {
            text += "\n## In brief\n";
        }
        text += &format!("\n{table}");
    }
    for (title, part) in parts {
        text += &format!("\n## {title}\n\n{}\n", part.text.trim_end());
        for (name, plot) in part.plots {
            text += &format!("\n![{}]({name}.svg)\n", plot.title);
        }
    }
    record::write(folder, "README.md", &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folders of the runs that are kept.
    fn kept() -> Vec<PathBuf> {
        let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/runs");
        let runs = std::fs::read_dir(&runs).unwrap_or_else(|error| panic!("{runs:?}: {error}"));
        let mut runs: Vec<PathBuf> = runs.map(|run| run.unwrap().path()).collect();
        runs.sort();
        runs
    }

    #[test]
    fn each_run_that_is_kept_has_the_page_and_the_plots_that_its_figures_make() {
        for run in kept() {
            let folder = std::env::temp_dir().join(format!("gate-kept-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let names = std::fs::read_dir(&run)
                .unwrap()
                .map(|file| file.unwrap().file_name());
            let names: Vec<_> = names.collect();
            for name in &names {
                if Path::new(name).extension().is_some_and(|end| end == "json") {
                    std::fs::copy(run.join(name), folder.join(name)).unwrap();
                }
            }
            report(&folder).unwrap();
            for name in &names {
                let of = |folder: &Path| std::fs::read_to_string(folder.join(name)).unwrap();
                assert!(
                    of(&folder) == of(&run),
                    "{run:?}: {name:?} is not what its figures make"
                );
            }
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), names.len());
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }

    #[test]
    fn the_readme_compares_by_the_newest_run_that_is_kept() {
        let run = kept().pop().unwrap();
        let page = std::fs::read_to_string(run.join("README.md")).unwrap();
        let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        let (_, text) = readme.split_once("\n## How it compares\n").unwrap();
        let (text, _) = text.split_once("\n## ").unwrap();
        let day = run.file_name().unwrap().to_str().unwrap();
        assert!(
            text.contains(&format!("(bench/runs/{day}/README.md)")),
            "{day}"
        );
        let (_, brief) = page.split_once("\n## In brief\n").unwrap();
        let (brief, _) = brief.split_once("\n## ").unwrap();
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        let made: Vec<&str> = brief.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows, made);
    }

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
