//! What waits to be released: reading it from the map, and finding out whose turn it is.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use gate_common::abi::{Direction, HeldSyn, REPLAY_BATCH};
use gate_common::flow::{AttemptKey, FlowKey, GateId};
use gate_common::state::BootTime;

use super::lookup::{Cookie, Ends, Queue};
use super::pacer::{Entry, Taker};
use super::{Phase, Release};
use crate::endpoint::{Endpoint, ip};
use crate::error::Result;
use crate::interfaces::LOOPBACK;
use crate::pins;
use crate::routes::{self, Route};
use crate::sockets;
use crate::tables::Tables;

/// Between two looks at all that is held, while some of it waits for its turn.
pub(super) const SWEEP: Duration = Duration::from_millis(20);

/// Fewer addresses than these are looked up for all that goes to them.
const FEW: usize = 8;

impl Release {
    /// Queues what is held and was not seen before.
    pub(super) fn sweep(&mut self, tables: &Tables) -> Result<()> {
        let start = Instant::now();
        self.check(tables)?;
        let mut found: Vec<Entry> = Vec::new();
        for (flow, syn) in tables.held()? {
            let is_ours = self
                .gates
                .get(&syn.gate)
                .is_some_and(|gate| gate.phase != Phase::TakenOver)
                && self.only.is_none_or(|only| covers(only, &flow));
            let attempt = AttemptKey { flow, isn: syn.isn };
            if is_ours && self.queued.insert(attempt) {
                found.push(Entry::new(&flow, &syn, self.ends(&flow, &syn)));
                if let Some(gate) = self.gates.get_mut(&syn.gate) {
                    gate.waiting += 1;
                }
            }
        }
        self.pending.extend(found);
        self.pending
            .make_contiguous()
            .sort_by_key(|entry| entry.arrived);
        self.swept = Some(Instant::now());
        // Looking costs as much as there is; it must not take more than a part of the time.
        self.sweep_after = SWEEP.max(start.elapsed() * 10);
        Ok(())
    }

    /// The ends of a flow whose backend is in this network namespace.
    pub(super) fn ends(&mut self, flow: &FlowKey, syn: &HeldSyn) -> Option<Ends> {
        if Direction::from_number(syn.direction) == Direction::Egress {
            return None;
        }
        let address = ip(&flow.endpoint.address);
        let is_local = *self.locals.entry(address).or_insert_with(|| {
            // What can't be told is decided by whether a listener is found.
            syn.ifindex == LOOPBACK
                || matches!(routes::to(address, None), Ok(Route::Local) | Err(_))
        });
        is_local.then(|| Ends {
            local: SocketAddr::new(address, flow.endpoint.port.number()),
            remote: SocketAddr::new(ip(&flow.source), flow.source_port.number()),
            ifindex: syn.ifindex,
        })
    }

    /// The next to go, as far as there is room for them.
    pub(super) fn choose(&mut self, now: BootTime) -> Result<Vec<(Taker, Entry)>> {
        const BATCH: usize = REPLAY_BATCH as usize;
        loop {
            if self.pacer.len() < BATCH {
                self.place(BATCH);
            }
            if !self.pacer.is_ready(now) {
                return Ok(Vec::new());
            }
            self.look(now);
            let chosen = self.pacer.take(BATCH, now);
            if !chosen.is_empty() || self.pending.is_empty() {
                return Ok(chosen);
            }
            // All of those wait for listeners that are full.
            self.place(BATCH);
        }
    }

    /// Finds out who takes the oldest of those for whom that is not known yet.
    pub(super) fn place(&mut self, count: usize) {
        let count = count.min(self.pending.len());
        let entries: Vec<Entry> = self.pending.drain(..count).collect();
        self.assign(&entries);
    }

    pub(super) fn assign(&mut self, entries: &[Entry]) {
        let ends: Vec<Ends> = entries.iter().filter_map(|entry| entry.ends).collect();
        let mut found = self.listeners_of_many(&ends).into_iter();
        for entry in entries {
            let taker = match (entry.ends, entry.ends.and_then(|_| found.next())) {
                (Some(ends), Some(Some((cookie, _)))) => {
                    self.listeners.insert(ends.local);
                    Taker::Listener(cookie)
                }
                (Some(ends), Some(None)) if self.is_awaited(ends.local) => {
                    Taker::Absent(ends.local)
                }
                // Injected, it would be refused; a guard holds it until somebody listens.
                (Some(_), Some(None)) if self.is_guarded(entry.gate) => {
                    self.leave_to_guard(entry.gate);
                    continue;
                }
                _ => Taker::Unknown,
            };
            self.pacer.add(taker, *entry);
        }
    }

