//! How to compile the data path: the file `cargo xtask build` writes and
//! `gate-userspace/build.rs` follows.
//!
//! Both include this file, so it uses nothing but std.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Names another recipe than the one in the cache.
pub const RECIPE_VARIABLE: &str = "GATE_BPF_RECIPE";

/// Its name in [`cache_folder`].
pub const RECIPE_FILE: &str = "bpf-recipe";

/// A cargo call that compiles for BPF, in plain lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// Where the toolchain comes from, for a reader of the file.
    pub comments: Vec<String>,
    /// The cargo to run; without one, the cargo that is building Gate.
    pub program: Option<PathBuf>,
    /// What follows `cargo build`, before the package and the target.
    pub args: Vec<String>,
    /// Flags for rustc, one a line, so that a path may hold blanks.
    pub rustflags: Vec<String>,
    /// The environment that cargo and rustc need.
    pub env: Vec<(String, String)>,
}

impl Recipe {
    /// Reads what [`fmt::Display`] wrote. The error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut recipe = Self::default();
        for (index, line) in text.lines().enumerate() {
            let unknown = || format!("line {}: can't understand {line:?}", index + 1);
            if let Some(comment) = line.strip_prefix('#') {
                recipe.comments.push(comment.trim_start().to_owned());
                continue;
            }
            if line.trim().is_empty() {
                continue;
            }
            let (word, value) = line.split_once(' ').ok_or_else(unknown)?;
            match word {
                "program" => recipe.program = Some(PathBuf::from(value)),
                "arg" => recipe.args.push(value.to_owned()),
                "rustflag" => recipe.rustflags.push(value.to_owned()),
                "env" => {
                    let (name, value) = value.split_once('=').ok_or_else(unknown)?;
                    recipe.env.push((name.to_owned(), value.to_owned()));
                }
                _ => return Err(unknown()),
            }
        }
        Ok(recipe)
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for comment in &self.comments {
            writeln!(out, "# {comment}")?;
        }
        if let Some(program) = &self.program {
            writeln!(out, "program {}", program.display())?;
        }
        for arg in &self.args {
            writeln!(out, "arg {arg}")?;
        }
        for flag in &self.rustflags {
            writeln!(out, "rustflag {flag}")?;
        }
        for (name, value) in &self.env {
            writeln!(out, "env {name}={value}")?;
        }
        Ok(())
    }
}

/// The folder for what is fetched once per user, or `None` without a home.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_from(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
}

/// Where the recipe is, or `None` without a home.
pub fn recipe_path() -> Option<PathBuf> {
    match env::var_os(RECIPE_VARIABLE) {
        Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
        _ => Some(cache_folder()?.join(RECIPE_FILE)),
    }
}

/// The XDG rule: a relative path counts as not set.
fn cache_folder_from(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute =
        |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(xdg).or_else(|| Some(absolute(home)?.join(".cache")))?;
    Some(base.join("gate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let recipe = Recipe {
            comments: vec!["rustc 1.96.0".into()],
            program: Some("/a folder/bin/cargo".into()),
            args: vec!["-Z".into(), "build-std=core".into()],
            rustflags: vec![
                r#"--cfg=bpf_target_arch="x86_64""#.into(),
                "-Clinker=/a b/c".into(),
            ],
            env: vec![("LD_LIBRARY_PATH".into(), "/x=y:/z".into())],
        };
        assert_eq!(Recipe::parse(&recipe.to_string()), Ok(recipe));
    }

    #[test]
    fn an_unknown_line_is_named() {
        let error = Recipe::parse("arg --x\n\nshell rm\n").unwrap_err();
        assert!(error.starts_with("line 3"), "{error}");
        assert!(Recipe::parse("program").is_err());
        assert!(Recipe::parse("env NAME").is_err());
    }

    #[test]
    fn the_cache_follows_xdg_and_then_home() {
        let folder = |xdg: Option<&str>, home: Option<&str>| {
            cache_folder_from(xdg.map(OsString::from), home.map(OsString::from))
        };
        assert_eq!(folder(Some("/x"), Some("/h")), Some("/x/gate".into()));
        assert_eq!(folder(Some("x"), Some("/h")), Some("/h/.cache/gate".into()));
        assert_eq!(folder(None, Some("/h")), Some("/h/.cache/gate".into()));
        assert_eq!(folder(Some(""), None), None);
    }
}
