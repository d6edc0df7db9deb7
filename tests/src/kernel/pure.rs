//! The pure function, with tables in plain memory.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use gate_common::abi::{Counter, Guard, Missing};
use gate_common::checksum::is_partial;
use gate_common::flow::{Address, AttemptKey, EndpointKey, FlowKey, GateId, Port, PortEntry};
use gate_common::parse::{Family, Frame, Syn, locate};
use gate_common::reset::{self, Sum};
use gate_common::state::{BootTime, StateWord};
use gate_common::verdict::{Tables, Verdict, Withheld, verdict};
use gate_userspace::endpoint;
use gate_userspace::hooks::Slot;

use super::{Action, Effect, HeldFrame, Link, Setup};

/// The pure function, with tables in plain memory, as a hook uses it.
#[derive(Debug)]
pub struct Pure {
    slot: Slot,
    link: Link,
    /// Whether the frame is addressed to another than the test run's device, as the hook sees it.
    for_another: bool,
    /// Whether the frame is addressed to a group of stations.
    for_many: bool,
    pub(super) setup: Setup,
    pub(super) held: HashMap<FlowKey, HeldFrame>,
    now: BootTime,
}

impl Tables for Pure {
    fn port(&self, port: Port) -> PortEntry {
        self.setup.port(port)
    }

    fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId> {
        let mut all = self.setup.endpoints.iter();
        all.find(|(key, _)| key == endpoint).map(|(_, gate)| *gate)
    }

    fn asked_for(&self, _syn: &Syn) -> Option<GateId> {
        // The packets of test runs have no socket that ever connected.
        None
    }

    fn state(&self, gate: GateId) -> StateWord {
        let mut all = self.setup.words.iter();
        all.find(|(id, _)| *id == gate)
            .map_or(StateWord::OPEN, |(_, word)| *word)
    }

    fn is_for_this_host(&self, _syn: &Syn) -> bool {
        // `Kernel` runs where nothing is forwarded.
        !self.for_another
    }

    fn is_for_many(&self) -> bool {
        self.for_many
    }

    fn is_check(&self, flow: &FlowKey) -> bool {
        self.setup.checks.contains(flow)
    }

    fn is_allowed(&self, gate: GateId, source: &Address) -> bool {
        let source = endpoint::ip(source);
        let allowed = self.setup.allowed.iter().filter(|(id, _)| *id == gate);
        allowed
            .into_iter()
            .any(|(_, cidr)| is_in(source, &cidr.to_string()))
    }

    fn has_listener(&self, syn: &Syn) -> bool {
        let to = syn.attempt.flow.endpoint;
        let address = endpoint::ip(&to.address);
        self.setup.listening.iter().any(|listener| {
            let dual_stack = listener.ip() == IpAddr::from([0_u16; 8]);
            let own_family = listener.is_ipv4() == address.is_ipv4();
            let covers = listener.ip() == address || own_family && listener.ip().is_unspecified();
            listener.port() == to.port.number() && (covers || dual_stack)
        })
    }

    fn guard(&self, gate: GateId) -> Guard {
        let mut all = self.setup.guards.iter();
        all.find(|(id, _)| *id == gate)
            .map(|(_, guard)| *guard)
            .unwrap_or_default()
    }

    fn missing(&self, endpoint: &EndpointKey) -> Option<Missing> {
        let mut all = self.setup.missing.iter();
        all.find(|(key, _)| key == endpoint)
            .map(|(_, missing)| *missing)
    }

    fn is_released(&self, attempt: &AttemptKey) -> bool {
        self.setup.released.contains(attempt)
    }

    fn now(&self) -> BootTime {
        self.now
    }
}

impl Pure {
    /// Tables with this content, at this time, for this hook.
    pub fn new(slot: Slot, setup: Setup, now: BootTime) -> Self {
        Self {
            slot,
            link: Link::Ethernet,
            for_another: false,
            for_many: false,
            setup,
            held: HashMap::new(),
            now,
        }
    }

    /// The same at an interface of this kind.
    pub fn at(self, link: Link) -> Self {
        Self { link, ..self }
    }

