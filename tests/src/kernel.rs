//! The data path in the kernel, with maps of its own, run by `BPF_PROG_TEST_RUN`; and the pure
//! function with the same tables. What one does, the other must.

mod lean;

use std::collections::HashMap;

use anyhow::{Context, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{
    Array, HashMap as BpfHashMap, IterableMap as _, MapData, PerCpuArray, PerCpuValues,
};
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use gate_common::abi::{AllowKey, Counter, GateStats, Guard, HeldSyn, Missing, checking_slot};
use gate_common::checksum::is_partial;
use gate_common::flow::{
    Address, AttemptKey, EndpointKey, FlowKey, GateId, Port, PortEntry, Shortcut,
};
use gate_common::parse::{Family, Frame, Syn, locate};
use gate_common::reset::{self, Sum};
use gate_common::shares::{Room, TOTAL};
use gate_common::state::{BootTime, StateWord};
use gate_common::verdict::{Tables, Verdict, Withheld, verdict};
use gate_userspace::allow::{self, Cidr};
use gate_userspace::endpoint;
use gate_userspace::hooks::Slot;
use gate_userspace::{object, sys};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

pub use lean::{HeldFrame, Kept, Ran, Runner};

/// What a hook did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it through.
    Pass,
    /// Dropped it.
    Drop,
    /// Sent this frame back.
    Reply(Vec<u8>),
}

/// All that one frame caused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The action.
    pub action: Action,
    /// The counters that moved, by gate; all others stood still.
    pub counted: Vec<(GateId, Counter)>,
    /// The frame that is held now for the frame's flow, if one is.
    pub held: Option<Vec<u8>>,
    /// Whether the frame's destination misses a listener now.
    pub missing: bool,
}

/// What there is in the slots of the endpoints' shortcuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shortcuts {
    /// A shortcut each; of two with one slot, the later one's.
    #[default]
    Made,
    /// Nothing.
    None,
    /// One half of which is of another gate: what a program may see while it is written.
    Torn,
}

impl Shortcuts {
    fn of(self, endpoint: EndpointKey, gate: GateId) -> Shortcut {
        match self {
            Self::Made => Shortcut::new(endpoint, gate),
            Self::None => Shortcut::NONE,
            Self::Torn => Shortcut {
                gate: GateId(gate.0 ^ 1),
                ..Shortcut::new(endpoint, gate)
            },
        }
    }
}

/// The gates of a test: endpoint, gate, and the gate's word.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Whether the armed flag is set.
    pub armed: bool,
    /// The endpoints.
    pub endpoints: Vec<(EndpointKey, GateId)>,
    /// What the slots of their shortcuts have.
    pub shortcuts: Shortcuts,
    /// The words of the gates.
    pub words: Vec<(GateId, StateWord)>,
    /// Attempts that were released.
    pub released: Vec<AttemptKey>,
    /// Connections of the gate's own health checks.
    pub checks: Vec<FlowKey>,
    /// Sources that pass.
    pub allowed: Vec<(GateId, Cidr)>,
    /// How gates are guarded.
    pub guards: Vec<(GateId, Guard)>,
    /// Where sockets listen; [`Kernel`] makes them.
    pub listening: Vec<SocketAddr>,
    /// Destinations that miss a listener.
    pub missing: Vec<(EndpointKey, Missing)>,
    /// What the shares of the held SYNs are of.
    pub room: Room,
}

impl Setup {
    fn port(&self, port: Port) -> PortEntry {
        let of_port = || self.endpoints.iter().filter(|(key, _)| key.port == port);
        let any = Address::ANY;
        PortEntry::new(
            of_port()
                .find(|(key, _)| key.address == any)
                .map(|(_, gate)| *gate),
            of_port().any(|(key, _)| key.address != any),
        )
    }
}

/// What the frames of an interface begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header. A test run takes the protocol from where an Ethernet header would have it, so
    /// those two bytes of the packet must say the same.
    Bare,
}

