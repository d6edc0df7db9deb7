//! Who may go, and when: the order of what is held, the room at each listener, the rate. Pure.
//!
//! A listener has half its backlog in flight at the most: what waits in its accept queue, and the
//! handshakes under way among those that were released. The other half is for those that the gate
//! doesn't see. Oldest first; a listener that is full keeps nobody waiting who goes to another.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use gate_common::abi::HeldSyn;
use gate_common::flow::{AttemptKey, FlowKey, GateId};
use gate_common::state::BootTime;

use super::lookup::{Cookie, Ends, Met, Queue};
use super::rate::{Bucket, Rate};
use crate::clock;

/// How long a handshake under way counts: a client that is further away than that, or gone, keeps
/// nobody waiting.
pub const HANDSHAKE: Duration = Duration::from_millis(200);

/// How long a SYN may take from its injection to its listener; one that has not come by then was
/// refused on the way, or its connection is over.
const ARRIVAL: Duration = Duration::from_millis(2);

/// Between two looks at a listener that takes no more: at first, and after a second.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// A held SYN that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The attempt.
    pub attempt: AttemptKey,
    /// The gate that holds it.
    pub gate: GateId,
    /// When it came.
    pub arrived: BootTime,
    /// Its ends; none where its backend is not in this network namespace.
    pub ends: Option<Ends>,
}

impl Entry {
    /// The entry of what is held.
    #[must_use]
    pub fn new(flow: &FlowKey, syn: &HeldSyn, ends: Option<Ends>) -> Self {
        Self {
            attempt: AttemptKey {
                flow: *flow,
                isn: syn.isn,
            },
            gate: syn.gate,
            arrived: BootTime(syn.arrived),
            ends,
        }
    }
}

/// Who takes a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Taker {
    /// Nobody whose queue could be looked at.
    Unknown,
    /// A listener that is away, at this address.
    Absent(SocketAddr),
    /// A listener.
    Listener(Cookie),
}

/// A SYN that was injected, and whose handshake may be under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    ends: Ends,
    since: BootTime,
}

/// What goes to one taker.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Entry>,
    flights: VecDeque<Flight>,
    room: usize,
}

/// Decides who goes.
#[derive(Debug)]
pub struct Pacer {
    lanes: BTreeMap<Taker, Lane>,
    bucket: Option<Bucket>,
    /// Most handshakes under way at one listener.
    handshakes: usize,
    unpaced: bool,
    last_sent: BootTime,
}

impl Pacer {
    /// A pacer that keeps to the rate, and to so many handshakes under way at one listener.
    #[must_use]
    pub fn new(rate: Option<Rate>, handshakes: usize, now: BootTime) -> Self {
        Self {
            lanes: BTreeMap::new(),
            bucket: rate.map(Bucket::new),
            handshakes,
            unpaced: false,
            last_sent: now,
        }
    }

