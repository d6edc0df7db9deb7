//! Reading and applying the configuration, beside the daemon's loop.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};

use super::api::Reply;
use crate::config::{self, Applied, Awaited, Config, Interfaces};
use crate::error::{self, Error};
use crate::events::{Event, What};
use crate::pins::Pins;
use crate::report;

/// What came of it.
enum Loaded {
    /// The configuration is wrong: the lines that say where.
    Wrong(String),
    /// It is right, and was applied or could not be.
    Right(Box<Config>, Result<Applied, Error>),
}

/// What the daemon does then.
pub(super) struct Outcome {
    /// What is told.
    pub events: Vec<Event>,
    /// What holds from here on; none where the configuration before goes on.
    pub config: Option<Config>,
}

/// Reading and applying, one at a time.
pub(super) struct Reloading {
    pins: Pins,
    path: PathBuf,
    task: Option<JoinHandle<Loaded>>,
    loaded: Option<Loaded>,
    replies: Vec<Reply<Value>>,
    /// Asked for while one was under way.
    again: Option<Vec<Reply<Value>>>,
    pending: Option<String>,
    refused: Option<Config>,
    has_applied: bool,
    listens: bool,
    wanted: BTreeSet<String>,
    awaited: BTreeSet<Awaited>,
    begun: Instant,
}

impl Reloading {
    pub(super) fn new(pins: &Pins, path: &Path) -> Self {
        Self {
            pins: pins.clone(),
            path: path.into(),
            task: None,
            loaded: None,
            replies: Vec::new(),
            again: None,
            pending: None,
            refused: None,
            has_applied: false,
            listens: false,
            wanted: BTreeSet::new(),
            awaited: BTreeSet::new(),
            begun: Instant::now(),
        }
    }

    /// Why the configuration could not be applied; none where it is.
    pub(super) fn pending(&self) -> Option<&str> {
        self.pending.as_deref()
    }

    /// The interfaces that the configuration names.
    pub(super) fn wanted(&self) -> &BTreeSet<String> {
        &self.wanted
    }

    /// Sockets began to listen at these ports: a backend that is waited for may be one.
    pub(super) fn on_listening(&mut self, ports: &BTreeSet<u16>) {
        self.listens |= self.awaited.iter().any(|awaited| match awaited {
            Awaited::Listener { at, .. } => ports.contains(&at.port),
            Awaited::Interface(_) | Awaited::Route(_) => false,
        });
    }

    /// Whether a backend that is waited for may listen since the last time that it was begun.
    pub(super) fn listens(&self) -> bool {
        self.listens
    }

    /// The configuration that could not be applied, and is to be.
    pub(super) fn refused(&self) -> Option<&Config> {
        self.refused.as_ref()
    }

    /// Whether a configuration was applied since the daemon began.
    pub(super) fn has_applied(&self) -> bool {
        self.has_applied
    }

    /// Whether something is waited for that nobody tells of.
    pub(super) fn awaits_silently(&self) -> bool {
        let is_silent = |awaited: &Awaited| !matches!(awaited, Awaited::Interface(_));
        self.awaited.iter().any(is_silent)
    }

