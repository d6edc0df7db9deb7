//! `gate schema`.

use clap::Args;
use gate_userspace::config;
use serde_json::json;

use super::Answer;

/// Its arguments.
#[derive(Debug, Args)]
pub struct Schema {
    /// As a reference to read, in Markdown.
    #[arg(long)]
    markdown: bool,
}

/// Runs it.
pub fn run(args: &Schema) -> Answer {
    if args.markdown {
        let text = config::markdown();
        let fields = json!({ "markdown": text });
        return Answer::done(text, fields);
    }
    let schema = config::schema();
    Answer::done(format!("{schema:#}\n"), json!({ "schema": schema }))
}
