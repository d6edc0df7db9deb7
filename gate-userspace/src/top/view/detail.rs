//! More of the gate that is selected.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};

use super::{dim, plural, short};
use crate::endpoint::Endpoint;
use crate::top::model::{Backend, Model, Row};

/// Lines that it takes, with its frame.
pub(super) fn height(model: &Model) -> u16 {
    let lines = model.row().map_or(0, |row| lines(model, row).len());
    u16::try_from(lines + 2).unwrap_or(u16::MAX)
}

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let Some(row) = model.row() else {
        return;
    };
    let block = Block::bordered().title(format!(" {} ", row.label));
    let text = Paragraph::new(lines(model, row));
    frame.render_widget(text.block(block), area);
}

fn lines(model: &Model, row: &Row) -> Vec<Line<'static>> {
    let found = model.connections.as_ref();
    let found = found.filter(|found| found.label == row.label);
    let endpoints: Vec<String> = row.endpoints.iter().map(ToString::to_string).collect();
    let mut first = vec![dim("endpoints "), Span::raw(endpoints.join(", "))];
    if let Some(found) = found {
        first.push(dim("  established "));
        first.push(Span::raw(found.all.to_string()));
    }
    let mut lines = vec![Line::from(first)];
    if let Some((lease, missing)) = &row.guard {
        lines.push(Line::from(vec![
            dim("guarded   "),
            Span::raw(humantime::format_duration(*lease).to_string()),
        ]));
        lines.extend(missing.iter().map(|(endpoint, since)| {
            let text = format!("nothing listens at {endpoint}, for {}", short(*since));
            Line::styled(text, Style::new().fg(Color::Red))
        }));
    }
    let whole: u32 = row.backends.iter().map(|backend| backend.weight).sum();
    lines.extend(row.backends.iter().map(|backend| {
        let counted = found.and_then(|found| of(&found.each, backend.at));
        backend_line(backend, whole, counted)
    }));
    if !row.allowed.is_empty() {
        let allowed = row.allowed.join(", ");
        lines.push(Line::from(vec![dim("open to "), Span::raw(allowed)]));
    }
    if let Some(why) = model.health(&row.label).and_then(|it| it.why.clone()) {
        lines.push(Line::styled(
            format!("down: {why}"),
            Style::new().fg(Color::Red),
        ));
    }
    lines
}

fn of(each: &[(Endpoint, usize)], at: Endpoint) -> Option<usize> {
    let mut own = each.iter().filter(|(backend, _)| *backend == at);
    own.next().map(|(_, connections)| *connections)
}

fn backend_line(backend: &Backend, whole: u32, connections: Option<usize>) -> Line<'static> {
    let mut spans = vec![
        dim("backend   "),
        Span::raw(backend.at.to_string()),
        Span::raw(format!("  {}/{whole} of new connections", backend.weight)),
    ];
    if let Some(count) = connections {
        spans.push(Span::raw(format!(
            ", {count} {}",
            plural("connection", count)
        )));
    }
    if backend.is_own {
        spans.push(dim("  the gate's own listener"));
    }
    if backend.is_silent {
        let silent = "  nothing listens there";
        spans.push(Span::styled(silent, Style::new().fg(Color::Red)));
    }
    Line::from(spans)
}
