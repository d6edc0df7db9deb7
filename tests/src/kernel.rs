//! The data path in the kernel, with maps of its own, run by `BPF_PROG_TEST_RUN`; and the pure
//! function with the same tables. What one does, the other must.

use std::collections::HashMap;

use anyhow::{Context, Result};
use aya::maps::{
    Array, HashMap as BpfHashMap, IterableMap as _, MapData, PerCpuArray, PerCpuValues,
};
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use gate_common::abi::{Counter, GateStats, HeldSyn};
use gate_common::checksum::is_partial;
use gate_common::flow::{AttemptKey, EndpointKey, FlowKey, GateId, Port, PortEntry};
use gate_common::parse::{Family, Frame, Syn, locate};
use gate_common::reset::{self, Sum};
use gate_common::state::{BootTime, StateWord};
use gate_common::verdict::{Tables, Verdict, verdict};
use gate_userspace::hooks::Slot;
use gate_userspace::{object, sys};
use nix::sched::{CloneFlags, unshare};
use std::os::fd::AsFd;

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
}

/// The gates of a test: endpoint, gate, and the gate's word.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Whether the armed flag is set.
    pub armed: bool,
    /// The endpoints.
    pub endpoints: Vec<(EndpointKey, GateId)>,
    /// The words of the gates.
    pub words: Vec<(GateId, StateWord)>,
    /// Attempts that were released.
    pub released: Vec<AttemptKey>,
    /// Connections of the gate's own health checks.
    pub checks: Vec<FlowKey>,
}

impl Setup {
    fn port(&self, port: Port) -> PortEntry {
        let of_port = || self.endpoints.iter().filter(|(key, _)| key.port == port);
        let any = gate_common::flow::Address::ANY;
        PortEntry::new(
            of_port()
                .find(|(key, _)| key.address == any)
                .map(|(_, gate)| *gate),
            of_port().any(|(key, _)| key.address != any),
        )
    }
}

/// The pure function, with tables in plain memory, as a hook uses it.
#[derive(Debug)]
pub struct Pure {
    slot: Slot,
    /// Whether the frame is addressed to another than the test run's device, as the hook sees it.
    for_another: bool,
    setup: Setup,
    held: HashMap<FlowKey, Vec<u8>>,
    isns: HashMap<FlowKey, gate_common::flow::Isn>,
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

    fn state(&self, gate: GateId) -> StateWord {
        let mut all = self.setup.words.iter();
        all.find(|(id, _)| *id == gate)
            .map_or(StateWord::OPEN, |(_, word)| *word)
    }

    fn is_for_this_host(&self, _syn: &Syn) -> bool {
        // `Kernel` runs where nothing is forwarded.
        !self.for_another
    }

    fn is_check(&self, flow: &FlowKey) -> bool {
        self.setup.checks.contains(flow)
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
            for_another: false,
            setup,
            held: HashMap::new(),
            isns: HashMap::new(),
            now,
        }
    }

    /// What the frame must cause.
    pub fn judge(&mut self, frame: &[u8]) -> Effect {
        let pass = Effect {
            action: Action::Pass,
            counted: Vec::new(),
            held: None,
        };
        if !self.setup.armed {
            return pass;
        }
        let unparsed = Effect {
            counted: vec![(GateId::HOST, Counter::Unparsed)],
            ..pass.clone()
        };
        let at = match locate(frame) {
            Frame::Tcp(at) if at.is_pure_syn() => at,
            Frame::Tcp(_) | Frame::Other => return pass,
            Frame::Unparsed => return unparsed,
        };
        let Some(syn) = at.syn(frame) else {
            return unparsed;
        };
        self.for_another = self.slot != Slot::Xdp && frame[..6] != [0; 6];
        let (action, counted) = self.act(frame, &syn);
        Effect {
            action,
            counted,
            held: self.held.get(&syn.attempt.flow).cloned(),
        }
    }

    fn act(&mut self, frame: &[u8], syn: &Syn) -> (Action, Vec<(GateId, Counter)>) {
        match verdict(self, syn, self.slot.direction()) {
            Verdict::Pass => (Action::Pass, Vec::new()),
            Verdict::PassCounted(gate, counter) => (Action::Pass, vec![(gate, counter)]),
            Verdict::PassExpired(gate) => {
                if self.isns.get(&syn.attempt.flow) == Some(&syn.attempt.isn) {
                    self.setup.released.push(syn.attempt);
                }
                (Action::Pass, vec![(gate, Counter::Expired)])
            }
            Verdict::Drop(gate, counter) => (Action::Drop, vec![(gate, counter)]),
            Verdict::Reject(gate) => {
                let answer = match self.slot {
                    Slot::Xdp => Some(padded(frame, reply(frame, syn, Sum::Whole))),
                    Slot::TcIngress | Slot::TcEgress => {
                        sum(frame, syn).map(|sum| reply(frame, syn, sum))
                    }
                };
                let action = answer.map_or(Action::Drop, Action::Reply);
                (action, vec![(gate, Counter::Rejected)])
            }
            Verdict::Hold(gate) => {
                let flow = syn.attempt.flow;
                let before = self.isns.insert(flow, syn.attempt.isn);
                self.held.insert(flow, frame[..syn.end].to_vec());
                let counter = match before == Some(syn.attempt.isn) {
                    true => Counter::Refreshed,
                    false => Counter::Held,
                };
                (Action::Drop, vec![(gate, counter)])
            }
        }
    }
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
    ebpf: Ebpf,
    counts: Vec<(GateId, GateStats)>,
}

