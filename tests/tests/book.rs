//! The book: its generated pages are those of the program, its links lead somewhere, and it tells of
//! each error. No root needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gate_tests::exe;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below a folder that end so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_generated_pages_are_those_of_the_program() {
    for (args, page) in [
        ("man", "docs/reference/commands.md"),
        ("schema", "docs/reference/configuration.md"),
    ] {
        let output = Command::new(exe::gate().unwrap())
            .args([args, "--markdown"])
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(
            printed == read(page),
            "{page} is not what `gate {args} --markdown` prints: run `cargo xtask docs`"
        );
    }
}

/// That `gate check` takes a configuration, and finds so many gates in it.
#[track_caller]
fn assert_right(name: &str, text: &str, gates: usize) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("gate.toml");
    fs::write(&path, text).unwrap();
    let output = Command::new(exe::gate().unwrap())
        .args(["check", "--json", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name}: {printed}");
    let fields: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(fields["gates"].as_u64(), Some(gates as u64), "{printed}");
}

#[test]
fn the_configurations_that_it_shows_are_right() {
    let packaged = read("packaging/gate.toml");
    assert_right("packaged", &packaged, 0);
    // With its example.
    let lines = packaged.lines().map(|line| line.strip_prefix("# "));
    let example: Vec<&str> = lines
        .flatten()
        .skip_while(|line| !line.starts_with('['))
        .collect();
    assert_right("packaged-example", &example.join("\n"), 1);
    assert_right("example", &read("docs/gate.toml"), 3);
    let guide = read("docs/configuration.md");
    let shown = guide.split("```toml\n").skip(1);
    let shown: Vec<&str> = shown.filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(shown.len(), 1);
    assert_right("guide", shown[0], 1);
}

#[test]
fn each_page_is_in_the_summary_once() {
    let docs = root().join("docs");
    let pages: Vec<String> = files(&docs, ".md")
        .iter()
        .map(|page| {
            page.strip_prefix(&docs)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .filter(|page| page != "SUMMARY.md")
        .collect();
    let summary = read("docs/SUMMARY.md");
    for page in pages {
        let count = summary.matches(&format!("]({page})")).count();
        assert_eq!(count, 1, "docs/SUMMARY.md has {page} {count} times");
    }
}

/// The targets of a page's links, but for those in code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code || line.starts_with("    ") {
            continue;
        }
        let mut prose = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        while let Some(start) = prose.find("](") {
            let rest = prose.split_off(start + 2);
            let Some((target, rest)) = rest.split_once(')') else {
                break;
            };
            links.push(target.to_owned());
            prose = rest.to_owned();
        }
    }
    links
}

/// How a heading is named in a link.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut pages = files(&root().join("docs"), ".md");
    pages.extend(files(&root().join("packaging"), ".md"));
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ] {
        pages.push(root().join(page));
    }
    let mut count = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if !anchor.is_empty() {
                let anchors = anchors(&fs::read_to_string(&target).unwrap());
                assert!(anchors.contains(anchor), "{}: {link}", page.display());
            }
        }
    }
    assert!(count > 40, "only {count} links were found");
}

/// The texts of a file's errors, as `#[error("…")]` has them.
fn errors(source: &str) -> Vec<String> {
    let mut errors = Vec::new();
    for attribute in source.split("#[error(").skip(1) {
        let attribute = attribute.trim_start();
        let Some(literal) = attribute.strip_prefix('"') else {
            continue;
        };
        let (mut text, mut chars) = (String::new(), literal.chars().peekable());
        while let Some(c) = chars.next().filter(|c| *c != '"') {
            match (c, chars.peek()) {
                // The line goes on in the next one.
                ('\\', Some('\n')) => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                ('\\', Some(_)) => text.extend(chars.next()),
                _ => text.push(c),
            }
        }
        errors.push(text);
    }
    errors
}

/// The words of an error that stay the same, up to the remedy: its first part that has two words. What
/// changes is `…`.
fn heading(error: &str) -> Option<String> {
    let mut text = String::new();
    let mut depth = 0;
    for c in error.chars().filter(|c| *c != '`') {
        match c {
            '{' => {
                if depth == 0 && !text.ends_with('…') {
                    text.push('…');
                }
                depth += 1;
            }
            '}' => depth -= 1,
            _ if depth == 0 => text.push(c),
            _ => {}
        }
    }
    let text = text.replace("; ", ": ").replace("? ", ": ");
    let is_word = |word: &str| word.chars().filter(char::is_ascii_alphabetic).count() >= 2;
    text.split(": ")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .find(|part| {
            part.split([' ', '/', ':', '-', '…'])
                .filter(|word| is_word(word))
                .count()
                >= 2
        })
}

#[test]
fn each_error_is_explained() {
    let page = read("docs/troubleshooting.md");
    let mut missing = Vec::new();
    let mut count = 0;
    for file in files(&root().join("gate-userspace/src"), ".rs") {
        let source = fs::read_to_string(&file).unwrap();
        if !source.contains("thiserror::Error)]") {
            continue;
        }
        for heading in errors(&source).iter().filter_map(|error| heading(error)) {
            count += 1;
            if !page.contains(&format!("\n### `{heading}`\n")) {
                missing.push(heading);
            }
        }
    }
    assert!(count > 80, "only {count} errors were found");
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md lacks these headings, each with what to do:\n### `{}`",
        missing.join("`\n### `")
    );
}
