//! Looks at what is live, as cheaply as it can be had: the state words of all gates by one call, and
//! the rest only where a sign says that it changed, and now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate_common::abi::Counter;
use gate_common::flow::GateId;
use gate_common::state::{BootTime, StateWord};

use crate::attach::{self, Attachment};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates;
use crate::handover;
use crate::pins::Pins;
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

/// What has no sign of a change is read anew so often, at the most.
const ANEW: Duration = Duration::from_secs(1);

/// The time between is so many times as long as reading it takes: a twentieth of a percent of a core.
const ANEW_FACTOR: u32 = 2_000;

/// For so many looks after a listener is back, what is released is still counted.
const AFTER: u8 = 3;

/// A gate as it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name or its endpoint.
    pub label: String,
    /// Whether that is a name.
    pub is_named: bool,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A guarded destination where nothing listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The gate.
    pub gate: GateId,
    /// Since the first SYN that found no listener.
    pub since: BootTime,
}

/// What is live at one moment. The default is that nothing is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// A number that each `gate up` of a namespace has for itself; none while nothing is up.
    pub epoch: Option<u64>,
    /// The state words, by slot.
    pub words: Vec<StateWord>,
    /// The gates.
    pub gates: Arc<BTreeMap<GateId, Known>>,
    /// The leases of those that are guarded.
    pub guards: Arc<BTreeMap<GateId, Duration>>,
    /// Where guarded gates miss a listener.
    pub missing: BTreeMap<Endpoint, Outage>,
    /// How many SYNs were released, of the gates that miss a listener or did a moment ago.
    pub released: BTreeMap<GateId, u64>,
    /// Who gets new connections of the gates that are handed over.
    pub handed: Arc<BTreeMap<GateId, Vec<Endpoint>>>,
    /// The interfaces that the data path sees.
    pub interfaces: Arc<BTreeSet<String>>,
}

/// Takes snapshots of one network namespace.
pub struct Source {
    pins: Pins,
    live: Option<Live>,
}

/// What is known of one `gate up`.
struct Live {
    tables: Tables,
    handovers: Option<Handovers>,
    snapshot: Snapshot,
    splits: Vec<(GateId, u32)>,
    /// When the folders of names and of attachments, and that which both are in, were changed last.
    stamps: [Stamp; 4],
    gates_due: Instant,
    attachments_due: Instant,
    handed_due: Instant,
    /// The gates whose releases are counted, and for how many looks yet.
    counted: BTreeMap<GateId, u8>,
}

/// When a folder was changed: seconds and nanoseconds; none where it is not there.
type Stamp = Option<(i64, i64)>;

impl Source {
    /// Looks at the namespace of these pins; they need not exist.
    #[must_use]
    pub fn new(pins: &Pins) -> Self {
        let pins = pins.clone();
        Self { pins, live: None }
    }

    /// What is live now.
    ///
    /// # Errors
    /// [`Error::OtherAbi`](crate::Error::OtherAbi), and those of the maps.
    pub fn look(&mut self) -> Result<Snapshot> {
        match self.try_look() {
            Err(error @ Error::OtherAbi { .. }) => Err(error),
            // A `gate down` took them away meanwhile.
            Err(_) if !self.pins.exist() => Ok(self.nothing()),
            looked => looked,
        }
    }

    fn nothing(&mut self) -> Snapshot {
        self.live = None;
        Snapshot::default()
    }

    fn try_look(&mut self) -> Result<Snapshot> {
        let Ok(folder) = std::fs::metadata(self.pins.folder()) else {
            self.pins.check_version()?;
            return Ok(self.nothing());
        };
        let epoch = folder.ino();
        let live = match &mut self.live {
            Some(live) if live.snapshot.epoch == Some(epoch) => live,
            live => live.insert(Live::new(&self.pins, epoch)?),
        };
        live.look(&self.pins)?;
        Ok(live.snapshot.clone())
    }
}

