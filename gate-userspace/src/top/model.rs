//! What `gate top` knows, and how new looks change it. Time is passed in.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use gate_common::abi::Counter;
use gate_common::state::{BootTime, Mode};

use crate::clock;
use crate::endpoint::Endpoint;
use crate::events::{Event, Moment, What};
use crate::gates::Target;
use crate::health::Health;
use crate::status::{GateStatus, Status};

/// Events that are kept.
const EVENTS: usize = 200;

/// The leases that can be chosen, the command line's default among them.
const LEASES: [Duration; 6] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(3600),
];

/// SYNs a second, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Passed, also after a lease, as a retransmission, a check, or an allowed source.
    pub passed: f64,
    /// Held, each once.
    pub held: f64,
    /// Injected again.
    pub released: f64,
    /// Dropped, for whatever reason.
    pub dropped: f64,
    /// Answered with a reset.
    pub rejected: f64,
}

/// One result of a gate's checks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Whether it passed.
    pub passed: bool,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// What the daemon says of a gate's health.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its health.
    pub health: Health,
    /// The last results of its first check that is not up, or of its first, oldest first.
    pub history: Vec<Sampled>,
    /// Why a check failed last, where it is down.
    pub why: Option<String>,
}

/// A backend that gets a part of a gate's new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub at: Endpoint,
    /// Its weight.
    pub weight: u32,
    /// Whether it is the gate's own listener.
    pub is_own: bool,
    /// Whether it is known that nothing listens.
    pub is_silent: bool,
}

/// One gate.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name, or its endpoint.
    pub label: String,
    /// What a command calls it; none for one without either.
    pub target: Option<Target>,
    /// Its mode, the lease taken into account when it was looked at.
    pub mode: Mode,
    /// Whether it is open only because its lease ran out.
    pub expired: bool,
    /// When its lease ends; none while it is open.
    pub deadline: Option<BootTime>,
    /// SYNs that are held.
    pub held: usize,
    /// How long the oldest of them had been when it was looked at.
    pub longest: Duration,
    /// How it is guarded: its lease, and where nothing listens, for how long.
    pub guard: Option<(Duration, Vec<(Endpoint, Duration)>)>,
    /// SYNs a second; none by the first look.
    pub rates: Option<Rates>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Who gets its new connections, where it is handed over.
    pub backends: Vec<Backend>,
    /// Sources that pass while it is closed.
    pub allowed: Vec<String>,
    counts: Rates,
}

/// Established connections of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Which gate's.
    pub label: GateLabel,
    /// Those to its endpoints.
    pub all: usize,
    /// Those of each of its backends.
    pub each: Vec<(Endpoint, usize)>,
}

/// What is known of the daemon.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Daemon {
    /// Not asked yet.
    #[default]
    Unknown,
    /// It does not answer; why.
    Away(String),
    /// It answers; health by gate.
    Here(BTreeMap<String, Found>),
}

/// What a key asks to be done to a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Close it, and keep new connections.
    Hold(Duration),
    /// Open it.
    Open,
    /// Wait until its connections are gone.
    Drain,
}

/// What is on top of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialog {
    /// Nothing.
    None,
    /// The list of keys.
    Help,
    /// A filter is being written.
    Filter,
    /// Whether this is to be done to the gate of that label.
    Confirm(Verb, Target),
}

/// All that is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The gates, in the order of `gate status`; none while nothing is up.
    pub rows: Option<Vec<Row>>,
    /// Whether it has looked at all.
    pub has_looked: bool,
    /// The attachments, as lines.
    pub attached: Vec<String>,
    /// Room for held SYNs, those of all gates.
    pub held_max: u32,
    /// Why nothing could be read.
    pub trouble: Option<String>,
    /// What is known of the daemon.
    pub daemon: Daemon,
    /// What happened, newest last.
    pub events: VecDeque<Event>,
    /// What is connected to the gate that was selected a moment ago.
    pub connections: Option<Connected>,
    /// Only gates whose label has this in it are shown.
    pub filter: String,
    /// The label of the gate that is selected.
    pub selected: Option<GateLabel>,
    /// What is on top.
    pub dialog: Dialog,
    /// What came of what was asked for last, and whether it failed.
    pub outcome: Option<(String, bool)>,
    /// What is under way.
    pub under_way: Vec<String>,
    /// The moment that is shown.
    pub now: Moment,
    /// Rows of the table that the screen has room for.
    pub page: usize,
    lease: usize,
    looked: Option<BootTime>,
}

