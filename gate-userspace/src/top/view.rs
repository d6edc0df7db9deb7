//! Draws a [`Model`]: the same model and size, the same screen.

mod detail;
mod table;

use std::time::Duration;

use gate_common::state::Mode;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::keys::KEYS;
use super::model::{Daemon, Dialog, Model, Row, Verb};

/// From this height on there is room for more than the table.
const WITH_DETAIL: u16 = 16;

/// And from this on for events.
const WITH_EVENTS: u16 = 22;

/// Lines of the detail with its frame, at the most.
const DETAIL_MAX: u16 = 9;

/// Where things go.
struct Places {
    head: Rect,
    table: Rect,
    detail: Rect,
    events: Rect,
    foot: Rect,
}

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let places = places(frame.area(), model);
    frame.render_widget(head(model, places.head.width), places.head);
    if model.rows.is_some() {
        table::draw(frame, model, places.table);
    } else {
        let text = Paragraph::new(nothing(model)).wrap(Wrap { trim: true });
        frame.render_widget(text, places.table);
    }
    if places.detail.height > 2 {
        detail::draw(frame, model, places.detail);
    }
    if places.events.height > 2 {
        events(frame, model, places.events);
    }
    frame.render_widget(foot(model), places.foot);
    match &model.dialog {
        Dialog::None | Dialog::Filter => {}
        Dialog::Help => help(frame),
        Dialog::Confirm(verb, target) => confirm(frame, *verb, &target.to_string()),
    }
}

/// Rows of the table for which there is room.
#[must_use]
pub fn page(area: Rect, model: &Model) -> usize {
    table::page(places(area, model).table)
}

fn places(area: Rect, model: &Model) -> Places {
    let line = |is_there: bool| Constraint::Length(u16::from(is_there));
    let detail = match area.height >= WITH_DETAIL && model.row().is_some() {
        true => detail::height(model).min(DETAIL_MAX),
        false => 0,
    };
    let events = match area.height >= WITH_EVENTS {
        true => area.height / 4,
        false => 0,
    };
    let [head, table, detail, events, foot] = Layout::vertical([
        line(area.height > 2),
        Constraint::Min(1),
        Constraint::Length(detail),
        Constraint::Length(events),
        line(area.height > 1),
    ])
    .areas(area);
    Places {
        head,
        table,
        detail,
        events,
        foot,
    }
}

fn dim(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::DIM))
}

fn head(model: &Model, width: u16) -> Line<'static> {
    let mut parts = vec![Span::styled(
        "gate",
        Style::new().add_modifier(Modifier::BOLD),
    )];
    if let Some(rows) = &model.rows {
        let closed = rows.iter().filter(|row| row.deadline.is_some()).count();
        parts.push(Span::raw(format!(
            "  {} {}, {closed} closed  held {}/{}",
            rows.len(),
            plural("gate", rows.len()),
            model.held(),
            model.held_max
        )));
        let attached = match model.attached.is_empty() {
            true => "attached nowhere".to_owned(),
            false => model.attached.join(", "),
        };
        parts.push(dim(format!("  {attached}")));
    }
    let daemon = match &model.daemon {
        Daemon::Unknown => String::new(),
        Daemon::Here(_) => "daemon".to_owned(),
        Daemon::Away(_) => "no daemon: no health".to_owned(),
    };
    let line = Line::from(parts);
    let room = usize::from(width).saturating_sub(line.width() + daemon.len());
    // Where the line is full the hint would hide more than it tells.
    match room >= 2 && !daemon.is_empty() {
        true => {
            let mut parts = line.spans;
            parts.push(Span::raw(" ".repeat(room)));
            parts.push(dim(daemon));
            Line::from(parts)
        }
        false => line,
    }
}

fn plural(word: &str, count: usize) -> String {
    match count {
        1 => word.to_owned(),
        _ => format!("{word}s"),
    }
}

/// What stands where there are no gates to list.
fn nothing(model: &Model) -> String {
    match &model.trouble {
        Some(trouble) => trouble.clone(),
        None if !model.has_looked => String::new(),
        None => "gate is not up in this network namespace: `gate up INTERFACE`".to_owned(),
    }
}

