//! What is live: all that a plan is compared with, read once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gate_common::handover::{Split, Steered};
use gate_common::state::{BootTime, Effective};

use super::{Config, Interfaces};
use crate::attach::{self, Attachment};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::gates::{self, Gate, GateName};
use crate::handover;
use crate::hooks::Hook;
use crate::interfaces::{self, Interface};
use crate::pins::{Managed, Pins};
use crate::reach::{Place, Places};
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

/// What is live.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Whether the maps are there.
    pub is_up: bool,
    /// Room for held SYNs; none where the maps are not there.
    pub held: Option<u32>,
    /// The interfaces of this network namespace.
    pub interfaces: Vec<Interface>,
    /// What is attached to them and sees packets, by index.
    pub attached: BTreeMap<u32, Vec<Hook>>,
    /// Whether a restart attached it, and will detach.
    pub is_temporary: bool,
    /// The gates that have a name.
    pub gates: BTreeMap<GateName, LiveGate>,
    /// Those of one endpoint, by it.
    pub singles: BTreeMap<Endpoint, LiveGate>,
    /// What the configuration made.
    pub managed: Managed,
    /// Where the configured endpoints and backends are; none where no route leads there.
    pub places: BTreeMap<Endpoint, Option<Place>>,
}

/// A gate as it is now.
#[derive(Clone, Debug)]
pub struct LiveGate {
    /// The gate.
    pub gate: Gate,
    /// Whether it is closed, its lease taken into account.
    pub is_closed: bool,
    /// The lease of its guard.
    pub guard: Option<Duration>,
    /// Who gets its new connections; none for its own listener.
    pub handover: Option<LiveHandover>,
}

/// Who gets a gate's new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveHandover {
    /// By which hook.
    pub hook: Steered,
    /// The backends, each with its weight.
    pub to: BTreeSet<(Endpoint, u32)>,
}

impl From<&Split> for LiveHandover {
    fn from(split: &Split) -> Self {
        let all = handover::portions(split).into_iter();
        Self {
            hook: match split.is_by(Steered::Connect) {
                true => Steered::Connect,
                false => Steered::Lookup,
            },
            to: all.map(|(at, weight, _)| (at, weight)).collect(),
        }
    }
}

impl Live {
    /// Reads what is live, as far as it matters for this configuration.
    ///
    /// # Errors
    /// Those of the maps and of the kernel.
    pub fn read(pins: &Pins, config: &Config, now: BootTime) -> Result<Self> {
        let mut live = Self {
            interfaces: interfaces::list()?,
            places: places(config)?,
            ..Self::default()
        };
        pins.check_version()?;
        if !pins.exist() {
            return Ok(live);
        }
        live.is_up = true;
        live.is_temporary = pins.temporary().exists();
        live.managed = pins.managed();
        for attachment in attach::attachments(pins)? {
            if let Attachment {
                ifindex,
                hook: Some(hook),
                ..
            } = attachment
            {
                live.attached.entry(ifindex).or_default().push(hook);
            }
        }
        let tables = Tables::open(pins)?;
        live.held = Some(tables.held_max());
        let handovers = Handovers::open(pins)?;
        let handed = match &handovers {
            Some(handovers) => handovers.gates()?,
            None => BTreeSet::new(),
        };
        for gate in gates::list(pins, &tables)? {
            let word = tables.state(gate.id)?;
            let guard = match word.is_guarded() {
                true => Some(Duration::from_nanos(tables.guard(gate.id)?.lease)),
                false => None,
            };
            let split = match &handovers {
                Some(handovers) if handed.contains(&gate.id) => handovers.split(gate.id)?,
                _ => None,
            };
            let one = LiveGate {
                is_closed: matches!(word.at(|| now), Effective::Closed(_)),
                guard,
                handover: split.as_ref().map(LiveHandover::from),
                gate,
            };
            match (&one.gate.name, one.gate.endpoints.first()) {
                (Some(name), _) => drop(live.gates.insert(name.clone(), one)),
                (None, Some(endpoint)) => drop(live.singles.insert(*endpoint, one)),
                (None, None) => {}
            }
        }
        Ok(live)
    }

    /// What an interface is called.
    pub(super) fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|it| it.index == index)
    }
}

/// Where the endpoints are, and the backends of gates whose interfaces are to be found.
fn places(config: &Config) -> Result<BTreeMap<Endpoint, Option<Place>>> {
    let mut all = Places::default();
    let mut places = BTreeMap::new();
    for gate in config.gates.values() {
        for endpoint in &gate.endpoints {
            places.insert(*endpoint, all.of(*endpoint)?);
        }
        if gate.interfaces == Interfaces::Auto {
            for backend in &gate.backends {
                places.insert(backend.address, all.of(backend.address)?);
            }
        }
    }
    Ok(places)
}
