//! The terminal of `gate top`, and what it listens to.

use std::io::{self, IsTerminal as _};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use super::act;
use super::keys::{self, Action};
use super::look::{self, News, Wanted};
use super::model::{Model, Verb};
use super::view;
use crate::error::{Error, Result};
use crate::events::Moment;
use crate::gates::Target;
use crate::pins::Pins;
use crate::signals::Signals;

/// Between two looks at what came, while no key is pressed.
const TICK: Duration = Duration::from_millis(50);

/// Between two drawings, while no key is pressed.
const FRAME: Duration = Duration::from_millis(250);

/// Shows what is live until it is told to end, by a key or a signal.
///
/// # Errors
/// [`Error::NoTerminal`] where stdin or stdout is none; those of the terminal.
pub fn run(pins: &Pins, socket: &Path) -> Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let (sender, news) = channel();
    let wanted = Wanted::default();
    begin(pins, socket, &sender, &wanted)?;
    // From here on a panic, too, leaves the terminal as it was.
    let mut terminal = ratatui::try_init().map_err(Error::call("prepare", "the terminal"))?;
    note_panics();
    let shown = show(&mut terminal, pins, &news, &sender, &wanted);
    if PANICKED.load(Ordering::SeqCst) {
        // It is as it was; once more would write over what the panic says.
        return shown;
    }
    let restored = ratatui::try_restore().map_err(Error::call("restore", "the terminal"));
    shown.and(restored)
}

/// Whether some thread has panicked, and the terminal is as it was.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// The hook that is there puts the terminal back; nothing must be drawn after that.
fn note_panics() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::SeqCst);
        hook(info);
    }));
}

/// Starts the threads that look.
fn begin(pins: &Pins, socket: &Path, news: &Sender<News>, wanted: &Wanted) -> Result<()> {
    let failed = || Error::call("start", "a thread");
    let (own, sender) = (pins.clone(), news.clone());
    let gates = move || look::at_gates(&own, &sender);
    let (wanted, sender) = (Arc::clone(wanted), news.clone());
    let connections = move || look::at_connections(&wanted, &sender);
    let (socket, sender): (PathBuf, _) = (socket.into(), news.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::call("start", "the tokio runtime"))?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    let others = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = signals.next() => {}
                () = look::at_health(&socket, &sender) => {}
            }
            // Whoever should hear of it has ended already, else.
            let _unheard = sender.send(News::Signal);
        });
    };
    let named = |name: &str| thread::Builder::new().name(name.to_owned());
    named("gates").spawn(gates).map_err(failed())?;
    named("connections").spawn(connections).map_err(failed())?;
    named("others").spawn(others).map_err(failed())?;
    Ok(())
}

fn show(
    terminal: &mut DefaultTerminal,
    pins: &Pins,
    news: &Receiver<News>,
    sender: &Sender<News>,
    wanted: &Wanted,
) -> Result<()> {
    let mut model = Model::new(Moment::now());
    let mut drawn: Option<Instant> = None;
    loop {
        if PANICKED.load(Ordering::SeqCst) {
            let panicked = io::Error::other("it panicked");
            return Err(Error::call("wait for", "a thread")(panicked));
        }
        loop {
            match news.try_recv() {
                Ok(News::Signal) => return Ok(()),
                Ok(one) => take(&mut model, one),
                // This side has a sender itself, so it can't be cut off.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        if drawn.is_none_or(|at| at.elapsed() >= FRAME) {
            model.now = Moment::now();
            terminal
                .draw(|frame| {
                    model.page = view::page(frame.area(), &model);
                    view::draw(frame, &model);
                })
                .map_err(Error::call("draw on", "the terminal"))?;
            drawn = Some(Instant::now());
        }
        if event::poll(TICK).map_err(Error::call("poll", "the terminal"))? {
            let event = event::read().map_err(Error::call("read", "the terminal"))?;
            let action = match event {
                Event::Key(key) => keys::press(&mut model, key),
                _ => Action::None,
            };
            match action {
                Action::None => {}
                Action::Quit => return Ok(()),
                Action::Do(verb, target) => begin_act(pins, verb, target, sender, &mut model)?,
            }
            drawn = None;
        }
        *wanted.lock().unwrap_or_else(PoisonError::into_inner) = model.row().map(|row| {
            let backends = row.backends.iter().map(|backend| backend.at).collect();
            (row.label.clone(), row.endpoints.clone(), backends)
        });
    }
}

fn take(model: &mut Model, news: News) {
    match news {
        News::Status(status, at) => model.look(status.as_ref().as_ref(), at),
        News::Trouble(text) => model.trouble = Some(text),
        News::Event(event) => model.happened(event),
        News::Daemon(daemon) => model.hear(daemon),
        News::Connections(connected) => model.connections = Some(connected),
        News::Act(words, outcome) => {
            if let Some(at) = model.under_way.iter().position(|it| *it == words) {
                model.under_way.remove(at);
            }
            model.outcome = outcome;
        }
        News::Signal => {}
    }
}

/// Does it on a thread of its own: opening and draining take their time.
fn begin_act(
    pins: &Pins,
    verb: Verb,
    target: Target,
    news: &Sender<News>,
    model: &mut Model,
) -> Result<()> {
    let words = act::words(verb, &target);
    if model.under_way.contains(&words) {
        return Ok(());
    }
    model.under_way.push(words.clone());
    model.outcome = None;
    let (pins, news) = (pins.clone(), news.clone());
    let work = move || {
        let outcome = match act::act(&pins, verb, &target) {
            Ok(line) => (line, false),
            Err(error) => (error.to_string(), true),
        };
        // It was asked to end meanwhile; what was done is done.
        let _unheard = news.send(News::Act(words, Some(outcome)));
    };
    let thread = thread::Builder::new().name("act".to_owned());
    thread
        .spawn(work)
        .map_err(Error::call("start", "a thread"))?;
    Ok(())
}