/// A gate's name or endpoint.
pub type GateLabel = String;

impl Model {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            rows: None,
            has_looked: false,
            attached: Vec::new(),
            held_max: 0,
            trouble: None,
            daemon: Daemon::Unknown,
            events: VecDeque::new(),
            connections: None,
            filter: String::new(),
            selected: None,
            dialog: Dialog::None,
            outcome: None,
            under_way: Vec::new(),
            now,
            page: 1,
            lease: 1,
            looked: None,
        }
    }

    /// Takes a look: what is live, at that moment, or that nothing is up.
    pub fn look(&mut self, status: Option<&Status>, at: BootTime) {
        (self.trouble, self.has_looked) = (None, true);
        let Some(status) = status else {
            (self.rows, self.looked) = (None, None);
            self.attached.clear();
            return;
        };
        let seconds = self
            .looked
            .map(|before| clock::between(before, at).as_secs_f64());
        let old = self.rows.take().unwrap_or_default();
        let old: BTreeMap<&str, &Row> = old.iter().map(|row| (row.label.as_str(), row)).collect();
        let rows = status.gates.iter().map(|gate| {
            let mut row = row(gate, at);
            let before = old.get(row.label.as_str()).map(|row| row.counts);
            if let (Some(before), Some(seconds)) = (before, seconds.filter(|it| *it > 0.0)) {
                row.rates = Some(row.counts.since(before, seconds));
            }
            row
        });
        self.rows = Some(rows.collect());
        self.looked = Some(at);
        self.held_max = status.held_max;
        self.attached = status
            .attachments
            .iter()
            .map(|it| {
                let name = it.interface.clone();
                let name = name.unwrap_or_else(|| format!("interface {}", it.ifindex));
                match it.hook {
                    Some(hook) => format!("{name} {hook}"),
                    None => format!("{name} detached"),
                }
            })
            .collect();
        let shown = self.shown();
        let is_there = |label: &GateLabel| shown.iter().any(|row| row.label == *label);
        if !self.selected.as_ref().is_some_and(is_there) {
            self.selected = shown.first().map(|row| row.label.clone());
        }
    }

    /// Takes what happened.
    pub fn happened(&mut self, event: Event) {
        self.events.push_back(event);
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// Takes what the daemon says. A health that is another than before is an event.
    pub fn hear(&mut self, daemon: Daemon) {
        let mut turned = Vec::new();
        if let (Daemon::Here(old), Daemon::Here(new)) = (&self.daemon, &daemon) {
            for (gate, found) in new {
                let before = old.get(gate).map(|it| it.health);
                let what = match found.health {
                    health if before.is_none() || before == Some(health) => continue,
                    Health::Up => What::Up,
                    Health::Down => What::Down {
                        why: found.why.clone().unwrap_or_default(),
                    },
                    Health::Unknown => continue,
                };
                turned.push(Event {
                    at: self.now.wall,
                    gate: Some(gate.clone()),
                    what,
                });
            }
        }
        self.daemon = daemon;
        turned.into_iter().for_each(|event| self.happened(event));
    }

    /// The gates that the filter lets through.
    #[must_use]
    pub fn shown(&self) -> Vec<&Row> {
        let rows = self.rows.iter().flatten();
        let wanted = self.filter.to_lowercase();
        rows.filter(|row| row.label.to_lowercase().contains(&wanted))
            .collect()
    }

    /// The place of the selected gate among those that are shown.
    #[must_use]
    pub fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.shown().iter().position(|row| row.label == *selected)
    }

    /// The selected gate.
    #[must_use]
    pub fn row(&self) -> Option<&Row> {
        let selected = self.selected.as_ref()?;
        let mut rows = self.rows.iter().flatten();
        rows.find(|row| row.label == *selected)
    }

    /// Selects the gate so many rows further down, or up.
    pub fn select(&mut self, by: isize) {
        let shown = self.shown();
        let last = shown.len().saturating_sub(1);
        let at = self.position().unwrap_or(0);
        let at = at.saturating_add_signed(by).min(last);
        self.selected = shown.get(at).map(|row| row.label.clone());
    }

    /// The lease that holding takes, as it is chosen.
    #[must_use]
    pub fn lease(&self) -> Duration {
        LEASES[self.lease]
    }

    /// Chooses a longer or a shorter lease.
    pub fn choose_lease(&mut self, longer: bool) {
        self.lease = match longer {
            true => (self.lease + 1).min(LEASES.len() - 1),
            false => self.lease.saturating_sub(1),
        };
    }

    /// What the daemon says of a gate's health.
    #[must_use]
    pub fn health(&self, label: &str) -> Option<&Found> {
        match &self.daemon {
            Daemon::Here(health) => health.get(label),
            Daemon::Unknown | Daemon::Away(_) => None,
        }
    }

    /// How much of the lease is left now; none for an open gate.
    #[must_use]
    pub fn left(&self, row: &Row) -> Option<Duration> {
        Some(clock::between(self.now.boot, row.deadline?))
    }

    /// SYNs that all gates hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.rows.iter().flatten().map(|row| row.held).sum()
    }
}

