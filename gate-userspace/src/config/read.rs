//! Reads the files: bytes, text, TOML, the form. What each says is looked at elsewhere.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::getuid;
use serde::Deserialize as _;
use toml::de::{DeTable, DeValue, Deserializer};

use super::error::{Place, Problems, Source};
use super::file::File;
use super::schema::schema;
use super::shape::Walk;

/// Largest file that is read, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// Duplicated keys of a file whose other place is looked for: it takes another parse.
const TRACED: usize = 20;

/// The folder of further files, beside the main one.
pub(super) const FOLDER: &str = "conf.d";

/// Reads the main file and those of `conf.d`, in the order of their names; each with its number.
pub(super) fn read_all(path: &Path, problems: &mut Problems) -> Vec<(usize, File)> {
    let mut files = Vec::new();
    files.extend(read(path.to_owned(), problems));
    let folder = path.parent().unwrap_or(Path::new("")).join(FOLDER);
    match listed(&folder) {
        Ok(paths) => files.extend(paths.into_iter().filter_map(|it| read(it, problems))),
        Err(error) => whole(problems, folder, unreadable(&error)),
    }
    files
}

/// The files of the folder; none where there is no folder.
fn listed(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|it| it == "toml") && !is_hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn whole(problems: &mut Problems, path: PathBuf, text: String) {
    let file = problems.sources.len();
    problems.sources.push(Source::new(path, String::new()));
    problems.add(Place::whole(file), text);
}

/// Reads one file; none where it can't be read, or is no TOML.
fn read(path: PathBuf, problems: &mut Problems) -> Option<(usize, File)> {
    let bytes = match bytes(&path) {
        Ok(bytes) => bytes,
        Err(text) => {
            whole(problems, path, text);
            return None;
        }
    };
    let file = problems.sources.len();
    match String::from_utf8(bytes) {
        Ok(text) => {
            let parsed = parse(&text, file, path, problems);
            parsed.map(|parsed| (file, parsed))
        }
        Err(error) => {
            let end = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            let byte = bytes.get(end).copied().unwrap_or_default();
            bytes.truncate(end);
            let text = String::from_utf8(bytes).unwrap_or_default();
            problems.sources.push(Source::new(path, text));
            let text = format!("byte 0x{byte:02x} is not UTF-8: save the file as UTF-8");
            problems.add(Place::new(file, &(end..end)), text);
            None
        }
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Result<Vec<u8>, String>> {
        // Without waiting for whoever would write into a FIFO.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        let found = file.metadata()?;
        if found.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if !found.is_file() {
            return Ok(Err("it is no plain file: name one".to_owned()));
        }
        // Who may write it could have root run programs, as checks.
        if getuid().is_root() && (found.uid() != 0 || found.mode() & 0o022 != 0) {
            let shown = path.display();
            return Ok(Err(format!(
                "others than root may write it, and its checks run as root: `chown root {shown}` \
                 and `chmod go-w {shown}`"
            )));
        }
        let mut bytes = Vec::new();
        file.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > SIZE_MAX {
            return Ok(Err(format!(
                "it is larger than 1 MiB: split it into files of {FOLDER}"
            )));
        }
        Ok(Ok(bytes))
    };
    read().unwrap_or_else(|error| Err(unreadable(&error)))
}

pub(super) fn unreadable(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "there is no such file: write it, or name another by --config".to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            "it may not be read by this user: change its permissions, or run as root".to_owned()
        }
        Some(libc::EISDIR) => "it is a folder: name a file".to_owned(),
        Some(libc::ENOTDIR) => "a part of its path is no folder: check the path".to_owned(),
        Some(libc::ELOOP) => "its symbolic links go round in a loop: remove it".to_owned(),
        _ => format!("it can't be read ({error}): check the path and the disk"),
    }
}

/// Parses a file's text. `file` is the number that it gets.
fn parse(text: &str, file: usize, path: PathBuf, problems: &mut Problems) -> Option<File> {
    problems.sources.push(Source::new(path, text.to_owned()));
    let (mut table, errors) = DeTable::parse_recoverable(text);
    let mut is_toml = true;
    for (count, error) in errors.iter().enumerate() {
        let bytes = error.span().unwrap_or(0..0);
        let place = Place::new(file, &bytes);
        if error.message() == "duplicate key" {
            let key = text.get(bytes.clone()).unwrap_or_default();
            let first = (count < TRACED).then(|| first_place(text, key, bytes.start));
            let first = first.flatten().map(|at| Place::new(file, &(at..at)));
            let other = first.map_or(String::new(), |it| format!(" ({})", problems.name(&it)));
            let text = format!("{key} is there already{other}: keep one of them");
            problems.add(place, text);
            continue;
        }
        is_toml = false;
        let message = error.message().replace('\n', ", ");
        problems.add(place, format!("no TOML, {message}: correct it"));
    }
    if !is_toml {
        // What a parser makes of the rest would only mislead.
        return None;
    }
    let mut walk = Walk { problems, file };
    walk.table(table.get_mut(), schema(), (&(0..0), ""));
    match File::deserialize(Deserializer::from(table)) {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            // The walk has seen to all that the schema tells.
            let bytes = error.span().unwrap_or(0..0);
            let text = format!("{}: correct it", error.message().replace('\n', ", "));
            problems.add(Place::new(file, &bytes), text);
            None
        }
    }
}

/// Where a key was that is met again at `again`: the nearest one before it of that name. The parser
/// forgets the first of two tables, but what comes before the second still has it.
fn first_place(text: &str, key: &str, again: usize) -> Option<usize> {
    let before = text.get(..again)?;
    let line = before.rfind('\n').map_or(0, |at| at + 1);
    let bare = key.trim_matches(['"', '\'']);
    [text.get(..line)?, before].into_iter().find_map(|part| {
        let (table, _) = DeTable::parse_recoverable(part);
        let mut found = None;
        last_key(table.get_ref(), bare, &mut found);
        found
    })
}

fn last_key(table: &DeTable<'_>, name: &str, found: &mut Option<usize>) {
    for (key, value) in table {
        if key.get_ref() == name {
            *found = (*found).max(Some(key.span().start));
        }
        last_key_in(value.get_ref(), name, found);
    }
}

fn last_key_in(value: &DeValue<'_>, name: &str, found: &mut Option<usize>) {
    match value {
        DeValue::Table(table) => last_key(table, name, found),
        DeValue::Array(items) => {
            let items = items.iter().map(toml::Spanned::get_ref);
            items.for_each(|item| last_key_in(item, name, found));
        }
        _ => {}
    }
}
