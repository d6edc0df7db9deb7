//! What the keys of `gate top` mean.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Dialog, Model, Verb};
use crate::gates::Target;

/// The keys, as the help lists them.
pub const KEYS: [(&str, &str); 11] = [
    ("up, k / down, j", "select a gate"),
    ("PgUp, PgDn", "a page up or down"),
    ("Home, g / End, G", "the first, the last gate"),
    (
        "h",
        "hold new connections (asks; left and right choose the lease)",
    ),
    (
        "o",
        "open, and release what is held (asks where the gate is closed)",
    ),
    ("d", "drain: wait until its connections are gone"),
    ("/", "show only gates with a text in their name"),
    ("Esc", "close what is on top; show all gates again"),
    ("c", "clear the last answer"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit; the gates stay as they are"),
];

/// What is to be done outside of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// End.
    Quit,
    /// Do this to a gate.
    Do(Verb, Target),
}

/// Takes a key.
pub fn press(model: &mut Model, key: KeyEvent) -> Action {
    if key.kind == KeyEventKind::Release {
        return Action::None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Action::Quit,
            _ => Action::None,
        };
    }
    match model.dialog.clone() {
        Dialog::None => browse(model, key.code),
        Dialog::Help => {
            model.dialog = Dialog::None;
            Action::None
        }
        Dialog::Filter => filter(model, key.code),
        Dialog::Confirm(verb, target) => confirm(model, key.code, verb, target),
    }
}

fn browse(model: &mut Model, key: KeyCode) -> Action {
    let page = isize::try_from(model.page.max(1)).unwrap_or(isize::MAX);
    match key {
        KeyCode::Up | KeyCode::Char('k') => model.select(-1),
        KeyCode::Down | KeyCode::Char('j') => model.select(1),
        KeyCode::PageUp => model.select(-page),
        KeyCode::PageDown => model.select(page),
        KeyCode::Home | KeyCode::Char('g') => model.select(isize::MIN),
        KeyCode::End | KeyCode::Char('G') => model.select(isize::MAX),
        KeyCode::Char('?') | KeyCode::F(1) => model.dialog = Dialog::Help,
        KeyCode::Char('/') => model.dialog = Dialog::Filter,
        KeyCode::Char('c') => model.outcome = None,
        KeyCode::Esc => set_filter(model, String::new()),
        KeyCode::Char('q') => return Action::Quit,
        KeyCode::Char('h') => return ask(model, Verb::Hold(model.lease())),
        KeyCode::Char('o') => return ask(model, Verb::Open),
        KeyCode::Char('d') => return ask(model, Verb::Drain),
        _ => {}
    }
    Action::None
}

/// Asks first where something would change.
fn ask(model: &mut Model, verb: Verb) -> Action {
    let Some(row) = model.row() else {
        return Action::None;
    };
    let Some(target) = row.target.clone() else {
        return Action::None;
    };
    let changes = match verb {
        Verb::Hold(_) => true,
        Verb::Open => row.deadline.is_some(),
        Verb::Drain => false,
    };
    match changes {
        true => {
            model.dialog = Dialog::Confirm(verb, target);
            Action::None
        }
        false => Action::Do(verb, target),
    }
}

fn confirm(model: &mut Model, key: KeyCode, verb: Verb, target: Target) -> Action {
    match (key, verb) {
        (KeyCode::Char('y' | 'Y') | KeyCode::Enter, _) => {
            model.dialog = Dialog::None;
            return Action::Do(verb, target);
        }
        (KeyCode::Left | KeyCode::Right, Verb::Hold(_)) => {
            model.choose_lease(key == KeyCode::Right);
            model.dialog = Dialog::Confirm(Verb::Hold(model.lease()), target);
        }
        (KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc, _) => model.dialog = Dialog::None,
        _ => {}
    }
    Action::None
}

fn filter(model: &mut Model, key: KeyCode) -> Action {
    let mut text = model.filter.clone();
    match key {
        KeyCode::Enter => model.dialog = Dialog::None,
        KeyCode::Esc => {
            model.dialog = Dialog::None;
            set_filter(model, String::new());
        }
        KeyCode::Backspace => {
            text.pop();
            set_filter(model, text);
        }
        KeyCode::Char(letter) => {
            text.push(letter);
            set_filter(model, text);
        }
        _ => {}
    }
    Action::None
}

/// Filters anew; the selected gate stays selected where it is still shown.
fn set_filter(model: &mut Model, filter: String) {
    model.filter = filter;
    if model.position().is_none() {
        model.selected = model.shown().first().map(|row| row.label.clone());
    }
}

#[cfg(test)]
mod tests;
