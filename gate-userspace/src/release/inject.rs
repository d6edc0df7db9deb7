//! Injecting those whose turn it is, and keeping the books.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gate_common::abi::{ReplayFrame, Way};
use gate_common::flow::{FlowKey, GateId};

use super::pacer::{Entry, Taker};
use super::replayer::{self, Injection, Replayer};
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
                        Some(mut frame) => {
                            frame.awaits = u32::from(self.awaits(taker));
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
        let injection = self.replay(replayer, &entries, &mut frames)?;
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
        if injection.done > 0 || injection.awaits {
            self.blocked_since = None;
            return Ok(true);
        }
        self.may_pass(&frames[0])
    }

    /// Whether what goes to this taker is to go only while its listener is there: as long as queues are
    /// looked at, which finds another taker for what did not go.
    fn awaits(&self, taker: Taker) -> bool {
        matches!(taker, Taker::Listener(_)) && !self.pacer.is_unpaced()
    }

    /// Injects what can go now.
    fn replay(
        &mut self,
        replayer: &mut Replayer,
        entries: &[(Taker, Entry)],
        frames: &mut [ReplayFrame],
    ) -> Result<Injection> {
        let mut all = Injection::default();
        loop {
            let next = replayer.inject(&frames[all.done..])?;
            all = all.and(next);
            let awaiting = entries.get(all.done).filter(|_| all.awaits);
            let Some((taker, entry)) = awaiting else {
                return Ok(all);
            };
            if !self.is_still_there(*taker, entry) {
                return Ok(all);
            }
            // The program can't see one that is bound to a device.
            for (frame, (other, _)) in frames.iter_mut().zip(entries).skip(all.done) {
                if other == taker {
                    frame.awaits = 0;
                }
            }
        }
    }

    /// Whether sock_diag shows the listener that a SYN awaits; also where it can't tell.
    fn is_still_there(&mut self, taker: Taker, entry: &Entry) -> bool {
        match self.listeners(entry.ends.as_slice())[..] {
            [Some((cookie, _)), ..] => taker == Taker::Listener(cookie),
            [None, ..] => false,
            [] => true,
        }
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