    /// From now on all may go at once.
    pub fn unpace(&mut self) {
        self.unpaced = true;
        self.bucket = None;
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.waiting.len()).sum()
    }

    /// From now on only the rate counts: the queues can't be looked at.
    pub fn unpace_queues(&mut self) {
        self.unpaced = true;
    }

    /// Whether no queue is looked at any more.
    #[must_use]
    pub fn is_unpaced(&self) -> bool {
        self.unpaced
    }

    /// Whether the rate lets any go at `now`.
    #[must_use]
    pub fn is_ready(&self, now: BootTime) -> bool {
        self.bucket.as_ref().is_none_or(|it| it.ready(now) > 0)
    }

    /// Puts one among those that wait for the same taker, by its arrival.
    pub fn add(&mut self, taker: Taker, entry: Entry) {
        let waiting = &mut self.lanes.entry(taker).or_default().waiting;
        let behind = waiting.partition_point(|other| other.arrived <= entry.arrived);
        waiting.insert(behind, entry);
    }

    /// Takes away an attempt that is the first of those for its taker.
    pub fn drop_first(&mut self, attempt: &AttemptKey) {
        for lane in self.lanes.values_mut() {
            if lane
                .waiting
                .front()
                .is_some_and(|first| first.attempt == *attempt)
            {
                lane.waiting.pop_front();
            }
        }
    }

    /// The takers whose queue matters, each with the ends of the oldest that waits for it.
    #[must_use]
    pub fn heads(&self) -> Vec<(Taker, Ends)> {
        let head = |(taker, lane): (&Taker, &Lane)| match taker {
            Taker::Unknown => None,
            Taker::Absent(_) | Taker::Listener(_) => Some((*taker, lane.waiting.front()?.ends?)),
        };
        match self.unpaced {
            true => Vec::new(),
            false => self.lanes.iter().filter_map(head).collect(),
        }
    }

    /// Takes note of a listener's queue. True where the handshakes under way, as far as they are
    /// known, keep some from going: then it is worth to [confirm](Self::confirm) them.
    pub fn look(&mut self, taker: Taker, queue: Queue, now: BootTime) -> bool {
        let handshakes = self.handshakes;
        let Some(lane) = self.lanes.get_mut(&taker) else {
            return false;
        };
        let is_young = |flight: &Flight| clock::between(flight.since, now) < HANDSHAKE;
        while lane.flights.front().is_some_and(|first| !is_young(first)) {
            lane.flights.pop_front();
        }
        let under_way = lane.flights.len();
        lane.room = room(queue, under_way, handshakes);
        under_way > 0 && lane.room < lane.waiting.len() && lane.room < room(queue, 0, handshakes)
    }

    /// The ends of the handshakes that may be under way at a listener, in order.
    #[must_use]
    pub fn under_way(&self, taker: Taker) -> Vec<Ends> {
        let lane = self.lanes.get(&taker);
        lane.map_or(Vec::new(), |lane| {
            lane.flights.iter().map(|flight| flight.ends).collect()
        })
    }

    /// Takes note of what each of these met at `now`, in order.
    pub fn confirm(&mut self, taker: Taker, met: &[Met], now: BootTime) {
        let Some(lane) = self.lanes.get_mut(&taker) else {
            return;
        };
        let mut met = met.iter();
        lane.flights.retain(|flight| {
            let age = clock::between(flight.since, now);
            match met.next() {
                Some(Met::Handshake) => age < HANDSHAKE,
                Some(Met::Connection) => false,
                Some(Met::Listener(..) | Met::Nothing) => age < ARRIVAL,
                None => true,
            }
        });
    }

    /// Takes away what waits for a taker that is another by now.
    pub fn evict(&mut self, taker: Taker) -> VecDeque<Entry> {
        let lane = self.lanes.remove(&taker);
        lane.map_or(VecDeque::new(), |lane| lane.waiting)
    }

    /// The oldest that may go at `now`, `max` at the most. Each must be [sent](Self::sent) or
    /// [put back](Self::put_back).
    pub fn take(&mut self, max: usize, now: BootTime) -> Vec<(Taker, Entry)> {
        let ready = self
            .bucket
            .as_ref()
            .map_or(max, |it| it.ready(now).min(max));
        let mut taken = Vec::new();
        while taken.len() < ready {
            let unpaced = self.unpaced;
            let oldest = self
                .lanes
                .iter_mut()
                .filter(|(taker, lane)| unpaced || **taker == Taker::Unknown || lane.room > 0)
                .filter_map(|(taker, lane)| Some((lane.waiting.front()?.arrived, *taker, lane)))
                .min_by_key(|(arrived, ..)| *arrived);
            let Some((_, taker, lane)) = oldest else {
                break;
            };
            lane.room = lane.room.saturating_sub(1);
            taken.extend(lane.waiting.pop_front().map(|entry| (taker, entry)));
        }
        taken
    }

    /// Takes note that one that was taken went.
    pub fn sent(&mut self, taker: Taker, entry: &Entry, now: BootTime) {
        self.last_sent = now;
        if let Some(bucket) = &mut self.bucket {
            bucket.went(1, now);
        }
        if let (Taker::Listener(_), Some(ends)) = (taker, entry.ends) {
            let flights = &mut self.lanes.entry(taker).or_default().flights;
            flights.push_back(Flight { ends, since: now });
        }
    }

    /// Puts back what was taken and could not go, in the order in which it was taken.
    pub fn put_back(&mut self, entries: Vec<(Taker, Entry)>) {
        for (taker, entry) in entries.into_iter().rev() {
            let lane = self.lanes.entry(taker).or_default();
            lane.waiting.push_front(entry);
            lane.room += 1;
        }
    }

    /// Forgets those that wait at some gates; returns how many that were.
    pub fn forget(&mut self, which: impl Fn(GateId) -> bool) -> usize {
        let before = self.len();
        for lane in self.lanes.values_mut() {
            lane.waiting.retain(|entry| !which(entry.gate));
        }
        before - self.len()
    }

    /// How long to wait before it is worth to look again.
    #[must_use]
    pub fn wait(&self, now: BootTime) -> Duration {
        let tokens = self
            .bucket
            .as_ref()
            .map_or(Duration::ZERO, |it| it.wait(now));
        let stalled = clock::between(self.last_sent, now) / 50;
        match tokens.is_zero() {
            true => stalled.clamp(POLL.0, POLL.1),
            false => tokens,
        }
    }
}

/// How many more a listener takes.
fn room(queue: Queue, under_way: usize, handshakes: usize) -> usize {
    // One always may, or a backlog of 1 would never be served.
    let half = (queue.backlog / 2).max(1) as usize;
    let in_flight = under_way + queue.queued as usize;
    let by_handshakes = handshakes.saturating_sub(under_way);
    half.saturating_sub(in_flight).min(by_handshakes)
}

#[cfg(test)]
mod tests;