/// The pure function, with tables in plain memory, as a hook uses it.
#[derive(Debug)]
pub struct Pure {
    slot: Slot,
    link: Link,
    /// Whether the frame is addressed to another than the test run's device, as the hook sees it.
    for_another: bool,
    /// Whether the frame is addressed to a group of stations.
    for_many: bool,
    setup: Setup,
    held: HashMap<FlowKey, HeldFrame>,
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
fn syn_of(frame: &[u8]) -> Option<Syn> {
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

/// The program of a hook, in the kernel.
pub struct Kernel {
    slot: Slot,
    link: Link,
    ebpf: Ebpf,
    counts: Vec<(GateId, GateStats)>,
    listeners: Vec<Socket>,
}

/// Gates whose counters are watched.
const WATCHED: u32 = 8;

impl Kernel {
    /// Loads the program with maps of its own, and moves the calling thread into a network
    /// namespace that forwards nothing: a wildcard asks the routes. Needs root.
    pub fn load(slot: Slot) -> Result<Self> {
        Self::load_at(slot, Link::Ethernet, &[])
    }

    /// As [`load`](Self::load), for an interface of this kind.
    pub fn load_for(slot: Slot, link: Link) -> Result<Self> {
        Self::load_at(slot, link, &[])
    }

    /// What its frames begin with.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The hook.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// As [`load`](Self::load), with room for so many held SYNs.
    pub fn load_with(slot: Slot, held: u32) -> Result<Self> {
        Self::load_sized(slot, &[("HELD", held), ("RELEASED", held)])
    }

    /// As [`load`](Self::load), with other sizes of maps.
    pub fn load_sized(slot: Slot, sizes: &[(&str, u32)]) -> Result<Self> {
        Self::load_at(slot, Link::Ethernet, sizes)
    }

    fn load_at(slot: Slot, link: Link, sizes: &[(&str, u32)]) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/conf/all/forwarding");
            std::fs::write(&path, "0").with_context(|| format!("write {path}"))?;
        }
        let level = 0_u8;
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &level, true);
        let bare = u32::from(link == Link::Bare);
        loader.override_global("LAYER3", &bare, true);
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut ebpf = loader.load(object::OBJECT).context("load the object")?;
        let name = slot.program();
        let loaded = match ebpf.program_mut(name) {
            Some(Program::Xdp(program)) => program.load(),
            Some(Program::SchedClassifier(program)) => program.load(),
            _ => anyhow::bail!("no program {name}"),
        };
        loaded.with_context(|| format!("load {name}"))?;
        let mut kernel = Self {
            slot,
            link,
            ebpf,
            counts: Vec::new(),
            listeners: Vec::new(),
        };
        kernel.counts = kernel.stats()?;
        Ok(kernel)
    }

    /// Runs the loaded program on a packet.
    pub fn run(&self, options: TestRunOptions<'_>) -> Result<aya::programs::TestRunResult> {
        let program = self
            .ebpf
            .program(self.slot.program())
            .context("no program")?;
        let result = match self.slot {
            Slot::Xdp => <&Xdp>::try_from(program)?.test_run(options),
            Slot::TcIngress | Slot::TcEgress => {
                <&SchedClassifier>::try_from(program)?.test_run(options)
            }
        };
        result.context("BPF_PROG_TEST_RUN")
    }

    /// Puts the tables into the maps and forgets what is held.
    pub fn set(&mut self, setup: &Setup) -> Result<()> {
        for (flow, _) in self.held()? {
            self.hash::<FlowKey, HeldSyn>("HELD")?.remove(&flow)?;
        }
        self.clear::<AttemptKey, GateId>("RELEASED")?;
        for attempt in &setup.released {
            self.hash::<AttemptKey, GateId>("RELEASED")?
                .insert(attempt, GateId(1), 0)?;
        }
        for (flow, _) in self.clear::<FlowKey, GateId>("CHECKS")? {
            let slot = checking_slot(flow.source_port);
            self.array("CHECKING")?.set(slot, 0_u64, 0)?;
        }
        for flow in &setup.checks {
            let slot = checking_slot(flow.source_port);
            self.array("CHECKING")?.set(slot, 1_u64, 0)?;
            self.hash::<FlowKey, GateId>("CHECKS")?
                .insert(flow, GateId::HOST, 0)?;
        }
        for (key, _) in self.clear::<EndpointKey, GateId>("ENDPOINTS")? {
            let port = u32::from(key.port.number());
            self.array("PORTS")?.set(port, PortEntry::default(), 0)?;
            self.array("SHORTCUTS")?
                .set(Shortcut::slot(&key), Shortcut::NONE, 0)?;
        }
        for (key, gate) in &setup.endpoints {
            self.hash::<EndpointKey, GateId>("ENDPOINTS")?
                .insert(key, gate, 0)?;
            let entry = setup.port(key.port);
            self.array("PORTS")?
                .set(u32::from(key.port.number()), entry, 0)?;
            if key.address != Address::ANY {
                self.array("SHORTCUTS")?.set(
                    Shortcut::slot(key),
                    setup.shortcuts.of(*key, *gate),
                    0,
                )?;
            }
        }
        self.array(".bss")?.set(0, u64::from(setup.armed), 0)?;
        self.set_allowed(&setup.allowed)?;
        self.clear::<EndpointKey, Missing>("MISSING")?;
        for (endpoint, missing) in &setup.missing {
            self.hash::<EndpointKey, Missing>("MISSING")?
                .insert(endpoint, missing, 0)?;
        }
        for (gate, guard) in &setup.guards {
            self.array("GUARDS")?.set(gate.0, *guard, 0)?;
        }
        self.array("ROOM")?.set(0, setup.room, 0)?;
        let shares = self.array::<u64>("SHARES")?;
        sys::update_array(shares.map().fd().as_fd(), &[0_u64; TOTAL as usize + 1])?;
        self.listen(&setup.listening)?;
        self.set_words(setup)
    }

    fn set_allowed(&mut self, allowed: &[(GateId, Cidr)]) -> Result<()> {
        let map = self.ebpf.map_mut("ALLOW").context("no map ALLOW")?;
        let mut trie: LpmTrie<&mut MapData, AllowKey, u32> = map.try_into()?;
        let before: Vec<Key<AllowKey>> = trie.keys().collect::<Result<_, _>>()?;
        for key in before {
            trie.remove(&key)?;
        }
        for gate in (1..WATCHED).map(GateId) {
            let own = allowed.iter().filter(|(id, _)| *id == gate);
            let sources: Vec<Cidr> = own.map(|(_, source)| *source).collect();
            for (bits, key, value) in allow::entries(gate, &sources) {
                trie.insert(&Key::new(bits, key), value, 0)?;
            }
        }
        Ok(())
    }

    /// Listens there, and nowhere else, in the namespace of the test runs.
    pub fn listen(&mut self, addresses: &[SocketAddr]) -> Result<()> {
        self.listeners.clear();
        for address in addresses {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
            // The namespace has no addresses.
            match address {
                SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
                SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
            socket.set_reuse_address(true)?;
            socket
                .bind(&(*address).into())
                .with_context(|| format!("bind {address}"))?;
            socket.listen(16)?;
            self.listeners.push(socket);
        }
        Ok(())
    }

    /// Stores the words only; what is held stays.
    pub fn set_words(&mut self, setup: &Setup) -> Result<()> {
        for gate in 0..WATCHED {
            self.array("GATES")?.set(gate, StateWord::OPEN, 0)?;
        }
        for (gate, word) in &setup.words {
            self.array("GATES")?.set(gate.0, *word, 0)?;
        }
        Ok(())
    }

    /// Whether the kernel takes a frame for a test run: for TC it asks for the whole IP header,
    /// without options, of what says that it is IP.
    pub fn takes(&self, frame: &[u8]) -> bool {
        takes(self.slot, frame)
    }

    /// Runs one frame, which must have at least the 14 bytes that the kernel asks for.
    pub fn judge(&mut self, frame: &[u8]) -> Result<Effect> {
        let mut out = vec![0; frame.len() + 64];
        let result = self.run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        let action = match action(self.slot, result.return_value, frame, &out)? {
            Ran::Pass => Action::Pass,
            Ran::Drop => Action::Drop,
            Ran::Reply(out) => Action::Reply(out.to_vec()),
        };
        let counts = self.stats()?;
        let counted = self
            .counts
            .iter()
            .zip(&counts)
            .flat_map(|((gate, before), (_, after))| moved(*gate, before, after))
            .collect();
        self.counts = counts;
        let (held, missing) = self.kept_for(frame)?;
        Ok(Effect {
            action,
            counted,
            held,
            missing,
        })
    }

    /// How a gate is guarded now.
    pub fn guard(&mut self, gate: GateId) -> Result<Guard> {
        Ok(self.array::<Guard>("GUARDS")?.get(&gate.0, 0)?)
    }

    /// All that is held.
    pub fn held(&mut self) -> Result<Vec<(FlowKey, HeldSyn)>> {
        let map = self.hash::<FlowKey, HeldSyn>("HELD")?;
        Ok(sys::lookup_all(map.map().fd().as_fd())?)
    }

    /// The attempts that must not be injected any more.
    pub fn released(&mut self) -> Result<Vec<(AttemptKey, GateId)>> {
        let map = self.hash::<AttemptKey, GateId>("RELEASED")?;
        Ok(sys::lookup_all(map.map().fd().as_fd())?)
    }

    /// The frame that is held for this one's flow, and whether its destination misses a listener.
    fn kept_for(&mut self, frame: &[u8]) -> Result<(Option<Vec<u8>>, bool)> {
        let Some(syn) = syn_of(frame) else {
            return Ok((None, false));
        };
        let flow = syn.attempt.flow;
        let held = self.hash::<FlowKey, HeldSyn>("HELD")?.get(&flow, 0).ok();
        let held = held.map(|held| held.frame[..held.len as usize].to_vec());
        let missing = self.hash::<EndpointKey, Missing>("MISSING")?;
        Ok((held, missing.get(&flow.endpoint, 0).is_ok()))
    }

    fn stats(&mut self) -> Result<Vec<(GateId, GateStats)>> {
        let map = self.ebpf.map_mut("STATS").context("no map STATS")?;
        let map: PerCpuArray<&mut MapData, GateStats> = map.try_into()?;
        (0..WATCHED)
            .map(|gate| {
                let per_cpu: PerCpuValues<GateStats> = map.get(&gate, 0)?;
                let mut sum = GateStats::default();
                for cpu in per_cpu.iter() {
                    for (sum, count) in sum.counts.iter_mut().zip(cpu.counts) {
                        *sum += count;
                    }
                }
                Ok((GateId(gate), sum))
            })
            .collect()
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(name);
        Ok(map.with_context(|| format!("no map {name}"))?.try_into()?)
    }

    fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
    ) -> Result<BpfHashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name);
        Ok(map.with_context(|| format!("no map {name}"))?.try_into()?)
    }

    fn clear<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> Result<Vec<(K, V)>> {
        let mut map = self.hash::<K, V>(name)?;
        let all = sys::lookup_all::<K, V>(map.map().fd().as_fd())?;
        for (key, _) in &all {
            map.remove(key)?;
        }
        Ok(all)
    }
}

