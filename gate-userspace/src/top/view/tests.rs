use std::collections::BTreeMap;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::gates::Target;
use crate::health::Health;
use crate::status::GateStatus;
use crate::top::model::tests::{at, endpoint, model, status};
use crate::top::model::{Connected, Found, Sampled};

/// The screen, line by line.
fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

#[track_caller]
fn has(screen: &[String], text: &str) {
    let found = screen.iter().any(|line| line.contains(text));
    assert!(found, "no {text:?} in:\n{}", screen.join("\n"));
}

#[track_caller]
fn has_not(screen: &[String], text: &str) {
    let found = screen.iter().any(|line| line.contains(text));
    assert!(!found, "{text:?} in:\n{}", screen.join("\n"));
}

#[test]
fn all_is_shown_where_there_is_room() {
    let mut model = model();
    let history = [1.0, 4.0, 8.0].map(|ms| Sampled { passed: true, ms });
    let failed = Sampled {
        passed: false,
        ms: 1.0,
    };
    let found = Found {
        health: Health::Down,
        history: history.into_iter().chain([failed]).collect(),
        why: Some("connection refused".to_owned()),
    };
    model.daemon = Daemon::Here(BTreeMap::from([("api".to_owned(), found)]));
    let each = vec![(endpoint("127.0.0.1:9001"), 12)];
    model.connections = Some(Connected {
        label: "api".to_owned(),
        all: 40,
        each,
    });
    let screen = screen(&model, 200, 50);
    for text in [
        "3 gates, 1 closed  held 7/16384",
        "eth0 xdp",
        "no listener",
        "hold          12.0s      7    1.9s",
        "down ▂▅█×",
        "established 40",
        "127.0.0.1:9001  3/3 of new connections, 12 connections",
        "nothing listens at 10.0.0.5:9000, for 2.3s",
        "down: connection refused",
        "18:33:20  web: open",
        "q quit",
    ] {
        has(&screen, text);
    }
    let web = screen.iter().find(|line| line.starts_with("web")).unwrap();
    assert!(web.contains("   100 "), "{web}");
}

#[test]
fn a_usual_terminal_has_what_matters() {
    let screen = screen(&model(), 80, 24);
    for text in [
        "gate",
        "state",
        "lease",
        "held",
        "hold/s",
        "web",
        "events, UTC",
        "q quit",
    ] {
        has(&screen, text);
    }
}

#[test]
fn a_tiny_terminal_has_the_gates() {
    let screen = screen(&model(), 20, 5);
    has(&screen, "web");
    has(&screen, "hold");
}

#[test]
fn no_size_is_too_small() {
    let mut models = vec![model(), Model::new(at(0))];
    let target: Target = "web".parse().unwrap();
    for dialog in [
        Dialog::Help,
        Dialog::Filter,
        Dialog::Confirm(Verb::Open, target),
    ] {
        let mut model = model();
        model.dialog = dialog;
        models.push(model);
    }
    let mut trouble = model();
    trouble.trouble = Some("no rights".to_owned());
    models.push(trouble);
    let (widths, heights) = (
        [0, 1, 2, 8, 19, 33, 50, 81, 120, 300],
        [0, 1, 2, 3, 5, 15, 16, 22, 60],
    );
    for (width, height) in widths.iter().flat_map(|w| heights.map(|h| (*w, h))) {
        for model in &models {
            let _drawn = screen(model, width, height);
            assert!(page(Rect::new(0, 0, width, height), model) <= usize::from(height));
        }
    }
}

#[test]
fn a_thousand_gates_scroll_and_the_selected_one_is_seen() {
    let name = |n: u32| format!("gate-{n:04}");
    let gates =
        (1..=1000).map(|n| GateStatus::example(n, Some(&name(n)), &format!("10.0.0.5:{n}")));
    let mut model = Model::new(at(0));
    model.look(Some(&status(gates.collect())), at(0).boot);
    for (width, height) in [(20, 5), (80, 24), (200, 50)] {
        for selected in [1, 2, 500, 999, 1000] {
            model.selected = Some(name(selected));
            let screen = screen(&model, width, height);
            // By width the tiny one has room for a part of the name only.
            let label: String = name(selected).chars().take(8).collect();
            has(&screen, &label);
        }
    }
    // The ends fill the screen.
    model.selected = Some(name(1000));
    let full = screen(&model, 80, 24);
    let rows = full.iter().filter(|line| line.starts_with("gate-")).count();
    assert_eq!(rows, page(Rect::new(0, 0, 80, 24), &model));
    has(&full, "1000 gates, 0 closed");
}

#[test]
fn what_is_not_there_is_said() {
    let mut nothing = Model::new(at(0));
    // Before it has looked it knows nothing.
    has_not(&screen(&nothing, 100, 10), "not up");
    nothing.look(None, at(0).boot);
    has(
        &screen(&nothing, 100, 10),
        "gate is not up in this network namespace: `gate up INTERFACE`",
    );
    let mut trouble = nothing;
    trouble.trouble = Some("no rights".to_owned());
    has(&screen(&trouble, 100, 10), "no rights");
    let mut empty = model();
    empty.look(Some(&status(Vec::new())), at(0).boot);
    has(
        &screen(&empty, 100, 10),
        "no gate was defined or closed yet",
    );
    let mut filtered = model();
    filtered.filter = "zzz".to_owned();
    has(
        &screen(&filtered, 100, 10),
        "no gate has \"zzz\" in its name",
    );
    let mut alone = model();
    alone.daemon = Daemon::Away("none".to_owned());
    has(&screen(&alone, 120, 10), "no daemon: no health");
    has_not(&screen(&alone, 120, 10), " health ");
}

#[test]
fn a_dialog_is_in_front_and_says_what_it_would_do() {
    let mut model = model();
    model.dialog = Dialog::Confirm(Verb::Hold(Duration::from_secs(60)), "web".parse().unwrap());
    let asked = screen(&model, 80, 24);
    has(&asked, "Hold new connections to web for 1m?");
    has(&asked, "y: yes   n: no");
    model.dialog = Dialog::Help;
    let help = screen(&model, 100, 30);
    for (key, what) in KEYS {
        has(&help, key);
        has(&help, what);
    }
}

#[test]
fn what_came_of_it_is_in_the_last_line() {
    let mut model = model();
    model.under_way.push("draining web".to_owned());
    assert_eq!(screen(&model, 80, 24).last().unwrap(), "draining web");
    model.under_way.clear();
    model.outcome = Some(("web: open".to_owned(), false));
    assert_eq!(screen(&model, 80, 24).last().unwrap(), "web: open");
    model.dialog = Dialog::Filter;
    model.filter = "we".to_owned();
    assert_eq!(screen(&model, 80, 24).last().unwrap(), "/we_");
}

#[test]
fn text_from_elsewhere_can_not_move_the_cursor() {
    let mut model = model();
    model.outcome = Some(("a\x1b[2Jb\rc".to_owned(), true));
    let screen = screen(&model, 80, 24);
    assert!(
        screen
            .iter()
            .all(|line| !line.chars().any(char::is_control)),
        "{screen:?}"
    );
}

#[test]
fn times_are_short() {
    for (ms, text) in [
        (0, "0ms"),
        (999, "999ms"),
        (1_900, "1.9s"),
        (59_949, "59.9s"),
        (61_000, "1m01s"),
        (3_600_000, "1h00m"),
        (86_400_000, "24h00m"),
    ] {
        assert_eq!(short(Duration::from_millis(ms)), text);
        assert!(text.len() <= 7);
    }
}