    /// The listeners of these flows; nothing where that can't be told, or does not matter.
    pub(super) fn listeners(&mut self, ends: &[Ends]) -> Vec<Option<(Cookie, Queue)>> {
        let lookup = self.lookup.as_mut().filter(|_| !self.hurried);
        match lookup.map(|lookup| lookup.listeners(ends)) {
            Some(Ok(found)) => found,
            Some(Err(_)) => {
                self.lookup = None;
                self.pacer.unpace_queues();
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// As [`listeners`](Self::listeners). Where one socket alone takes all that comes to an address,
    /// one flow is looked up for all: a look-up costs more than an injection.
    fn listeners_of_many(&mut self, ends: &[Ends]) -> Vec<Option<(Cookie, Queue)>> {
        let mut firsts: Vec<Ends> = Vec::new();
        let first_of = |firsts: &[Ends], ends: &Ends| {
            let goes_there =
                |first: &Ends| (first.local, first.ifindex) == (ends.local, ends.ifindex);
            firsts.iter().position(goes_there)
        };
        for one in ends {
            if first_of(&firsts, one).is_none() {
                firsts.push(*one);
            }
            if firsts.len() >= FEW.min(ends.len()) {
                return self.listeners(ends);
            }
        }
        // A handover by weights sends one flow here and the next one there.
        if !pins::entries(&self.pins.steering()).is_empty() {
            return self.listeners(ends);
        }
        let found = self.listeners(&firsts);
        let are_alone = firsts.len() == found.len()
            && firsts.iter().zip(&found).all(|(first, found)| {
                found.is_some_and(|(cookie, _)| is_alone(first.local, cookie))
            });
        if !are_alone {
            return self.listeners(ends);
        }
        let taker = |ends| first_of(&firsts, ends).and_then(|at| found[at]);
        ends.iter().map(taker).collect()
    }

    fn is_guarded(&self, id: GateId) -> bool {
        self.gates.get(&id).is_some_and(|gate| gate.is_guarded)
    }

    /// It stays held, and is not queued again.
    fn leave_to_guard(&mut self, id: GateId) {
        self.left_queue(id);
        self.released.guarded += 1;
        if let Some(gate) = self.gates.get_mut(&id) {
            gate.kept += 1;
        }
    }

    pub(super) fn is_awaited(&self, local: SocketAddr) -> bool {
        let covers = |endpoint: &Endpoint| {
            endpoint.port == local.port() && endpoint.address.is_none_or(|it| it == local.ip())
        };
        self.listeners.contains(&local) || self.awaited.iter().any(covers)
    }

    /// Looks at the queues of the listeners for which something waits.
    pub(super) fn look(&mut self, now: BootTime) {
        let heads = self.pacer.heads();
        let ends: Vec<Ends> = heads.iter().map(|(_, ends)| *ends).collect();
        let found = self.listeners(&ends);
        for ((taker, ends), found) in heads.into_iter().zip(found) {
            match (taker, found) {
                (Taker::Listener(known), Some((cookie, queue))) if known == cookie => {
                    if self.pacer.look(taker, queue, now) {
                        self.confirm(taker, ends, now);
                    }
                }
                (Taker::Absent(_), None) | (Taker::Unknown, _) => {}
                // Another one listens, or none does.
                (Taker::Listener(_) | Taker::Absent(_), _) => {
                    let entries = Vec::from(self.pacer.evict(taker));
                    self.assign(&entries);
                }
            }
        }
    }

    /// Finds out which handshakes are over, and looks at the queue again, which has got them.
    pub(super) fn confirm(&mut self, taker: Taker, head: Ends, now: BootTime) {
        let under_way = self.pacer.under_way(taker);
        if let Some(lookup) = &mut self.lookup
            && let Ok(met) = lookup.meet(&under_way)
        {
            self.pacer.confirm(taker, &met, now);
        }
        if let Some(Some((_, queue))) = self.listeners(&[head]).first() {
            self.pacer.look(taker, *queue, now);
        }
    }
}

/// Whether this socket gets all SYNs for a local address: no other shares it (`SO_REUSEPORT`). Another's
/// program that chooses by the source (`sk_lookup`) may not show in the one flow that was looked up; then
/// a queue is paced by another one's room.
fn is_alone(local: SocketAddr, cookie: Cookie) -> bool {
    let endpoint = Endpoint {
        address: Some(local.ip()),
        port: local.port(),
    };
    let all = sockets::listeners_on(Some(local.port())).unwrap_or_default();
    let reached = sockets::reached(&all, endpoint);
    matches!(reached[..], [ref one] if one.cookie.to_ne_bytes() == cookie.0)
}

/// Whether the flow goes to the endpoint.
fn covers(endpoint: Endpoint, flow: &FlowKey) -> bool {
    let is_address = |address: IpAddr| address == ip(&flow.endpoint.address);
    endpoint.port == flow.endpoint.port.number() && endpoint.address.is_none_or(is_address)
}