/// As [`Kernel::takes`].
pub(crate) fn takes(slot: Slot, frame: &[u8]) -> bool {
    let header = match (slot, frame.get(12..14)) {
        (Slot::TcIngress | Slot::TcEgress, Some([0x08, 0x00])) => 20,
        (Slot::TcIngress | Slot::TcEgress, Some([0x86, 0xdd])) => 40,
        _ => 0,
    };
    frame.len() >= 14 + header
}

/// What a hook's code says became of a frame that came out like this.
fn action<'a>(slot: Slot, code: u32, frame: &[u8], out: &'a [u8]) -> Result<Ran<'a>> {
    Ok(match (slot, code.cast_signed()) {
        // enum xdp_action.
        (Slot::Xdp, 1) => Ran::Drop,
        (Slot::Xdp, 2) => Ran::Pass,
        (Slot::Xdp, 3) => Ran::Reply(out),
        // TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT.
        (Slot::TcIngress | Slot::TcEgress, -1) => Ran::Pass,
        (Slot::TcIngress, 2) => Ran::Drop,
        (Slot::TcIngress, 7) => Ran::Reply(out),
        (Slot::TcEgress, 7) if out == frame => Ran::Drop,
        (Slot::TcEgress, 7) => Ran::Reply(out),
        (_, other) => anyhow::bail!("action {other}"),
    })
}

/// The counters that moved, each as often as it did.
fn moved(gate: GateId, before: &GateStats, after: &GateStats) -> Vec<(GateId, Counter)> {
    let mut moved = Vec::new();
    for (counter, _) in Counter::ALL {
        let index = counter as usize;
        for _ in before.counts[index]..after.counts[index] {
            moved.push((gate, counter));
        }
    }
    moved
}
