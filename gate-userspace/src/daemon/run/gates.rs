//! What the daemon makes of its gates' health, and of the time that passes.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use gate_common::state::StateWord;

use super::super::actions::Task;
use super::super::control::{Action, Control, Policy};
use super::Daemon;
use crate::clock;
use crate::error::{self, Result};
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
        // Without a word, as after a `gate down`, the gate is as open as can be.
        let word = self.word(gate).unwrap_or(StateWord::OPEN);
        let control = self.gates.entry(gate.clone()).or_default();
        control.on_health(health, word);
        // What waits to be done was for another health.
        self.actions.drop_waiting(gate);
        self.act_on(gate);
    }

    /// Does what is to be done as things are, unless something is under way for the gate.
    fn act_on(&mut self, gate: &GateName) {
        let (Some(policy), Some(word)) = (self.policy(gate), self.word(gate)) else {
            return;
        };
        let Some(control) = self.gates.get_mut(gate) else {
            return;
        };
        if self.actions.is_busy(gate) {
            return;
        }
        for action in control.act(&policy, word, clock::now()) {
            self.act(gate, action);
        }
    }

    /// A check could not be made: that is told once, and not as the backend's.
    fn unmade(&mut self, gate: &GateName, index: usize, why: &str) {
        let known = self.unmade.insert((gate.clone(), index), why.to_owned());
        if known.as_deref() != Some(why) {
            let mut event = Event::failed(format!("check {}: {why}", index + 1));
            event.gate = Some(gate.to_string());
            self.tell(&event);
        }
    }

    /// Sockets began to listen at these ports: what a guard holds goes to them, and a backend that was
    /// down may be up.
    pub(super) fn on_listening(&mut self, ports: &BTreeSet<u16>) {
        self.keeper.tell(ports);
        self.reloading.on_listening(ports);
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
            // What it is by now may ask for something else.
            self.observe();
            self.act_on(&task.gate);
            return;
        };
        if let Some(control) = self.gates.get_mut(&task.gate) {
            control.on_failure();
        }
        let what = match task.action {
            Action::Close { .. } => "close",
            Action::Flush => "flush",
            Action::Open { .. } => "open",
        };
        let mut event = Event::failed(format!("{what}: {}", error::line(&error)));
        event.gate = Some(task.gate.to_string());
        self.tell(&event);
    }

    /// Renews leases, does what failed or came at the wrong moment, opens what nobody would open any more,
    /// and applies what could not be before.
    pub(super) fn settle(&mut self) {
        let gates: Vec<GateName> = self.gates.keys().cloned().collect();
        for gate in gates {
            self.act_on(&gate);
        }
        for gate in self.forgotten() {
            self.act(&gate, Action::Open { rate: None });
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
        let waits = appeared || self.reloading.pending().is_some();
        let is_blind = self.reloading.awaits_silently() && since >= SILENT;
        // After a `gate down` nothing is applied unless that is asked for.
        let may = is_up || !self.reloading.has_applied();
        if may && (waits && since >= AGAIN || is_blind || self.reloading.listens()) {
            let config = self.reloading.refused().unwrap_or(&self.config).clone();
            self.reloading.begin_with(config);
        }
    }

    /// Gates that the daemon closed, and that are checked no more, by the configuration that is in force or
    /// the one that waits to be.
    fn forgotten(&self) -> Vec<GateName> {
        let now = clock::now();
        let config = self.reloading.refused().unwrap_or(&self.config);
        let named = self
            .snapshot
            .gates
            .iter()
            .filter(|(_, known)| known.is_named);
        let closed = named.filter_map(|(id, known)| {
            let word = self.snapshot.words.get(id.0 as usize)?;
            let gate: GateName = known.label.parse().ok()?;
            Control::on_forgotten(*word, now).then_some(gate)
        });
        let is_watched = |gate: &GateName| {
            let config = config.gates.get(gate);
            config.is_some_and(|config| !config.checks.is_empty())
        };
        closed
            .filter(|gate| !is_watched(gate) && !self.actions.is_busy(gate))
            .collect()
    }
}