    /// How long ago it was begun last.
    pub(super) fn since(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Reads and applies the configuration, after what is under way.
    pub(super) fn begin(&mut self, reply: Option<Reply<Value>>) {
        if self.task.is_some() {
            self.again.get_or_insert_default().extend(reply);
            return;
        }
        self.replies.extend(reply);
        let (pins, path) = (self.pins.clone(), self.path.clone());
        self.spawn(move || match config::load(&path) {
            Ok(config) => apply(&pins, config),
            Err(error) => Loaded::Wrong(error.to_string()),
        });
    }

    /// Applies a configuration that was read before, where nothing else is under way.
    pub(super) fn begin_with(&mut self, config: Config) {
        if self.task.is_none() {
            let pins = self.pins.clone();
            self.spawn(move || apply(&pins, config));
        }
    }

    fn spawn(&mut self, work: impl FnOnce() -> Loaded + Send + 'static) {
        self.begun = Instant::now();
        self.listens = false;
        self.task = Some(spawn_blocking(work));
    }

    /// Waits until what is under way is done; for ever where nothing is.
    pub(super) async fn done(&mut self) {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let loaded = task.await;
        self.task = None;
        self.loaded = Some(loaded.unwrap_or_else(|error| Loaded::Wrong(error.to_string())));
    }

    /// What was done last, told to those who asked for it.
    pub(super) fn take(&mut self, before: &Config) -> Option<Outcome> {
        let loaded = self.loaded.take()?;
        let replies = std::mem::take(&mut self.replies);
        let (outcome, answer) = self.judge(loaded, before);
        for reply in replies {
            // Whoever asked may have gone.
            let _gone = reply.send(answer.clone());
        }
        if let Some(again) = self.again.take() {
            self.begin(None);
            self.replies.extend(again);
        }
        Some(outcome)
    }

    fn judge(&mut self, loaded: Loaded, before: &Config) -> (Outcome, Result<Value, String>) {
        let refused = |why: String| Outcome {
            events: vec![Event::failed(why)],
            config: None,
        };
        match loaded {
            Loaded::Wrong(why) => {
                let lines = why.replace('\n', "; ");
                (refused(format!("configuration: {lines}")), Err(why))
            }
            Loaded::Right(config, Err(error)) => {
                self.refused = Some(*config);
                let why = format!("configuration not applied: {}", error::line(&error));
                // It is tried again, and told once.
                let outcome = match self.pending.replace(why.clone()) == Some(why.clone()) {
                    true => Outcome {
                        events: Vec::new(),
                        config: None,
                    },
                    false => refused(why.clone()),
                };
                (outcome, Err(why))
            }
            Loaded::Right(config, Ok(applied)) => {
                self.pending = None;
                self.refused = None;
                self.has_applied = true;
                self.wanted = named(&config);
                let mut fields = report::applied_json(&applied);
                let mut events = self.told(&applied);
                if config.daemon != before.daemon {
                    let why = "what concerns the daemon itself ([daemon]) takes a restart of it";
                    if let Some(notes) = fields["notes"].as_array_mut() {
                        notes.push(json!(why));
                    }
                    events.push(Event::failed(why.to_owned()));
                }
                let config = Some(*config);
                (Outcome { events, config }, Ok(fields))
            }
        }
    }

    fn told(&mut self, applied: &Applied) -> Vec<Event> {
        let event = |what| Event {
            at: SystemTime::now(),
            gate: None,
            what,
        };
        let mut events = Vec::new();
        let awaited: BTreeSet<Awaited> = applied.awaited.iter().cloned().collect();
        for awaited in awaited.difference(&self.awaited) {
            let what = awaited.to_string();
            events.push(event(What::Awaited { what }));
        }
        self.awaited = awaited;
        let changes = applied.changes.len();
        if changes > 0 {
            events.push(event(What::Applied { changes }));
        }
        events
    }

    /// Tells what applying would change.
    pub(super) fn plan(&self, reply: Reply<Value>) {
        let (pins, path) = (self.pins.clone(), self.path.clone());
        spawn_local(async move {
            let planned = spawn_blocking(move || {
                let config = config::load(&path).map_err(|error| error.to_string())?;
                let planned = config::planned(&pins, &config);
                let plan = planned.map_err(|error| error::line(&error))?;
                Ok(report::planned_json(&plan))
            });
            // Whoever asked may have gone.
            let _gone = reply.send(planned.await.unwrap_or_else(|error| Err(error.to_string())));
        });
    }
}

fn apply(pins: &Pins, config: Config) -> Loaded {
    let applied = config::apply(pins, &config);
    Loaded::Right(Box::new(config), applied)
}

fn named(config: &Config) -> BTreeSet<String> {
    let each = config
        .gates
        .values()
        .filter_map(|gate| match &gate.interfaces {
            Interfaces::Named(names) => Some(names.iter().cloned()),
            Interfaces::Auto => None,
        });
    each.flatten().collect()
}