/// Gates whose counters are watched.
const WATCHED: u32 = 8;

impl Kernel {
    /// Loads the program with maps of its own, and moves the calling thread into a network
    /// namespace that forwards nothing: a wildcard asks the routes. Needs root.
    pub fn load(slot: Slot) -> Result<Self> {
        Self::load_with(slot, gate_common::abi::DEFAULT_HELD)
    }

    /// The hook.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// As [`load`](Self::load), with room for so many held SYNs.
    pub fn load_with(slot: Slot, held: u32) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/conf/all/forwarding");
            std::fs::write(&path, "0").with_context(|| format!("write {path}"))?;
        }
        let level = 0_u8;
        let mut ebpf = EbpfLoader::new()
            .override_global("AYA_LOG_LEVEL", &level, true)
            .map_max_entries("HELD", held)
            .map_max_entries("RELEASED", held)
            .load(object::OBJECT)
            .context("load the object")?;
        let name = slot.program();
        let loaded = match ebpf.program_mut(name) {
            Some(Program::Xdp(program)) => program.load(),
            Some(Program::SchedClassifier(program)) => program.load(),
            _ => anyhow::bail!("no program {name}"),
        };
        loaded.with_context(|| format!("load {name}"))?;
        let mut kernel = Self {
            slot,
            ebpf,
            counts: Vec::new(),
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
        self.clear::<FlowKey, GateId>("CHECKS")?;
        for flow in &setup.checks {
            self.hash::<FlowKey, GateId>("CHECKS")?
                .insert(flow, GateId::HOST, 0)?;
        }
        for (key, _) in self.clear::<EndpointKey, GateId>("ENDPOINTS")? {
            let port = u32::from(key.port.number());
            self.array("PORTS")?.set(port, PortEntry::default(), 0)?;
        }
        for (key, gate) in &setup.endpoints {
            self.hash::<EndpointKey, GateId>("ENDPOINTS")?
                .insert(key, gate, 0)?;
            let entry = setup.port(key.port);
            self.array("PORTS")?
                .set(u32::from(key.port.number()), entry, 0)?;
        }
        self.array(".bss")?.set(0, u64::from(setup.armed), 0)?;
        self.set_words(setup)
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
        let header = match (self.slot, frame.get(12..14)) {
            (Slot::TcIngress | Slot::TcEgress, Some([0x08, 0x00])) => 20,
            (Slot::TcIngress | Slot::TcEgress, Some([0x86, 0xdd])) => 40,
            _ => 0,
        };
        frame.len() >= 14 + header
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
        let action = match (self.slot, result.return_value.cast_signed()) {
            // enum xdp_action.
            (Slot::Xdp, 1) => Action::Drop,
            (Slot::Xdp, 2) => Action::Pass,
            (Slot::Xdp, 3) => Action::Reply(out),
            // TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT.
            (Slot::TcIngress | Slot::TcEgress, -1) => Action::Pass,
            (Slot::TcIngress, 2) => Action::Drop,
            (Slot::TcIngress, 7) => Action::Reply(out),
            (Slot::TcEgress, 7) if out == frame => Action::Drop,
            (Slot::TcEgress, 7) => Action::Reply(out),
            (_, other) => anyhow::bail!("action {other}"),
        };
        let counts = self.stats()?;
        let counted = self
            .counts
            .iter()
            .zip(&counts)
            .flat_map(|((gate, before), (_, after))| moved(*gate, before, after))
            .collect();
        self.counts = counts;
        let held = self.held_for(frame)?;
        Ok(Effect {
            action,
            counted,
            held,
        })
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

    fn held_for(&mut self, frame: &[u8]) -> Result<Option<Vec<u8>>> {
        let Frame::Tcp(at) = locate(frame) else {
            return Ok(None);
        };
        let Some(syn) = at.syn(frame).filter(|_| at.is_pure_syn()) else {
            return Ok(None);
        };
        let map = self.hash::<FlowKey, HeldSyn>("HELD")?;
        Ok(map
            .get(&syn.attempt.flow, 0)
            .ok()
            .map(|held| held.frame[..held.len as usize].to_vec()))
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
