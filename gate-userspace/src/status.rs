//! What is live, read from the kernel.

use std::time::Duration;

use gate_common::abi::{Counter, GateStats, Guard, HeldSyn, Missing};
use gate_common::flow::{EndpointKey, FlowKey, GateId};
use gate_common::state::{BootTime, Effective, Mode};

use crate::alias::{self, State, StatusPort};
use crate::allow::Cidr;
use crate::attach::{self, Attachment};
use crate::clock;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::gates::{self, Gate};
use crate::handover::{self, HandoverStatus};
use crate::pins::Pins;
use crate::tables::handovers::Handovers;
use crate::tables::{self, Tables};

/// What is held at a gate at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// SYNs held.
    pub held: usize,
    /// How long the oldest of them has been.
    pub longest: Duration,
}

/// The guard of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardStatus {
    /// How long SYNs are held from the first one on that finds no listener.
    pub lease: Duration,
    /// Where nothing listens, as far as SYNs have shown, and since when.
    pub missing: Vec<(Endpoint, Duration)>,
}

/// One gate.
#[derive(Clone, Debug)]
pub struct GateStatus {
    /// Its name and its endpoints.
    pub gate: Gate,
    /// What becomes of connections to its status ports.
    pub aliases: Vec<(StatusPort, State)>,
    /// Its mode, the lease taken into account.
    pub mode: Mode,
    /// Whether it is open only because its lease ran out.
    pub expired: bool,
    /// What is left of the lease; none while open.
    pub lease: Option<Duration>,
    /// How it is guarded; none where it isn't.
    pub guard: Option<GuardStatus>,
    /// How it is handed over; none where it isn't.
    pub handover: Option<HandoverStatus>,
    /// Sources that pass while it is closed.
    pub allowed: Vec<Cidr>,
    /// What it holds.
    pub waiting: Waiting,
    /// Its counters.
    pub stats: GateStats,
}

#[cfg(test)]
impl GateStatus {
    /// One that is open and has done nothing.
    pub(crate) fn example(id: u32, name: Option<&str>, at: &str) -> Self {
        Self {
            gate: Gate {
                id: GateId(id),
                name: name.map(|name| name.parse().expect(name)),
                endpoints: vec![at.parse().expect(at)],
                aliases: Vec::new(),
            },
            aliases: Vec::new(),
            mode: Mode::Open,
            expired: false,
            lease: None,
            guard: None,
            handover: None,
            allowed: Vec::new(),
            waiting: Waiting::default(),
            stats: GateStats::default(),
        }
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where the data path is attached.
    pub attachments: Vec<Attachment>,
    /// Whether a restart did that, and detaches when it ends.
    pub is_temporary: bool,
    /// The gates, named ones first.
    pub gates: Vec<GateStatus>,
    /// Room in the table of held SYNs.
    pub held_max: u32,
    /// Frames that passed because they could not be parsed.
    pub unparsed: u64,
}

/// Reads the status; none while nothing is up.
///
/// # Errors
/// Those of the kernel and of pins that can't be read.
pub fn read(pins: &Pins) -> Result<Option<Status>> {
    pins.check_version()?;
    if !pins.exist() {
        return Ok(None);
    }
    let tables = Tables::open(pins)?;
    let now = clock::now();
    let (held, missing) = (tables.held()?, tables.missing()?);
    let handovers = Handovers::open(pins)?;
    let mut known = Vec::new();
    for gate in gates::list(pins, &tables)? {
        let word = tables.state(gate.id)?;
        let state = word.at(|| now);
        let (mode, lease) = match state {
            Effective::Open | Effective::Expired => (Mode::Open, None),
            Effective::Closed(closed) => {
                (closed.into(), Some(clock::between(now, word.deadline())))
            }
        };
        let guard = match word.is_guarded() {
            true => Some(tables.guard(gate.id)?),
            false => None,
        };
        known.push(GateStatus {
            mode,
            expired: state == Effective::Expired,
            lease,
            // What is left of a hold that ended by its lease waits for nothing.
            waiting: match (state, &guard) {
                (Effective::Closed(_), _) => of_gates(&held, &[gate.id], now),
                (Effective::Open | Effective::Expired, Some(guard)) => {
                    let still = |(_, syn): &&(FlowKey, HeldSyn)| tables::waits(syn, *guard, now);
                    let held: Vec<_> = held.iter().filter(still).copied().collect();
                    of_gates(&held, &[gate.id], now)
                }
                (Effective::Open | Effective::Expired, None) => Waiting::default(),
            },
            handover: match &handovers {
                Some(handovers) => handover::status(handovers, gate.id)?,
                None => None,
            },
            guard: guard.map(|guard| guard_status(gate.id, guard, &missing, now)),
            allowed: match state {
                Effective::Closed(_) if word.lets_allowed_pass() => tables.allowed(gate.id)?,
                _ => Vec::new(),
            },
            stats: tables.stats(gate.id)?,
            aliases: alias::states(handovers.as_ref(), &gate)?,
            gate,
        });
    }
    Ok(Some(Status {
        attachments: attach::attachments(pins)?,
        is_temporary: pins.temporary().exists(),
        gates: known,
        held_max: tables.held_max(),
        unparsed: tables.stats(GateId::HOST)?.counts[Counter::Unparsed as usize],
    }))
}

fn guard_status(
    gate: GateId,
    guard: Guard,
    missing: &[(EndpointKey, Missing)],
    now: BootTime,
) -> GuardStatus {
    let own = missing.iter().filter(|(_, missing)| missing.gate == gate);
    let mut missing: Vec<(Endpoint, Duration)> = own
        .map(|(endpoint, missing)| {
            let since = BootTime(missing.since);
            (Endpoint::from(*endpoint), clock::between(since, now))
        })
        .collect();
    missing.sort_unstable();
    GuardStatus {
        lease: Duration::from_nanos(guard.lease),
        missing,
    }
}

/// What these gates hold.
///
/// # Errors
/// Those of the map.
pub fn waiting(tables: &Tables, gates: &[GateId], now: BootTime) -> Result<Waiting> {
    Ok(of_gates(&tables.held()?, gates, now))
}

fn of_gates(held: &[(FlowKey, HeldSyn)], gates: &[GateId], now: BootTime) -> Waiting {
    let mut waiting = Waiting::default();
    for (_, syn) in held {
        if gates.contains(&syn.gate) {
            waiting.held += 1;
            let waited = clock::between(BootTime(syn.arrived), now);
            waiting.longest = waiting.longest.max(waited);
        }
    }
    waiting
}
