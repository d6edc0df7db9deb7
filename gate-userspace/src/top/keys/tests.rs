use std::time::Duration;

use super::*;
use crate::top::model::tests::model;

fn key(code: KeyCode) -> KeyEvent {
    KeyEvent::new(code, KeyModifiers::NONE)
}

/// Presses these keys, of which only the last may ask for something.
#[track_caller]
fn press_all(model: &mut Model, keys: &[KeyCode]) -> Action {
    let (last, first) = keys.split_last().expect("a key");
    for code in first {
        assert_eq!(press(model, key(*code)), Action::None, "{code:?}");
    }
    press(model, key(*last))
}

fn letters(text: &str) -> Vec<KeyCode> {
    text.chars().map(KeyCode::Char).collect()
}

fn web() -> Target {
    "web".parse().unwrap()
}

#[test]
fn gates_are_selected_and_the_ends_are_the_ends() {
    let mut model = model();
    model.page = 2;
    for (code, selected) in [
        (KeyCode::Down, "web"),
        (KeyCode::Char('j'), "10.0.0.5:81"),
        (KeyCode::Char('j'), "10.0.0.5:81"),
        (KeyCode::Char('k'), "web"),
        (KeyCode::Up, "api"),
        (KeyCode::Up, "api"),
        (KeyCode::PageDown, "10.0.0.5:81"),
        (KeyCode::PageUp, "api"),
        (KeyCode::Char('G'), "10.0.0.5:81"),
        (KeyCode::Char('g'), "api"),
        (KeyCode::End, "10.0.0.5:81"),
        (KeyCode::Home, "api"),
    ] {
        assert_eq!(press(&mut model, key(code)), Action::None);
        assert_eq!(model.selected.as_deref(), Some(selected), "{code:?}");
    }
}

#[test]
fn holding_asks_first_and_takes_the_lease_that_is_chosen() {
    let mut model = model();
    let hold = |seconds| Action::Do(Verb::Hold(Duration::from_secs(seconds)), web());
    assert_eq!(press_all(&mut model, &letters("jhn")), Action::None);
    assert_eq!(model.dialog, Dialog::None);
    assert_eq!(press_all(&mut model, &letters("hy")), hold(15));
    let longer = [KeyCode::Char('h'), KeyCode::Right, KeyCode::Enter];
    assert_eq!(press_all(&mut model, &longer), hold(30));
    // It is remembered.
    assert_eq!(press_all(&mut model, &letters("hy")), hold(30));
    let shortest = [
        KeyCode::Char('h'),
        KeyCode::Left,
        KeyCode::Left,
        KeyCode::Left,
        KeyCode::Left,
    ];
    press_all(&mut model, &shortest);
    assert_eq!(press_all(&mut model, &letters("y")), hold(5));
    // A letter that means nothing neither agrees nor refuses.
    assert_eq!(press_all(&mut model, &letters("hx")), Action::None);
    assert!(matches!(model.dialog, Dialog::Confirm(..)));
    assert_eq!(press_all(&mut model, &[KeyCode::Esc]), Action::None);
    assert_eq!(model.dialog, Dialog::None);
}

#[test]
fn opening_asks_where_it_changes_something_and_draining_does_not() {
    let mut model = model();
    let api: Target = "api".parse().unwrap();
    assert_eq!(
        press_all(&mut model, &letters("o")),
        Action::Do(Verb::Open, api.clone())
    );
    assert_eq!(
        press_all(&mut model, &letters("d")),
        Action::Do(Verb::Drain, api)
    );
    assert_eq!(
        press_all(&mut model, &letters("joy")),
        Action::Do(Verb::Open, web())
    );
}

#[test]
fn a_filter_narrows_and_escape_shows_all_again() {
    let mut model = model();
    press_all(&mut model, &letters("/WEx"));
    assert_eq!((model.shown().len(), model.selected.as_deref()), (0, None));
    // Nothing is selected, so nothing is done.
    press_all(&mut model, &[KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!(model.selected.as_deref(), Some("web"));
    assert_eq!(
        press_all(&mut model, &letters("d")),
        Action::Do(Verb::Drain, web())
    );
    press_all(&mut model, &[KeyCode::Esc]);
    assert_eq!((model.shown().len(), model.filter.as_str()), (3, ""));
    // While a filter is written, letters are letters.
    assert_eq!(press_all(&mut model, &letters("/qhod")), Action::None);
    assert_eq!(press_all(&mut model, &letters("d")), Action::None);
    assert_eq!(model.filter, "qhodd");
}

#[test]
fn it_ends_by_q_and_by_control_c_from_anywhere() {
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    for before in ["", "?", "/ab", "h"] {
        let mut model = model();
        for code in letters(before) {
            press(&mut model, key(code));
        }
        assert_eq!(press(&mut model, control_c), Action::Quit, "{before}");
    }
    assert_eq!(press(&mut model(), key(KeyCode::Char('q'))), Action::Quit);
    // In a dialog it only closes that.
    assert_eq!(press_all(&mut model(), &letters("hq")), Action::None);
    assert_eq!(press_all(&mut model(), &letters("?q")), Action::None);
}

#[test]
fn without_gates_no_key_does_anything() {
    let mut model = Model::new(model().now);
    for code in [
        KeyCode::Down,
        KeyCode::Up,
        KeyCode::PageDown,
        KeyCode::End,
        KeyCode::Enter,
    ] {
        assert_eq!(press(&mut model, key(code)), Action::None);
    }
    for code in letters("hodjkgG") {
        assert_eq!(press(&mut model, key(code)), Action::None);
        assert_eq!(model.dialog, Dialog::None);
    }
}

#[test]
fn the_release_of_a_key_is_no_second_press() {
    let mut model = model();
    let mut up = key(KeyCode::Char('q'));
    up.kind = KeyEventKind::Release;
    assert_eq!(press(&mut model, up), Action::None);
}