fn events(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let block = Block::bordered().title(" events, UTC ");
    let room = usize::from(block.inner(area).height);
    let skipped = model.events.len().saturating_sub(room);
    let lines = model.events.iter().skip(skipped).map(|event| {
        // From "2025-11-21T18:33:20Z" the time of day.
        let at = humantime::format_rfc3339_seconds(event.at).to_string();
        let at = at.get(11..19).unwrap_or_default().to_owned();
        let what = crate::report::what(&event.what);
        let text = match &event.gate {
            Some(gate) => format!("  {gate}: {what}"),
            None => format!("  {what}"),
        };
        Line::from(vec![dim(at), Span::raw(text)])
    });
    let mut lines: Vec<Line<'_>> = lines.collect();
    if lines.is_empty() {
        lines.push(Line::from(dim("nothing yet")));
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn foot(model: &Model) -> Line<'static> {
    if model.dialog == Dialog::Filter {
        return Line::from(format!("/{}_", model.filter));
    }
    if let Some(trouble) = model.trouble.as_ref().filter(|_| model.rows.is_some()) {
        return Line::styled(trouble.clone(), Style::new().fg(Color::Red));
    }
    if !model.under_way.is_empty() {
        let text = model.under_way.join("; ");
        return Line::styled(text, Style::new().fg(Color::Yellow));
    }
    match &model.outcome {
        Some((text, true)) => Line::styled(text.clone(), Style::new().fg(Color::Red)),
        Some((text, false)) => Line::styled(text.clone(), Style::new().fg(Color::Green)),
        None => {
            let mut text = "h hold  o open  d drain  / filter  ? help  q quit".to_owned();
            if !model.filter.is_empty() {
                text = format!("/{}  Esc shows all  {text}", model.filter);
            }
            Line::from(dim(text))
        }
    }
}

/// A box in the middle, no larger than the screen.
fn dialog(frame: &mut Frame<'_>, title: &str, lines: Vec<Line<'_>>) {
    let area = frame.area();
    let widest = lines.iter().map(Line::width).max().unwrap_or(0);
    let width = u16::try_from(widest + 4).unwrap_or(u16::MAX);
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX);
    let place = area.centered(
        Constraint::Length(width.min(area.width)),
        Constraint::Length(height.min(area.height)),
    );
    let block = Block::bordered().title(format!(" {title} "));
    frame.render_widget(Clear, place);
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(text.block(block), place);
}

fn help(frame: &mut Frame<'_>) {
    let wide = KEYS.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines = KEYS.iter().map(|(key, what)| {
        let key = Span::styled(
            format!(" {key:<wide$}  "),
            Style::new().add_modifier(Modifier::BOLD),
        );
        Line::from(vec![key, Span::raw(*what)])
    });
    dialog(frame, "keys", lines.collect());
}

fn confirm(frame: &mut Frame<'_>, verb: Verb, target: &str) {
    let (question, more) = match verb {
        Verb::Hold(lease) => (
            format!(
                " Hold new connections to {target} for {}?",
                humantime::format_duration(lease)
            ),
            " left, right: another time",
        ),
        Verb::Open => (format!(" Open {target}, and release what it holds?"), ""),
        Verb::Drain => (format!(" Wait for the connections of {target}?"), ""),
    };
    let lines = [&question, " y: yes   n: no", more];
    let lines = lines.into_iter().filter(|line| !line.is_empty());
    dialog(frame, "sure?", lines.map(Line::from).collect());
}

/// What state a gate is in, in a word or two, and how that looks.
fn state(row: &Row) -> (&'static str, Style) {
    let plain = Style::new();
    let missing = row
        .guard
        .as_ref()
        .is_some_and(|(_, missing)| !missing.is_empty());
    match row.mode {
        Mode::Hold => ("hold", plain.fg(Color::Yellow)),
        Mode::Drop => ("drop", plain.fg(Color::Magenta)),
        Mode::Reject => ("reject", plain.fg(Color::Red)),
        Mode::Open if missing => (
            "no listener",
            plain.fg(Color::Red).add_modifier(Modifier::BOLD),
        ),
        Mode::Open if row.expired => ("lease over", plain.fg(Color::Red)),
        Mode::Open if row.guard.is_some() => ("guarded", plain.fg(Color::Cyan)),
        Mode::Open => ("open", plain),
    }
}

/// A time in seven letters at the most.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match time.as_millis() {
        0..1_000 => format!("{}ms", time.as_millis()),
        1_000..60_000 => format!("{:.1}s", time.as_millis() as f64 / 1e3),
        60_000..3_600_000 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests;