impl Rates {
    fn since(self, before: Self, seconds: f64) -> Self {
        // Counters begin anew where a slot is another gate's.
        let rate = |now: f64, before: f64| ((now - before) / seconds).max(0.0);
        Self {
            passed: rate(self.passed, before.passed),
            held: rate(self.held, before.held),
            released: rate(self.released, before.released),
            dropped: rate(self.dropped, before.dropped),
            rejected: rate(self.rejected, before.rejected),
        }
    }
}

fn row(gate: &GateStatus, at: BootTime) -> Row {
    let sum = |counters: &[Counter]| -> f64 {
        let counts = counters.iter().map(|it| gate.stats.counts[*it as usize]);
        counts.sum::<u64>() as f64
    };
    let backends = gate.handover.iter().flat_map(|handover| &handover.to);
    let guard = gate.guard.as_ref();
    Row {
        label: gate.gate.to_string(),
        target: target(gate),
        mode: gate.mode,
        expired: gate.expired,
        deadline: gate.lease.map(|lease| clock::after(at, lease)),
        held: gate.waiting.held,
        longest: gate.waiting.longest,
        guard: guard.map(|guard| (guard.lease, guard.missing.clone())),
        rates: None,
        endpoints: gate.gate.endpoints.clone(),
        backends: backends
            .map(|to| Backend {
                at: to.backend,
                weight: to.weight,
                is_own: to.is_own,
                is_silent: to.listening == Some(0),
            })
            .collect(),
        allowed: gate.allowed.iter().map(ToString::to_string).collect(),
        counts: Rates {
            passed: sum(&[
                Counter::Passed,
                Counter::Expired,
                Counter::Replayed,
                Counter::Checked,
                Counter::Allowed,
            ]),
            held: sum(&[Counter::Held]),
            released: sum(&[Counter::Released]),
            dropped: sum(&[Counter::Dropped, Counter::Overflowed, Counter::Uncaptured]),
            rejected: sum(&[Counter::Rejected]),
        },
    }
}

fn target(gate: &GateStatus) -> Option<Target> {
    let name = gate.gate.name.clone().map(Target::Named);
    let endpoint = gate.gate.endpoints.first();
    name.or_else(|| endpoint.copied().map(Target::Endpoint))
}

#[cfg(test)]
pub(super) mod tests;