    /// Sockets listen there from now on, and nowhere else.
    pub fn listen(&mut self, addresses: &[SocketAddr]) {
        self.setup.listening = addresses.to_vec();
    }

    /// What the frame must cause.
    pub fn judge(&mut self, frame: &[u8]) -> Effect {
        let (action, counted) = self.step(frame);
        let flow = syn_of(frame).map(|syn| syn.attempt.flow);
        let flow = flow.filter(|_| self.setup.armed);
        Effect {
            action,
            counted: counted.into_iter().collect(),
            held: flow.and_then(|flow| Some(self.held.get(&flow)?.frame.clone())),
            missing: flow.is_some_and(|flow| self.missing(&flow.endpoint).is_some()),
        }
    }

    /// What the frame must cause at once: the action, and the one counter that moves.
    pub fn step(&mut self, frame: &[u8]) -> (Action, Option<(GateId, Counter)>) {
        if !self.setup.armed {
            return (Action::Pass, None);
        }
        let is_group = frame.first().is_some_and(|first| first & 1 != 0);
        self.for_many = self.link == Link::Ethernet && is_group;
        // A test run's device is loopback: its address is all zeros.
        let is_own = is_group || frame.get(..6) == Some(&[0; 6]);
        self.for_another = self.slot != Slot::Xdp && !is_own;
        match self.link {
            Link::Ethernet => self.step_at_ethernet(frame),
            Link::Bare => {
                let whole = [&[0; 12], &frame[12..14], frame].concat();
                match self.step_at_ethernet(&whole) {
                    (Action::Reply(reply), counted) => {
                        (Action::Reply(reply[14..].to_vec()), counted)
                    }
                    other => other,
                }
            }
        }
    }

    fn step_at_ethernet(&mut self, frame: &[u8]) -> (Action, Option<(GateId, Counter)>) {
        let at = match locate(frame) {
            Frame::Tcp(at) if at.is_pure_syn() => Some(at),
            Frame::Tcp(_) | Frame::Other => return (Action::Pass, None),
            Frame::Unparsed => None,
        };
        let Some(syn) = at.and_then(|at| at.syn(frame)) else {
            return (Action::Pass, Some((GateId::HOST, Counter::Unparsed)));
        };
        self.act(frame, &syn)
    }

    fn act(&mut self, frame: &[u8], syn: &Syn) -> (Action, Option<(GateId, Counter)>) {
        match verdict(self, syn, self.slot.direction()) {
            Verdict::Pass => (Action::Pass, None),
            Verdict::PassCounted(gate, counter) => (Action::Pass, Some((gate, counter))),
            Verdict::PassExpired(gate) => {
                self.supersede(syn);
                (Action::Pass, Some((gate, Counter::Expired)))
            }
            Verdict::PassBack(gate) => {
                let endpoint = syn.attempt.flow.endpoint;
                self.setup.missing.retain(|(key, _)| *key != endpoint);
                if self.supersede(syn) {
                    self.held.remove(&syn.attempt.flow);
                }
                (Action::Pass, Some((gate, Counter::Passed)))
            }
            Verdict::Drop(gate, counter) => (Action::Drop, Some((gate, counter))),
            Verdict::Reject(gate) => {
                let answer = match self.slot {
                    Slot::Xdp => Some(padded(frame, reply(frame, syn, Sum::Whole))),
                    Slot::TcIngress | Slot::TcEgress => {
                        sum(frame, syn).map(|sum| reply(frame, syn, sum))
                    }
                };
                let action = answer.map_or(Action::Drop, Action::Reply);
                (action, Some((gate, Counter::Rejected)))
            }
            Verdict::Hold(gate) => (Action::Drop, Some((gate, self.hold(frame, syn, gate)))),
            Verdict::Guard(gate, withheld) => {
                self.miss(syn.attempt.flow.endpoint, gate);
                let counter = match withheld {
                    Withheld::Kept => self.hold(frame, syn, gate),
                    Withheld::Dropped(counter) => counter,
                };
                (Action::Drop, Some((gate, counter)))
            }
        }
    }

