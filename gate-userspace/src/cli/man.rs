//! `gate man`: the manual, from the definition of the command line.

mod markdown;
mod page;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use gate_userspace::error::exit;
use serde_json::json;

use super::{Answer, Cli, EXIT_CODES_HEADING};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "Read one with `gate man hold | man -l -`.")]
pub struct Man {
    /// The command whose page is printed [default: gate's own].
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write the pages of gate and of each command into this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
    /// Print all commands as one page of Markdown.
    #[arg(long, conflicts_with_all = ["command", "out"])]
    markdown: bool,
}

/// Runs it.
pub fn run(args: &Man) -> anyhow::Result<Answer> {
    let mut gate = Cli::command().disable_help_subcommand(true);
    gate.build();
    if let Some(folder) = &args.out {
        return write_all(&gate, folder);
    }
    if args.markdown {
        return Ok(answer(markdown::render(&mut gate)));
    }
    let command = match &args.command {
        None => &gate,
        Some(name) => match gate.find_subcommand(name) {
            Some(command) => command,
            None => return Ok(unknown(name)),
        },
    };
    Ok(answer(page::render(&gate, command)?))
}

fn answer(page: String) -> Answer {
    let fields = json!({ "page": &page });
    Answer::done(page, fields)
}

fn unknown(name: &str) -> Answer {
    let text = format!("there is no command {name}: `gate --help` lists them");
    Answer {
        text: String::new(),
        fields: json!({ "error": &text, "exit_code": exit::USAGE }),
        code: exit::USAGE,
        complaint: Some(text),
    }
}

fn write_all(gate: &Command, folder: &Path) -> anyhow::Result<Answer> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let mut written = Vec::new();
    for command in [gate].into_iter().chain(shown(gate)) {
        let path = folder.join(format!("{}.{}", page::name(command), page::SECTION));
        fs::write(&path, page::render(gate, command)?)
            .with_context(|| format!("write {}", path.display()))?;
        written.push(path.display().to_string());
    }
    let text = format!("{} pages in {}\n", written.len(), folder.display());
    Ok(Answer::done(text, json!({ "pages": written })))
}

/// The commands, but those that help does not list.
fn shown(gate: &Command) -> impl Iterator<Item = &Command> {
    gate.get_subcommands()
        .filter(|command| !command.is_hide_set())
}

/// How a command is called, without what help writes before it.
fn usage(command: &mut Command) -> String {
    let usage = command.render_usage().to_string();
    usage
        .strip_prefix("Usage: ")
        .unwrap_or(&usage)
        .trim()
        .to_owned()
}

/// The text with a full stop, which the definition leaves out at the end.
fn sentence(text: &str) -> String {
    match text.ends_with(['.', ':', '`']) || text.is_empty() {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}
