//! The reference of the commands, for the book.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// All commands in one page.
pub fn render(gate: &mut Command) -> String {
    let mut page = "# Commands\n\n<!-- Made by `gate man --markdown`. -->\n\n".to_owned();
    section(&mut page, gate, "");
    let names: Vec<String> = super::shown(gate)
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names {
        if let Some(command) = gate.find_subcommand_mut(&name) {
            let _infallible = write!(page, "\n## gate {name}\n\n");
            section(&mut page, command, &name);
        }
    }
    page
}

fn section(page: &mut String, command: &mut Command, name: &str) {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    paragraphs(page, &super::sentence(&about));
    let usage = super::usage(command);
    let _infallible = write!(page, "```text\n{usage}\n```\n");
    // --help is everywhere, --json is told of once.
    let is_own = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        !arg.is_hide_set() && id != "help" && (id != "json" || name.is_empty())
    };
    let args: Vec<&Arg> = command.get_arguments().filter(is_own).collect();
    if !args.is_empty() {
        page.push('\n');
    }
    for arg in args {
        let _infallible = writeln!(page, "- {}", entry(arg));
    }
    let after = command.get_after_long_help().or(command.get_after_help());
    if let Some(after) = after.map(ToString::to_string) {
        page.push('\n');
        paragraphs(page, &after);
        // One blank line at the end will do.
        page.pop();
    }
}

/// Paragraphs stay; indented lines become a list.
fn paragraphs(page: &mut String, text: &str) {
    for paragraph in text.split("\n\n") {
        let mut in_list = false;
        for line in paragraph.lines() {
            let item = line
                .strip_prefix("  ")
                .and_then(|item| item.split_once(' '));
            match item {
                Some((term, meaning)) => {
                    if !in_list {
                        page.push('\n');
                    }
                    let _infallible = writeln!(page, "- `{term}` {}", escaped(meaning.trim()));
                }
                None => {
                    if in_list {
                        page.push('\n');
                    }
                    let _infallible = writeln!(page, "{}", escaped(line));
                }
            }
            in_list = item.is_some();
        }
        page.push('\n');
    }
}

fn entry(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let help = escaped(&super::sentence(&help.replace('\n', " ")));
    let mut entry = format!("`{}` {help}", shown(arg));
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        let _infallible = write!(entry, " Default: `{}`.", defaults.join(" "));
    }
    let values = arg.get_possible_values();
    let values = values.iter().filter(|value| !value.is_hide_set());
    let values: Vec<String> = values
        .map(|value| match value.get_help() {
            Some(help) => format!(
                "\n  - `{}`: {}",
                value.get_name(),
                escaped(&help.to_string())
            ),
            None => format!("\n  - `{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() && arg.get_action().takes_values() {
        entry.push_str(&values.concat());
    }
    entry
}

fn shown(arg: &Arg) -> String {
    let value = || {
        let names = arg.get_value_names().unwrap_or_default();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        match names.is_empty() {
            true => arg.get_id().to_string().to_uppercase(),
            false => names.join(" "),
        }
    };
    match arg.get_long() {
        None => value(),
        Some(long) => {
            let short = arg.get_short().map(|short| format!("-{short}, "));
            let value = match arg.get_action().takes_values() {
                true => format!(" {}", value()),
                false => String::new(),
            };
            format!("{}--{long}{value}", short.unwrap_or_default())
        }
    }
}

/// What would be markup: a word like `<br>` or `*:8080`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut in_code = false;
    for c in text.chars() {
        if c == '`' {
            in_code = !in_code;
        }
        if !in_code && matches!(c, '*' | '<' | '>' | '_' | '[' | ']') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
