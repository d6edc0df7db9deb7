//! The daemon's loop.

mod gates;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{LocalSet, spawn_blocking, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use super::Commands;
use super::actions::{Actions, Spare, Task};
use super::api::{Api, Ask, COMMANDS, MetricsOnly, Reply};
use super::control::Control;
use super::error::DaemonError;
use super::hub::Hub;
use super::keeper::Keeper;
use super::reload::Reloading;
use super::server::{serve_tcp, serve_unix};
use super::socket::Socket;
use crate::config::{self, Config};
use crate::error::{self, Error, Result};
use crate::events::{self, Event, Moment, Observer, Snapshot, Source, What};
use crate::gates::GateName;
use crate::health::{HealthEvent, Monitor};
use crate::listens::{self, Listens};
use crate::logging;
use crate::metrics::{self, Connections, Tally};
use crate::notify;
use crate::pins::Pins;
use crate::report;

/// Between two looks at leases and interfaces.
const SETTLE: Duration = Duration::from_secs(1);

/// For what is under way when the daemon is to end.
const GOODBYE: Duration = Duration::from_secs(5);

/// Questions of the API that wait.
const ASKS: usize = 16;

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration.
    pub config: PathBuf,
}

/// Runs until SIGTERM or SIGINT. The gates stay as they are then.
///
/// # Errors
/// [`DaemonError`]; nothing is changed then.
pub fn run(pins: &Pins, options: &Options, commands: Arc<dyn Commands>) -> Result<(), DaemonError> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::call("start", "the tokio runtime"))?;
    let ended = runtime.block_on(LocalSet::new().run_until(async {
        let mut daemon = Daemon::start(pins, options, commands).await?;
        daemon.run().await;
        Ok(())
    }));
    // A command of the API may wait for minutes, and what it waits for is the kernel's.
    runtime.shutdown_background();
    ended
}

/// The signals that the daemon minds.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(Error::call("sigaction", "the daemon's signals"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}

/// What happens next.
enum Next {
    End,
    Hangup,
    Ask(Ask),
    Health(HealthEvent),
    Listening(Result<BTreeSet<u16>>),
    Look,
    Observe,
    Settle,
    Alive,
    Done(Task, Result<()>),
    Reloaded,
}

struct Daemon {
    pins: Pins,
    config: Config,
    gates: BTreeMap<GateName, Control>,
    monitor: Monitor,
    source: Source,
    observer: Observer,
    snapshot: Snapshot,
    tally: Tally,
    connections: Arc<Mutex<Connections>>,
    keeper: Keeper,
    actions: Actions,
    listens: Option<Listens>,
    reloading: Reloading,
    hub: Hub,
    asks: mpsc::Receiver<Ask>,
    signals: Signals,
    /// What could not be looked at, told once.
    blind: Option<String>,
    /// Checks that could not be made, and why.
    unmade: BTreeMap<(GateName, usize), String>,
    _socket: Socket,
}

impl Daemon {
    async fn start(
        pins: &Pins,
        options: &Options,
        commands: Arc<dyn Commands>,
    ) -> Result<Self, DaemonError> {
        let signals = Signals::new()?;
        let config = config::load(&options.config).map_err(Error::from)?;
        let (socket, listener) = Socket::bind(&config.daemon.socket, &config.daemon.group)?;
        let metrics = match config.daemon.metrics {
            Some(address) => Some(metrics_listener(address).await?),
            None => None,
        };
        let listens = Listens::open();
        if let Err(error) = &listens {
            log::warn!("listeners are polled: {}", error::line(error));
        }
        let listens = listens.ok();
        let (sender, asks) = mpsc::channel(ASKS);
        let group = socket.group;
        let mut daemon = Self {
            pins: pins.clone(),
            gates: BTreeMap::new(),
            monitor: Monitor::new(Some(pins.clone()), checks(&config)),
            source: Source::new(pins),
            observer: Observer::new(),
            snapshot: Snapshot::default(),
            tally: Tally::default(),
            connections: Arc::default(),
            keeper: Keeper::new(pins, listens.is_some()),
            actions: Actions::new(pins, Spare::default()),
            listens,
            reloading: Reloading::new(pins, &options.config),
            hub: Hub::new(),
            asks,
            signals,
            blind: None,
            unmade: BTreeMap::new(),
            config: config.clone(),
            _socket: socket,
        };
        // What was there before the daemon is no event.
        daemon.observe();
        daemon.reloading.begin_with(config);
        daemon.reloading.done().await;
        daemon.reloaded();
        // What releases is loaded by the time that systemd is told.
        daemon.look();
        daemon.actions.prepare();
        let api = Api {
            hub: daemon.hub.clone(),
            commands,
            asks: sender.clone(),
            turns: Arc::new(Semaphore::new(COMMANDS)),
        };
        spawn_local(serve_unix(listener, group, Rc::new(api)));
        if let Some(metrics) = metrics {
            spawn_local(serve_tcp(metrics, Rc::new(MetricsOnly(sender))));
        }
        trim();
        notify::ready(&daemon.words());
        log::info!("{}", daemon.words());
        Ok(daemon)
    }

