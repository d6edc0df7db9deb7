//! `cargo xtask docs`: the pages of the book that are made from the program.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo;
use crate::process::output;

/// What prints a page, and where that goes.
const PAGES: [(&[&str], &str); 2] = [
    (&["man", "--markdown"], "docs/reference/commands.md"),
    (&["schema", "--markdown"], "docs/reference/configuration.md"),
];

/// Writes them anew. A test tells when that is due.
pub fn run(gate: &Path) -> Result<()> {
    for (args, page) in PAGES {
        let text = output(Command::new(gate).args(args))?;
        let path = cargo::workspace().join(page);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        eprintln!("Wrote {page}.");
    }
    Ok(())
}
