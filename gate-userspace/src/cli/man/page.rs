//! One page for `man(1)`.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use gate_userspace::attach::NO_TCX;
use gate_userspace::{config, logging, pins};

/// Of commands for the administrator, `man(7)`.
pub const SECTION: &str = "8";

/// What gate reads and makes on the host, for the page of gate itself.
const FILES: [(&str, &str); 5] = [
    (config::PATH, "The configuration, for gate daemon."),
    (
        "/etc/gate/conf.d/*.toml",
        "More of it, read in the order of their names.",
    ),
    (
        "/run/gate/gate.sock",
        "The daemon's API, for root and the group gate.",
    ),
    (
        pins::GATE,
        "The pinned maps and links: all of gate's state. Root's alone.",
    ),
    (
        "/usr/share/doc/gate/",
        "The book, and examples for systemd, for Prometheus and for Grafana.",
    ),
];

/// What of the environment matters.
const ENVIRONMENT: [(&str, &str); 2] = [
    (
        logging::VARIABLE,
        "How much gate daemon logs, where --log does not say: off, error, warn, info (the default), \
         debug or trace.",
    ),
    (
        NO_TCX,
        "If set, gate attaches by clsact filters also where the kernel has TCX.",
    ),
];

/// The name of a command's page.
pub fn name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

/// The page of a command, which may be gate itself.
pub fn render(gate: &Command, command: &Command) -> anyhow::Result<String> {
    let version = gate.get_version().unwrap_or_default();
    let mut command = command.clone();
    // One line, and not every option in it.
    let usage = super::usage(&mut command);
    let command = command.override_usage(usage);
    let man = Man::new(command.clone())
        .title(name(&command).to_uppercase())
        .section(SECTION)
        .source(format!("gate {version}"))
        .manual("Gate");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut more = Roff::new();
    if command.has_subcommands() {
        commands(&mut more, &command);
    }
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        after_help(&mut more, &text.to_string());
    }
    match command.has_subcommands() {
        true => {
            list(&mut more, "FILES", &FILES);
            list(&mut more, "ENVIRONMENT", &ENVIRONMENT);
        }
        false => {
            more.control("SH", ["SEE ALSO"]);
            more.text([bold("gate"), roman(format!("({SECTION})"))]);
        }
    }
    more.to_writer(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// The commands in the order of the definition, which is that of their use.
fn commands(roff: &mut Roff, gate: &Command) {
    roff.control("SH", ["COMMANDS"]);
    for command in super::shown(gate) {
        roff.control("TP", []);
        roff.text([bold(name(command)), roman(format!("({SECTION})"))]);
        let about = command.get_about().map(ToString::to_string);
        roff.text([roman(super::sentence(&about.unwrap_or_default()))]);
    }
}

fn list(roff: &mut Roff, heading: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [heading]);
    for (term, meaning) in entries {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*meaning)]);
    }
}

/// The text after the options: exit codes become a section, and so does the rest.
fn after_help(roff: &mut Roff, text: &str) {
    let mut has_notes = false;
    let mut codes = Vec::new();
    for paragraph in text.split("\n\n") {
        match paragraph.strip_prefix(super::EXIT_CODES_HEADING) {
            Some(rest) => codes.push(rest),
            None => {
                match has_notes {
                    true => roff.control("PP", []),
                    false => roff.control("SH", ["NOTES"]),
                };
                has_notes = true;
                roff.text([roman(one_line(paragraph))]);
            }
        }
    }
    for text in codes {
        roff.control("SH", ["EXIT STATUS"]);
        exit_codes(roff, text);
    }
}

/// Lines like `  0    done` become a list; what stands in one line stays a sentence.
fn exit_codes(roff: &mut Roff, text: &str) {
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let entry = line
            .strip_prefix("  ")
            .and_then(|entry| entry.split_once(' '));
        match entry {
            Some((code, meaning)) => {
                roff.control("TP", []);
                roff.text([bold(code)]);
                roff.text([roman(meaning.trim())]);
            }
            None => {
                roff.control("PP", []);
                roff.text([roman(line.trim())]);
            }
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