    async fn run(&mut self) {
        let mut observe = ticks(events::INTERVAL);
        let mut settle = ticks(SETTLE);
        // Without a watchdog nobody minds.
        let mut alive = ticks(notify::watchdog_interval().unwrap_or(Duration::from_secs(3600)));
        loop {
            let look = tokio::time::Instant::from_std(self.keeper.due);
            let next = tokio::select! {
                biased;
                _ = self.signals.terminate.recv() => Next::End,
                _ = self.signals.interrupt.recv() => Next::End,
                ports = listens::next(&mut self.listens) => Next::Listening(ports),
                () = sleep_until(look) => Next::Look,
                event = self.monitor.next() => Next::Health(event),
                (task, result) = self.actions.next() => Next::Done(task, result),
                () = self.reloading.done() => Next::Reloaded,
                _ = self.signals.hangup.recv() => Next::Hangup,
                _ = alive.tick() => Next::Alive,
                _ = observe.tick() => Next::Observe,
                _ = settle.tick() => Next::Settle,
                Some(ask) = self.asks.recv() => Next::Ask(ask),
            };
            match next {
                Next::End => break,
                Next::Hangup => self.reload(None),
                Next::Ask(ask) => self.answer(ask),
                Next::Health(event) => self.on_health(&event),
                Next::Listening(Ok(ports)) => self.on_listening(&ports),
                Next::Listening(Err(error)) => {
                    self.tell(&Event::failed(error::line(&error)));
                    self.listens = None;
                    self.keeper.poll();
                }
                Next::Look => self.look(),
                Next::Observe => self.observe(),
                Next::Settle => self.settle(),
                Next::Alive => notify::alive(),
                Next::Done(task, result) => self.on_done(&task, result),
                Next::Reloaded => self.reloaded(),
            }
        }
        notify::stopping();
        log::info!("ending; the gates stay as they are");
        // What is half done would wait for its lease.
        let _given_up = timeout(GOODBYE, self.actions.finish()).await;
    }

    /// One line for people.
    fn words(&self) -> String {
        let gates = self.config.gates.len();
        let checks: usize = self
            .config
            .gates
            .values()
            .map(|gate| gate.checks.len())
            .sum();
        let pending = match self.reloading.pending() {
            Some(why) => format!("; not applied: {why}"),
            None => String::new(),
        };
        format!("watching {gates} gates with {checks} checks{pending}")
    }

    fn tell(&mut self, event: &Event) {
        logging::event(event);
        self.tally.event(event);
        self.hub.tell(event);
    }

    fn look(&mut self) {
        let mut happened = Vec::new();
        self.keeper.look(&mut |event| happened.push(event));
        happened.iter().for_each(|event| self.tell(event));
    }

    /// Looks at what is live, and tells what happened since the look before.
    fn observe(&mut self) {
        match self.source.look() {
            Ok(snapshot) => {
                self.blind = None;
                let changed = snapshot.epoch != self.snapshot.epoch;
                self.snapshot = snapshot.clone();
                if changed {
                    self.actions.forget();
                    self.keeper.hurry();
                }
                for event in self.observer.step(snapshot, Moment::now()) {
                    if matches!(event.what, What::Guarded { .. } | What::Opened) {
                        self.keeper.hurry();
                    }
                    self.tell(&event);
                }
            }
            Err(error) => {
                let why = error::line(&error);
                if self.blind.as_ref() != Some(&why) {
                    self.tell(&Event::failed(why.clone()));
                    self.blind = Some(why);
                }
            }
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Reload(reply) => self.reload(Some(reply)),
            Ask::Plan(reply) => self.reloading.plan(reply),
            Ask::Health(reply) => {
                // Whoever asked may have gone.
                let _gone = reply.send(Ok(report::health_json(&self.monitor.snapshot())));
            }
            Ask::Metrics(reply) => self.scrape(reply),
        }
    }

    /// Reads all figures on a thread of its own: that takes some system calls for each gate.
    fn scrape(&self, reply: Reply<String>) {
        let (pins, connections) = (self.pins.clone(), self.connections.clone());
        let (tally, health) = (self.tally.clone(), self.monitor.snapshot());
        let render = move || {
            let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
            metrics::of_daemon(&pins, &mut connections, tally, health)
        };
        spawn_local(async move {
            let rendered = match spawn_blocking(render).await {
                Ok(rendered) => rendered.map_err(|error| error::line(&error)),
                Err(error) => Err(error.to_string()),
            };
            // Whoever asked may have gone.
            let _gone = reply.send(rendered);
        });
    }

    fn reload(&mut self, reply: Option<Reply<Value>>) {
        notify::reloading();
        self.reloading.begin(reply);
    }

    /// A configuration was applied, or refused.
    fn reloaded(&mut self) {
        let Some(outcome) = self.reloading.take(&self.config) else {
            return;
        };
        for event in &outcome.events {
            self.tell(event);
        }
        if let Some(config) = outcome.config {
            self.monitor.configure(checks(&config));
            self.unmade.clear();
            self.gates.retain(|gate, _| config.gates.contains_key(gate));
            self.config = config;
        }
        notify::ready(&self.words());
        self.observe();
        self.keeper.hurry();
        trim();
    }
}

/// Gives back what loading took: the kernel's types are 30 MB while they are parsed.
fn trim() {
    // SAFETY: the call takes an integer, and touches only what the allocator itself has free.
    unsafe { libc::malloc_trim(0) };
}

/// Takes as many descriptors as it may: each check and each connection has one.
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // It goes on with fewer.
        let _kept = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn checks(config: &Config) -> Vec<(GateName, Vec<crate::health::Spec>)> {
    let with = config
        .gates
        .iter()
        .filter(|(_, gate)| !gate.checks.is_empty());
    with.map(|(name, gate)| (name.clone(), gate.checks.clone()))
        .collect()
}

async fn metrics_listener(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| DaemonError::Metrics { address, source })
}
