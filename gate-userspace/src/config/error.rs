//! What is wrong with a configuration, and where.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Most problems that are told.
const TOLD: usize = 100;

/// All that is wrong with a configuration, a line each: the place, the cause, the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// In the order of the files and of the lines; never empty.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In which file.
    pub file: PathBuf,
    /// Where in it; none where it is the file as a whole.
    pub position: Option<Position>,
    /// The cause, then the remedy.
    pub text: String,
}

/// A place in a text, counted from 1. A column is a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", one_line(&self.file.to_string_lossy()))?;
        if let Some(position) = self.position {
            write!(f, "{position}:")?;
        }
        write!(f, " {}", one_line(&self.text))
    }
}

/// What could break a line, or draw on a terminal, is shown escaped.
fn one_line(text: &str) -> String {
    let show = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(show).collect()
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(TOLD).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        match self.problems.len().checked_sub(TOLD) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A place as the reader notes it: a file by its number, and bytes of its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub file: usize,
    pub bytes: Option<Range2>,
}

/// As a range, but with an order.
pub(super) type Range2 = (usize, usize);

impl Place {
    pub(super) fn new(file: usize, bytes: &Range<usize>) -> Self {
        Self {
            file,
            bytes: Some((bytes.start, bytes.end)),
        }
    }

    pub(super) const fn whole(file: usize) -> Self {
        Self { file, bytes: None }
    }
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub text: String,
    /// Where its lines begin.
    lines: Vec<usize>,
}

impl Source {
    pub(super) fn new(path: PathBuf, text: String) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(ends.map(|(at, _)| at + 1));
        let lines = lines.collect();
        Self { path, text, lines }
    }

    /// The line and the column of a byte.
    pub(super) fn position(&self, byte: usize) -> Position {
        let byte = self.text.floor_char_boundary(byte);
        let line = self.lines.partition_point(|begin| *begin <= byte);
        let begin = self.lines.get(line - 1).copied().unwrap_or_default();
        let before = self.text.get(begin..byte).unwrap_or_default();
        Position {
            line,
            column: before.chars().filter(|it| *it != '\u{feff}').count() + 1,
        }
    }
}

/// What was read so far, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub sources: Vec<Source>,
    found: Vec<(Place, String)>,
}

impl Problems {
    pub(super) fn add(&mut self, place: Place, text: impl Into<String>) {
        self.found.push((place, text.into()));
    }

    /// A place in words, for a problem that has another one.
    pub(super) fn name(&self, place: &Place) -> String {
        let Some(source) = self.sources.get(place.file) else {
            return String::new();
        };
        let path = source.path.display();
        match place.bytes {
            None => path.to_string(),
            Some((begin, _)) => format!("{path}:{}", source.position(begin)),
        }
    }

    /// Fails where anything is wrong.
    pub(super) fn finish(mut self) -> Result<(), ConfigError> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort();
        self.found.dedup();
        let sources = &self.sources;
        let problem = |(place, text): (Place, String)| {
            let source = sources.get(place.file);
            Problem {
                file: source.map(|it| it.path.clone()).unwrap_or_default(),
                position: source
                    .zip(place.bytes)
                    .map(|(source, (begin, _))| source.position(begin)),
                text,
            }
        };
        Err(ConfigError {
            problems: self.found.into_iter().map(problem).collect(),
        })
    }
}
