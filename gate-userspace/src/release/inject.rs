//! Injecting those whose turn it is, and keeping the books.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gate_common::abi::{ReplayFrame, Way};
use gate_common::flow::{FlowKey, GateId};

use super::pacer::{Entry, Taker};
use super::replayer::{self, Replayer};
use super::{Phase, Release};
use crate::clock;
use crate::error::Result;
use crate::interfaces;
use crate::pins::Lock;
use crate::tables::Tables;

/// How long a release waits for a backlog that stays full though its interface is up.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long an injected attempt is remembered during a release. A client that sends its SYN again
/// later than that is answered by a second injection, if the gate is closed still.
const MEMORY: Duration = Duration::from_secs(5);

impl Release {
    /// Injects these. False where the CPU's backlog is full, so that it is to be tried again later.
    pub(super) fn inject(
        &mut self,
        lock: &Lock,
        tables: &mut Tables,
        replayer: &mut Replayer,
        chosen: Vec<(Taker, Entry)>,
    ) -> Result<bool> {
        let (mut entries, mut frames) = (Vec::new(), Vec::new());
        let is_ours = |entry: &Entry| {
            let gate = self.gates.get(&entry.gate);
            gate.is_some_and(|gate| gate.phase != Phase::TakenOver)
        };
        for (taker, entry) in chosen
            .into_iter()
            .filter(|(_, entry)| is_ours(entry))
            .collect::<Vec<_>>()
        {
            // The newest frame: its client may have sent it again while it waited for its turn.
            match tables.held_for(&entry.attempt.flow)? {
                Some(syn) if (syn.isn, syn.gate) == (entry.attempt.isn, entry.gate) => {
                    match replayer::frame(&entry.attempt.flow, &syn) {
                        Some(frame) => {
                            frames.push(frame);
                            entries.push((taker, entry));
                        }
                        None => {
                            self.released.damaged += 1;
                            self.left_queue(entry.gate);
                        }
                    }
                }
                // Its client began anew, or another command forgot it.
                _ => {
                    self.released.left += 1;
                    self.queued.remove(&entry.attempt);
                    self.left_queue(entry.gate);
                }
            }
        }
        if frames.is_empty() {
            return Ok(true);
        }
        // They have an address already, mostly the right one.
        let _unrefreshed = self.neighbours.refresh(&mut frames);
        let injection = replayer.inject(&frames)?;
        self.released.injected += injection.injected;
        self.released.gone += injection.lost;
        let rest = entries.split_off(injection.done);
        // Where some did not go after all it isn't known which; they waited about as long.
        count_holds(
            lock,
            tables,
            &entries[..injection.injected.min(entries.len())],
        )?;
        self.sent(lock, tables, &entries)?;
        self.pacer.put_back(rest);
        if injection.done > 0 {
            self.blocked_since = None;
            return Ok(true);
        }
        self.may_pass(&frames[0])
    }

    /// Whether the first frame, which can't go now, will never go, and is dropped.
    pub(super) fn may_pass(&mut self, frame: &ReplayFrame) -> Result<bool> {
        let since = *self.blocked_since.get_or_insert_with(Instant::now);
        // What goes out meets no backlog: whoever took it will do so again.
        let is_patient = frame.way != Way::Out as u32 && since.elapsed() < PATIENCE;
        if is_patient && is_up(frame.ifindex)? {
            return Ok(false);
        }
        self.pacer.drop_first(&frame.attempt);
        self.released.gone += 1;
        self.left_queue(frame.gate);
        Ok(true)
    }

    pub(super) fn left_queue(&mut self, id: GateId) {
        if let Some(gate) = self.gates.get_mut(&id) {
            gate.waiting = gate.waiting.saturating_sub(1);
        }
    }

    /// Takes note of what went.
    pub(super) fn sent(
        &mut self,
        lock: &Lock,
        tables: &mut Tables,
        went: &[(Taker, Entry)],
    ) -> Result<()> {
        let now = clock::now();
        for (taker, entry) in went {
            let waited = clock::between(entry.arrived, now);
            self.released.longest_wait = self.released.longest_wait.max(waited);
            self.pacer.sent(*taker, entry, now);
            self.queued.remove(&entry.attempt);
            self.sent.push_back((now, entry.attempt));
            self.left_queue(entry.gate);
            if let Some(gate) = self.gates.get_mut(&entry.gate) {
                gate.progress = now;
            }
        }
        // So that there is room for those that come meanwhile.
        let flows: Vec<FlowKey> = went.iter().map(|(_, it)| it.attempt.flow).collect();
        tables.forget_flows(lock, &flows)?;
        let room = tables.held_max() as usize / 4 * 3;
        let mut old = Vec::new();
        while let Some((at, attempt)) = self.sent.front()
            && (clock::between(*at, now) > MEMORY || self.sent.len() > room)
        {
            old.push(*attempt);
            self.sent.pop_front();
        }
        tables.forget_attempts(lock, &old)
    }
}

/// Takes down how long these were held.
fn count_holds(lock: &Lock, tables: &mut Tables, went: &[(Taker, Entry)]) -> Result<()> {
    let now = clock::now();
    let mut held = BTreeMap::<GateId, Vec<Duration>>::new();
    for (_, entry) in went {
        let of_gate = held.entry(entry.gate).or_default();
        of_gate.push(clock::between(entry.arrived, now));
    }
    for (gate, held) in held {
        tables.count_holds(lock, gate, &held)?;
    }
    Ok(())
}

fn is_up(ifindex: u32) -> Result<bool> {
    let interfaces = interfaces::list()?;
    let mut same = interfaces.iter().filter(|it| it.index == ifindex);
    Ok(same.next().is_some_and(|interface| interface.is_up))
}
