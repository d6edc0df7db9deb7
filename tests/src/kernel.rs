//! The data path in the kernel, with maps of its own, run by `BPF_PROG_TEST_RUN`; and the pure
//! function with the same tables. What one does, the other must.

mod lean;
mod pure;
mod setup;

use anyhow::{Context, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{
    Array, HashMap as BpfHashMap, IterableMap as _, MapData, PerCpuArray, PerCpuValues,
};
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use gate_common::abi::{AllowKey, Counter, GateStats, Guard, HeldSyn, Missing, checking_slot};
use gate_common::flow::{Address, AttemptKey, EndpointKey, FlowKey, GateId, PortEntry, Shortcut};
use gate_common::shares::TOTAL;
use gate_common::state::StateWord;
use gate_userspace::allow::{self, Cidr};
use gate_userspace::hooks::Slot;
use gate_userspace::{object, sys};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use pure::syn_of;

pub use lean::{HeldFrame, Kept, Ran, Runner};
pub use pure::Pure;
pub use setup::{Action, Effect, Link, Setup, Shortcuts};

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