    /// Claims the attempt where a copy of it is held, and says whether one is.
    fn supersede(&mut self, syn: &Syn) -> bool {
        let held = self.held.get(&syn.attempt.flow);
        let is_held = held.is_some_and(|held| held.isn == syn.attempt.isn);
        if is_held {
            self.setup.released.push(syn.attempt);
        }
        is_held
    }

    fn miss(&mut self, endpoint: EndpointKey, gate: GateId) {
        for (_, guard) in self.setup.guards.iter_mut().filter(|(id, _)| *id == gate) {
            guard.dirty = 1;
        }
        if self.missing(&endpoint).is_none() {
            let missing = Missing {
                since: self.now.0,
                gate,
                zero: 0,
            };
            self.setup.missing.push((endpoint, missing));
        }
    }

    fn has_place(&self, flow: &FlowKey) -> bool {
        let room = self.setup.room;
        let of = |flow: &FlowKey| room.share_of(&flow.source);
        let share = self.held.keys().filter(|other| of(other) == of(flow));
        room.has_place(share.count() as u64, self.held.len() as u64)
    }

    fn hold(&mut self, frame: &[u8], syn: &Syn, gate: GateId) -> Counter {
        let flow = syn.attempt.flow;
        if !self.held.contains_key(&flow) && !self.has_place(&flow) {
            return Counter::Overflowed;
        }
        let held = HeldFrame {
            gate,
            isn: syn.attempt.isn,
            frame: frame[..syn.end].to_vec(),
        };
        match self.held.insert(flow, held) {
            Some(before) if before.isn == syn.attempt.isn => Counter::Refreshed,
            _ => Counter::Held,
        }
    }
}

/// The SYN in a frame, where it is one.
pub(super) fn syn_of(frame: &[u8]) -> Option<Syn> {
    match locate(frame) {
        Frame::Tcp(at) if at.is_pure_syn() => at.syn(frame),
        Frame::Tcp(_) | Frame::Other | Frame::Unparsed => None,
    }
}

/// Whether an address is in a prefix, both as text and bit by bit: not as the trie does it.
fn is_in(address: IpAddr, prefix: &str) -> bool {
    let binary = |address: IpAddr| match address {
        IpAddr::V4(v4) => format!("{:032b}", v4.to_bits()),
        IpAddr::V6(v6) => format!("{:0128b}", v6.to_bits()),
    };
    let (network, bits) = prefix.split_once('/').unwrap_or((prefix, "128"));
    let network: IpAddr = network.parse().expect("an address");
    let bits: usize = bits.parse().expect("a length");
    let (address, network) = (binary(address), binary(network));
    let bits = bits.min(network.len());
    address.len() == network.len() && address[..bits] == network[..bits]
}

/// The frame that answers a rejected one.
fn reply(frame: &[u8], syn: &Syn, sum: Sum) -> Vec<u8> {
    let mut reply = [&frame[6..12], &frame[..6], &frame[12..syn.at.network]].concat();
    match syn.at.family {
        Family::V4 => {
            let mut packet = [0; reset::V4_LEN];
            reset::v4(syn, sum, &mut packet);
            reply.extend(packet);
        }
        Family::V6 => {
            let mut packet = [0; reset::V6_LEN];
            reset::v6(syn, sum, &mut packet);
            reply.extend(packet);
        }
    }
    reply
}

/// XDP keeps Ethernet's least length.
fn padded(frame: &[u8], mut reply: Vec<u8>) -> Vec<u8> {
    if frame.len() >= 60 {
        reply.resize(reply.len().max(60), 0);
    }
    reply
}

/// How TC stores the checksum: as the SYN's is stored; none where that can't be answered.
fn sum(frame: &[u8], syn: &Syn) -> Option<Sum> {
    let at = syn.at.transport + 16;
    let field = [frame[at], frame[at + 1]];
    let plain = match syn.at.family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    match (is_partial(syn, field), syn.at.transport - syn.at.network) {
        (false, _) => Some(Sum::Whole),
        (true, header) if header == plain => Some(Sum::Partial),
        (true, _) => None,
    }
}
