//! What the daemon makes of its gates' health, and of the time that passes.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use gate_common::state::StateWord;

use super::super::actions::Task;
use super::super::control::{Action, Control, Policy};
use super::super::keeper::{error_line, failed};
use super::Daemon;
use crate::clock;
use crate::error::Result;
use crate::events::{self, Event, What};
use crate::gates::GateName;
use crate::health::{Health, HealthEvent};
use crate::interfaces;

/// Until a configuration that could not be applied is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Until routes, and listeners that nobody told of, are looked for again.
const SILENT: Duration = Duration::from_secs(30);

impl Daemon {
    /// A configured gate's word; none where there is no such gate.
    fn word(&self, gate: &GateName) -> Option<StateWord> {
        let label = gate.to_string();
        let is_it = |known: &&events::Known| known.is_named && known.label == label;
        let known = self.snapshot.gates.iter().find(|(_, known)| is_it(known));
        let (id, _) = known?;
        self.snapshot.words.get(id.0 as usize).copied()
    }

    fn policy(&self, gate: &GateName) -> Option<Policy> {
        let gate = self.config.gates.get(gate)?;
        Some(Policy {
            on_down: gate.on_down,
            on_up: gate.on_up,
            max_hold: gate.max_hold,
        })
    }

    pub(super) fn on_health(&mut self, event: &HealthEvent) {
        self.tally.health(event);
        let (gate, health, why) = match event {
            HealthEvent::Changed { gate, to, why, .. } => (gate, *to, why),
            HealthEvent::Checked { .. } => return,
            HealthEvent::Unmade { gate, index, why } => {
                self.unmade(gate, *index, why);
                return;
            }
        };
        let what = match health {
            Health::Up => Some(What::Up),
            Health::Down => Some(What::Down {
                why: why.clone().unwrap_or_default(),
            }),
            Health::Unknown => None,
        };
        if let Some(what) = what {
            self.tell(&Event {
                at: SystemTime::now(),
                gate: Some(gate.to_string()),
                what,
            });
        }
        // Others may have closed it a moment ago.
        self.observe();
        let (Some(policy), Some(word)) = (self.policy(gate), self.word(gate)) else {
            return;
        };
        let control = self.gates.entry(gate.clone()).or_default();
        for action in control.on_health(health, &policy, word, clock::now()) {
            self.act(gate, action);
        }
    }

    /// A check could not be made: that is told once, and not as the backend's.
    fn unmade(&mut self, gate: &GateName, index: usize, why: &str) {
        let known = self.unmade.insert((gate.clone(), index), why.to_owned());
        if known.as_deref() != Some(why) {
            let mut event = failed(format!("check {}: {why}", index + 1));
            event.gate = Some(gate.to_string());
            self.tell(&event);
        }
    }

    /// Sockets began to listen at these ports: what a guard holds goes to them, and a backend that was
    /// down may be up.
    pub(super) fn on_listening(&mut self, ports: &BTreeSet<u16>) {
        self.keeper.tell(ports);
        if self.reloading.awaits_listener(ports) {
            self.reloading.begin_with(self.config.clone());
        }
        for (gate, control) in &self.gates {
            let config = self.config.gates.get(gate);
            let is_there = config
                .is_some_and(|config| config.endpoints.iter().any(|it| ports.contains(&it.port)));
            if control.health() == Health::Down && is_there {
                self.monitor.hurry(gate);
            }
        }
    }

    fn act(&mut self, gate: &GateName, action: Action) {
        let allow = self.config.gates.get(gate).map(|gate| gate.allow.clone());
        self.actions.push(Task {
            gate: gate.clone(),
            action,
            allow: allow.unwrap_or_default(),
        });
    }

    pub(super) fn on_done(&mut self, task: &Task, result: Result<()>) {
        let Err(error) = result else {
            return;
        };
        let what = match task.action {
            Action::Close { .. } => "close",
            Action::Flush => "flush",
            Action::Open { .. } => "open",
        };
        let mut event = failed(format!("{what}: {}", error_line(&error)));
        event.gate = Some(task.gate.to_string());
        self.tell(&event);
    }

    /// Renews leases, opens what nobody would open any more, and applies what could not be before.
    pub(super) fn settle(&mut self) {
        let now = clock::now();
        let mut due = Vec::new();
        for (id, known) in self
            .snapshot
            .gates
            .iter()
            .filter(|(_, known)| known.is_named)
        {
            let word = self.snapshot.words.get(id.0 as usize).copied();
            let Some(word) = word.filter(|word| word.is_by_health()) else {
                continue;
            };
            let Ok(gate) = known.label.parse::<GateName>() else {
                continue;
            };
            if self.actions.is_busy(&gate) {
                continue;
            }
            let watched = self
                .config
                .gates
                .get(&gate)
                .is_some_and(|it| !it.checks.is_empty());
            let policy = self.policy(&gate).filter(|_| watched);
            let control = self.gates.get(&gate).copied().unwrap_or_default();
            let action = match policy {
                Some(policy) => control.on_tick(&policy, word, now),
                None if Control::on_forgotten(word, now) => Some(Action::Open { rate: None }),
                None => None,
            };
            due.extend(action.map(|action| (gate, action)));
        }
        for (gate, action) in due {
            self.act(&gate, action);
        }
        let is_up = self.snapshot.epoch.is_some();
        let missed = self
            .reloading
            .wanted()
            .difference(&self.snapshot.interfaces);
        let missed: BTreeSet<&String> = missed.collect();
        let appeared = is_up && !missed.is_empty() && {
            let there = interfaces::list().unwrap_or_default();
            there
                .iter()
                .any(|interface| missed.contains(&interface.name))
        };
        let since = self.reloading.since();
        let is_due = (appeared || self.reloading.pending().is_some()) && since >= AGAIN;
        let is_blind = self.reloading.awaits_silently() && since >= SILENT;
        if is_due || (is_up && is_blind) {
            self.reloading.begin_with(self.config.clone());
        }
    }
}
