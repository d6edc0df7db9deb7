//! What `gate` writes about itself: manual pages and completions. No root needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use gate_tests::exe;

fn gate(args: &[&str]) -> Output {
    Command::new(exe::gate().unwrap())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn printed(args: &[&str]) -> String {
    let output = gate(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands, as the help lists them.
fn commands() -> BTreeSet<String> {
    let help = printed(&["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap();
    listed
        .split("\n\n")
        .next()
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|name| name != "help")
        .collect()
}

/// A fresh folder of this test's own.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn pages(name: &str) -> Vec<PathBuf> {
    let folder = scratch(name);
    printed(&["man", "--out", folder.to_str().unwrap()]);
    let mut pages: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    pages.sort();
    pages
}

#[test]
fn gate_and_each_command_has_a_page() {
    let commands = commands();
    assert!(
        commands.len() >= 21 && commands.contains("soft-stop"),
        "{commands:?}"
    );
    let mut expected: BTreeSet<String> = commands
        .iter()
        .map(|command| format!("gate-{command}.8"))
        .collect();
    expected.insert("gate.8".to_owned());
    let written: BTreeSet<String> = pages("each-has-a-page")
        .iter()
        .map(|page| page.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn the_pages_are_rendered_without_warnings() {
    for page in pages("without-warnings") {
        let output = groff().arg(&page).output().unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{warnings}");
        let text = String::from_utf8_lossy(&output.stdout);
        let name = page.file_stem().unwrap().to_str().unwrap();
        for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", name] {
            assert!(
                text.contains(part),
                "{}: no {part}:\n{text}",
                page.display()
            );
        }
    }
}

/// groff with all its warnings, as text without overstrikes.
fn groff() -> Command {
    let mut groff = Command::new(exe::foreign("groff", "GATE_TEST_GROFF").unwrap());
    groff.args(["-ww", "-man", "-Tutf8", "-P-cbou"]);
    if let Ok(folders) = std::env::var("GATE_TEST_GROFF_LIBS") {
        groff.env("LD_LIBRARY_PATH", folders);
    }
    if let Ok(root) = std::env::var("GATE_TEST_GROFF_ROOT") {
        let share = Path::new(&root).join("share/groff/current");
        groff
            .env("GROFF_FONT_PATH", share.join("font"))
            .env("GROFF_TMAC_PATH", share.join("tmac"))
            .env("GROFF_BIN_PATH", Path::new(&root).join("bin"));
    }
    groff
}

#[test]
fn a_page_tells_of_exit_codes_files_and_the_environment() {
    let gate = printed(&["man"]);
    for text in [
        ".SH \"EXIT STATUS\"",
        ".SH FILES",
        ".SH ENVIRONMENT",
        "/etc/gate/gate.toml",
        "GATE_LOG",
    ] {
        assert!(gate.contains(text), "no {text}:\n{gate}");
    }
    let drain = printed(&["man", "drain"]);
    assert!(drain.contains(".SH \"EXIT STATUS\""), "{drain}");
}

#[test]
fn a_page_of_no_command_is_a_usage_error() {
    let output = gate(&["man", "hodl"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        text,
        "gate: there is no command hodl: `gate --help` lists them\n"
    );
}

#[test]
fn the_completions_of_bash_parse_and_complete() {
    let script = printed(&["completions", "bash"]);
    let path = scratch("completions").join("gate");
    fs::write(&path, &script).unwrap();
    let parsed = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    assert!(
        parsed.status.success() && parsed.stderr.is_empty(),
        "{parsed:?}"
    );
    // As a person who types `gate ho<TAB>`, and `gate up --hook tc-<TAB>`.
    for (words, expected) in [
        ("gate ho", "hold"),
        ("gate up --hook tc-", "tc-ingress tc-egress"),
    ] {
        let complete = format!(
            ". '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _gate gate \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            path.display()
        );
        let output = Command::new("bash")
            .args(["--norc", "-c", &complete])
            .output()
            .unwrap();
        let reply = String::from_utf8_lossy(&output.stdout);
        assert_eq!(reply.trim(), expected, "{words}: {output:?}");
    }
}

#[test]
fn the_completions_of_zsh_and_fish_have_every_command() {
    for shell in ["zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for command in commands() {
            assert!(script.contains(&command), "{shell}: no {command}");
        }
    }
}

#[test]
fn the_reference_in_markdown_has_every_command() {
    let reference = printed(&["man", "--markdown"]);
    for command in commands() {
        assert!(reference.contains(&format!("\n## gate {command}\n")));
    }
    assert!(!reference.contains("\n\n\n"), "two blank lines in a row");
}
