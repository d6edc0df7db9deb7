//! The table of gates.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row as Cells, Table};

use super::{short, state};
use crate::health::Health;
use crate::top::model::{Daemon, Found, Model, Row};

/// Letters of the sparkline, from fast to slow.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// For a check that failed.
const FAILED: char = '×';

/// From this height on it has a heading.
const WITH_HEADING: u16 = 3;

const GATE_MIN: u16 = 8;
const GATE_MAX: u16 = 40;

/// A column besides the gate's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    State,
    Lease,
    Held,
    Longest,
    Passed,
    Holding,
    Released,
    Dropped,
    Rejected,
    Health,
}

impl Column {
    /// In the order in which they stand.
    const ALL: [Self; 10] = [
        Self::State,
        Self::Lease,
        Self::Held,
        Self::Longest,
        Self::Passed,
        Self::Holding,
        Self::Released,
        Self::Dropped,
        Self::Rejected,
        Self::Health,
    ];

    /// In the order in which they get room.
    const BY_WORTH: [Self; 10] = [
        Self::State,
        Self::Lease,
        Self::Held,
        Self::Health,
        Self::Longest,
        Self::Passed,
        Self::Holding,
        Self::Released,
        Self::Rejected,
        Self::Dropped,
    ];

    const fn heading(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Lease => "lease",
            Self::Held => "held",
            Self::Longest => "longest",
            Self::Passed => "pass/s",
            Self::Holding => "hold/s",
            Self::Released => "rels/s",
            Self::Dropped => "drop/s",
            Self::Rejected => "rej/s",
            Self::Health => "health",
        }
    }

    const fn width(self) -> u16 {
        match self {
            Self::State => 11,
            Self::Lease | Self::Longest => 7,
            Self::Held | Self::Passed | Self::Holding | Self::Released => 6,
            Self::Dropped | Self::Rejected => 6,
            Self::Health => 16,
        }
    }
}

/// Rows for which there is room.
pub(super) fn page(area: Rect) -> usize {
    usize::from(area.height - u16::from(area.height >= WITH_HEADING))
}

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let shown = model.shown();
    if shown.is_empty() {
        let text = match model.filter.is_empty() {
            true => "no gate was defined or closed yet".to_owned(),
            false => format!("no gate has \"{}\" in its name", model.filter),
        };
        frame.render_widget(Line::from(text), area);
        return;
    }
    let page = page(area);
    let selected = model.position();
    // The selected gate is kept in the middle, as far as there are others on both sides.
    let last = shown.len().saturating_sub(page);
    let first = selected.unwrap_or(0).saturating_sub(page / 2).min(last);
    let longest = shown.iter().map(|row| row.label.len()).max().unwrap_or(0);
    let longest = u16::try_from(longest).unwrap_or(u16::MAX);
    let with_health = matches!(model.daemon, Daemon::Here(_));
    let columns = columns(area.width, longest, with_health);
    // What is left over is the sparkline's.
    let used: u16 = columns.iter().map(|column| column.width() + 1).sum();
    let gate = area
        .width
        .saturating_sub(used)
        .min(longest.clamp(GATE_MIN, GATE_MAX));
    let spare = area.width.saturating_sub(used + gate);
    let rows = shown.iter().enumerate().skip(first).take(page);
    let rows = rows.map(|(at, row)| {
        let style = match Some(at) == selected {
            true => Style::new().add_modifier(Modifier::REVERSED),
            false => Style::new(),
        };
        let cells = columns
            .iter()
            .map(|column| cell(model, row, *column, spare));
        Cells::new([Cell::from(row.label.clone())].into_iter().chain(cells)).style(style)
    });
    let widths = columns.iter().map(|column| match column {
        Column::Health => Constraint::Length(column.width() + spare),
        column => Constraint::Length(column.width()),
    });
    let widths = [Constraint::Length(gate)].into_iter().chain(widths);
    let mut table = Table::new(rows, widths).column_spacing(1);
    if area.height >= WITH_HEADING {
        let headings = columns.iter().map(|column| match column {
            Column::State | Column::Health => Line::from(column.heading()),
            column => Line::from(column.heading()).right_aligned(),
        });
        let headings = [Line::from("gate")].into_iter().chain(headings);
        let style = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
        table = table.header(Cells::new(headings).style(style));
    }
    frame.render_widget(table, area);
}

/// Those for which there is room beside the gate's own.
fn columns(width: u16, longest: u16, with_health: bool) -> Vec<Column> {
    let mut room =
        width.saturating_sub(longest.clamp(GATE_MIN, GATE_MAX.min(width / 2).max(GATE_MIN)));
    let mut chosen = Vec::new();
    let by_worth = Column::BY_WORTH.into_iter();
    for column in by_worth.filter(|it| with_health || *it != Column::Health) {
        match room.checked_sub(column.width() + 1) {
            Some(left) => {
                room = left;
                chosen.push(column);
            }
            // A narrow one must not take the place of one that is worth more.
            None => break,
        }
    }
    let mut columns = Column::ALL.to_vec();
    columns.retain(|column| chosen.contains(column));
    columns
}

fn cell(model: &Model, row: &Row, column: Column, spare: u16) -> Cell<'static> {
    let rate = |of: fn(&crate::top::model::Rates) -> f64| match &row.rates {
        Some(rates) => right(per_second(of(rates))),
        None => Cell::default(),
    };
    match column {
        Column::State => {
            let (text, style) = state(row);
            Cell::from(Span::styled(text, style))
        }
        Column::Lease => right(model.left(row).map_or("-".to_owned(), short)),
        Column::Held => right(row.held.to_string()),
        Column::Longest if row.held == 0 => right("-".to_owned()),
        Column::Longest => right(short(row.longest)),
        Column::Passed => rate(|rates| rates.passed),
        Column::Holding => rate(|rates| rates.held),
        Column::Released => rate(|rates| rates.released),
        Column::Dropped => rate(|rates| rates.dropped),
        Column::Rejected => rate(|rates| rates.rejected),
        Column::Health => {
            let room = usize::from(Column::Health.width() + spare);
            let found = model.health(&row.label);
            found.map_or_else(Cell::default, |found| Cell::from(health(found, room)))
        }
    }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn per_second(rate: f64) -> String {
    match rate {
        // What is less than once in ten seconds.
        ..0.05 => "-".to_owned(),
        ..9.95 => format!("{rate:.1}"),
        ..99_999.5 => format!("{rate:.0}"),
        _ => format!("{:.0}k", rate / 1e3),
    }
}

/// The word, and what came of the last checks: how long each took, compared with the slowest.
fn health(found: &Found, room: usize) -> Line<'static> {
    let color = match found.health {
        Health::Up => Color::Green,
        Health::Down => Color::Red,
        Health::Unknown => Color::Yellow,
    };
    let word = found.health.name();
    let mut spans = vec![Span::styled(format!("{word:<5}"), Style::new().fg(color))];
    let skipped = found.history.len().saturating_sub(room.saturating_sub(5));
    let slowest = found.history.iter().map(|it| it.ms).fold(0.0, f64::max);
    for sample in found.history.iter().skip(skipped) {
        let (letter, color) = match sample.passed {
            true => {
                let part = sample.ms / slowest.max(f64::MIN_POSITIVE);
                let bar = (part * (BARS.len() - 1) as f64).round() as usize;
                (BARS[bar.min(BARS.len() - 1)], Color::Green)
            }
            false => (FAILED, Color::Red),
        };
        spans.push(Span::styled(letter.to_string(), Style::new().fg(color)));
    }
    Line::from(spans)
}