impl Live {
    fn new(pins: &Pins, epoch: u64) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            tables: Tables::open(pins)?,
            handovers: None,
            snapshot: Snapshot {
                epoch: Some(epoch),
                ..Snapshot::default()
            },
            splits: Vec::new(),
            stamps: [None; 4],
            gates_due: now,
            attachments_due: now,
            handed_due: now,
            counted: BTreeMap::new(),
        })
    }

    fn look(&mut self, pins: &Pins) -> Result<()> {
        let folders = [
            pins.folder(),
            pins.names_folder(),
            pins.links(),
            pins.filters(),
        ];
        let stamps = folders.map(|folder| stamp(&folder));
        let is_new = |at: usize| stamps[at].is_none() || stamps[at] != self.stamps[at];
        let (root, names, links) = (
            is_new(0),
            is_new(1),
            is_new(2) || stamps[3] != self.stamps[3],
        );
        let words: Vec<StateWord> = self
            .tables
            .states()?
            .into_iter()
            .map(|(_, it)| it)
            .collect();
        if root && self.handovers.is_none() {
            self.handovers = Handovers::open(pins)?;
        }
        if names || self.is_unknown(&words) || Instant::now() >= self.gates_due {
            self.gates_due = timed(|| self.read_gates(pins, &words))?;
        }
        if links || Instant::now() >= self.attachments_due {
            self.attachments_due = timed(|| self.read_attachments(pins))?;
        }
        self.read_handovers()?;
        self.snapshot.words = words;
        self.read_missing()?;
        // Last: what could not be read is tried again.
        self.stamps = stamps;
        Ok(())
    }

    /// Whether a word changed whose gate may be called otherwise than before, or guarded.
    fn is_unknown(&self, words: &[StateWord]) -> bool {
        let before = &self.snapshot.words;
        if words == before {
            return false;
        }
        words.iter().enumerate().any(|(slot, word)| {
            let old = before.get(slot).copied().unwrap_or(StateWord::OPEN);
            let known = self.snapshot.gates.get(&GateId(slot as u32));
            let is_named = known.is_some_and(|known| known.is_named);
            *word != old && (!is_named || word.is_guarded() != old.is_guarded())
        })
    }

    fn read_gates(&mut self, pins: &Pins, words: &[StateWord]) -> Result<()> {
        let known = gates::list(pins, &self.tables)?.into_iter().map(|gate| {
            let known = Known {
                label: gate.to_string(),
                is_named: gate.name.is_some(),
                endpoints: gate.endpoints,
            };
            (gate.id, known)
        });
        replace(&mut self.snapshot.gates, known.collect());
        let mut guards = BTreeMap::new();
        for (slot, _) in words.iter().enumerate().filter(|(_, it)| it.is_guarded()) {
            let gate = GateId(slot as u32);
            let lease = self.tables.guard(gate)?.lease;
            guards.insert(gate, Duration::from_nanos(lease));
        }
        replace(&mut self.snapshot.guards, guards);
        Ok(())
    }

    fn read_attachments(&mut self, pins: &Pins) -> Result<()> {
        let attachments = attach::attachments(pins)?;
        let live = attachments.into_iter().filter(Attachment::is_live);
        let names = live.filter_map(|attachment| attachment.interface);
        replace(&mut self.snapshot.interfaces, names.collect());
        Ok(())
    }

    fn read_handovers(&mut self) -> Result<()> {
        let Some(handovers) = &self.handovers else {
            return Ok(());
        };
        let splits = handovers.words()?;
        let is_due = !splits.is_empty() && Instant::now() >= self.handed_due;
        if splits == self.splits && !is_due {
            return Ok(());
        }
        let mut handed = BTreeMap::new();
        self.handed_due = timed(|| {
            for (gate, _) in &splits {
                let split = handovers.split(*gate)?;
                let to = split.iter().flat_map(handover::portions);
                handed.insert(*gate, to.map(|(backend, ..)| backend).collect());
            }
            Ok(())
        })?;
        replace(&mut self.snapshot.handed, handed);
        self.splits = splits;
        Ok(())
    }

    fn read_missing(&mut self) -> Result<()> {
        self.snapshot.missing.clear();
        // Where a listener is missing, the data path has marked the gate.
        let guarded = !self.snapshot.guards.is_empty();
        if guarded
            && self
                .tables
                .guards()?
                .iter()
                .any(|(_, guard)| guard.dirty != 0)
        {
            for (key, missing) in self.tables.missing()? {
                let outage = Outage {
                    gate: missing.gate,
                    since: BootTime(missing.since),
                };
                self.snapshot.missing.insert(key.into(), outage);
                self.counted.insert(missing.gate, AFTER);
            }
        }
        self.snapshot.released.clear();
        for gate in self.counted.keys() {
            let stats = self.tables.stats(*gate)?;
            let released = stats.counts[Counter::Released as usize];
            self.snapshot.released.insert(*gate, released);
        }
        self.counted.retain(|_, looks| {
            *looks -= 1;
            *looks > 0
        });
        Ok(())
    }
}

/// Does it, and tells when it is worth to be done again.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<Instant> {
    let start = Instant::now();
    work()?;
    let now = Instant::now();
    Ok(now + ANEW.max((now - start) * ANEW_FACTOR))
}

/// Leaves what is as before where it is, so that comparing it again costs nothing.
fn replace<T: PartialEq>(before: &mut Arc<T>, now: T) {
    if **before != now {
        *before = Arc::new(now);
    }
}

fn stamp(folder: &Path) -> Stamp {
    let metadata = std::fs::metadata(folder).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec()))
}
