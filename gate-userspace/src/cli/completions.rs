//! `gate completions`.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::{Shell as Generator, generate};
use serde_json::json;

use super::{Answer, Cli};

/// Its arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
Where they go: bash /usr/share/bash-completion/completions/gate, zsh a folder of $fpath as _gate, fish \
~/.config/fish/completions/gate.fish. Debian's package brings all three.")]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Runs it.
pub fn run(args: &Completions) -> Answer {
    let generator = match args.shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    generate(generator, &mut Cli::command(), "gate", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let fields = json!({ "script": &script });
    Answer::done(script, fields)
}
