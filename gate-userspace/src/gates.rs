//! Gates as people name them: one endpoint, or a name for many that close and open together.
//!
//! An endpoint belongs to one gate. One that no gate was defined with gets a gate of its own when
//! it is first closed. A name is a folder `names/GATE-NAME` among the pins, because bpffs has no
//! plain files; its endpoints are those that the `ENDPOINTS` map leads to that gate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use gate_common::flow::GateId;
use gate_common::state::{BootTime, Effective};

use crate::alias::{self, Kind, StatusPort};
use crate::endpoint::{Endpoint, EndpointError};
use crate::error::{AliasError, Error, Result};
use crate::handover::Refusal;
use crate::pins::{self, Lock, Pins};
use crate::tables::Tables;
use crate::tables::handovers::Handovers;
use crate::{datapath, reach};

/// Longest name of a gate.
const NAME_MAX: usize = 32;

/// A gate's name: a letter, then letters, digits, `-` and `_`, 32 in all at the most.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GateName(String);

/// Why a text names no gate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It looks like an endpoint, and is none.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// It can't be a name.
    #[error(
        "{0} is no name for a gate: a letter, then letters, digits, - and _, {NAME_MAX} at the most"
    )]
    Name(String),
}

impl FromStr for GateName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = text.len() <= NAME_MAX
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'));
        match is_name {
            true => Ok(Self(text.to_owned())),
            false => Err(TargetError::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for GateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a command is told to work on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The gate of that name.
    Named(GateName),
    /// The gate of one endpoint.
    Endpoint(Endpoint),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(name) => Ok(Self::Named(name)),
            Err(error) => {
                let begins_as_name = text.starts_with(|first: char| first.is_ascii_alphabetic());
                match begins_as_name && !text.contains(':') {
                    true => Err(error),
                    false => Ok(Self::Endpoint(text.parse()?)),
                }
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Endpoint(endpoint) => endpoint.fmt(f),
        }
    }
}

/// A gate as it is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gate {
    /// Its slot.
    pub id: GateId,
    /// Its name; none for the gate of one endpoint that no gate was defined with.
    pub name: Option<GateName>,
    /// Its endpoints, in order.
    pub endpoints: Vec<Endpoint>,
    /// Its status ports, in order. They are none of its endpoints.
    pub aliases: Vec<StatusPort>,
}

impl fmt::Display for Gate {
    /// The name, or the endpoint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.endpoints.first()) {
            (Some(name), _) => name.fmt(f),
            (None, Some(endpoint)) => endpoint.fmt(f),
            (None, None) => write!(f, "gate {}", self.id.0),
        }
    }
}

/// All endpoints of these gates, in order, each once.
#[must_use]
pub fn endpoints(gates: &[Gate]) -> Vec<Endpoint> {
    let all: BTreeSet<Endpoint> = gates.iter().flat_map(|it| &it.endpoints).copied().collect();
    all.into_iter().collect()
}

/// All gates, the named ones first.
///
/// # Errors
/// Those of the maps.
pub fn list(pins: &Pins, tables: &Tables) -> Result<Vec<Gate>> {
    let mut gates = BTreeMap::<GateId, Gate>::new();
    let gate = |id, name| Gate {
        id,
        name,
        endpoints: Vec::new(),
        aliases: Vec::new(),
    };
    for (name, id) in pins.names() {
        gates.insert(id, gate(id, Some(name)));
    }
    let ports = alias::all(pins)?;
    let aliases = ports.values().flatten().map(|port| port.at);
    let aliases: BTreeSet<Endpoint> = aliases.collect();
    for (endpoint, id) in tables.endpoints()? {
        if !aliases.contains(&endpoint) {
            let gate = gates.entry(id).or_insert_with(|| gate(id, None));
            gate.endpoints.push(endpoint);
        }
    }
    for (id, ports) in ports {
        let gate = gates.entry(id).or_insert_with(|| gate(id, None));
        gate.aliases = ports;
    }
    let mut gates: Vec<Gate> = gates.into_values().collect();
    gates.sort_by(|a, b| {
        let key = |gate: &Gate| (gate.name.is_none(), gate.name.clone());
        key(a)
            .cmp(&key(b))
            .then_with(|| a.endpoints.cmp(&b.endpoints))
    });
    Ok(gates)
}

/// The endpoints that are meant. A name needs its pins; an endpoint stands for itself.
///
/// # Errors
/// [`Error::NoGate`], and those of the maps.
pub fn meant(pins: &Pins, targets: &[Target]) -> Result<Vec<Endpoint>> {
    let mut meant = BTreeSet::new();
    for target in targets {
        match target {
            Target::Endpoint(endpoint) => {
                meant.insert(*endpoint);
            }
            Target::Named(name) => {
                pins.check_version()?;
                if !pins.exist() {
                    return Err(no_gate(name));
                }
                let tables = Tables::open(pins)?;
                meant.extend(named(pins, &tables, name)?.endpoints);
            }
        }
    }
    Ok(meant.into_iter().collect())
}

/// The gates that are meant, as far as they are known; an endpoint that never had one has none.
///
/// # Errors
/// [`Error::NoGate`], [`Error::Member`], and those of the maps.
pub fn find(pins: &Pins, tables: &Tables, targets: &[Target]) -> Result<Vec<Gate>> {
    let all = list(pins, tables)?;
    let mut found = BTreeSet::new();
    for target in targets {
        match target {
            Target::Named(name) => {
                let gate = all.iter().find(|gate| gate.name.as_ref() == Some(name));
                found.insert(gate.cloned().ok_or_else(|| no_gate(name))?);
            }
            Target::Endpoint(endpoint) => {
                let gate = all.iter().find(|gate| gate.endpoints.contains(endpoint));
                if let Some(gate) = gate {
                    alone(gate, *endpoint)?;
                    found.insert(gate.clone());
                } else {
                    alias::check_none(&all, *endpoint)?;
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// The gates that are meant; an endpoint that never had one gets it, open.
///
/// # Errors
/// Those of [`find`], and [`Error::Full`].
pub fn find_or_make(
    pins: &Pins,
    lock: &Lock,
    tables: &mut Tables,
    targets: &[Target],
    now: BootTime,
) -> Result<Vec<Gate>> {
    // Whatever is wrong with one is told before another is made.
    let found = find(pins, tables, targets)?;
    let singles = targets.iter().filter_map(|target| match target {
        Target::Endpoint(endpoint) => Some(*endpoint),
        Target::Named(_) => None,
    });
    let singles: BTreeSet<Endpoint> = singles.collect();
    if singles.is_empty() {
        return Ok(found);
    }
    let kept = kept(pins)?;
    for endpoint in &singles {
        tables.define(lock, *endpoint, (&singles, &kept), now)?;
    }
    find(pins, tables, targets)
}

/// The gates whose slots are nobody else's, be they open or not.
pub(crate) fn kept(pins: &Pins) -> Result<BTreeSet<GateId>> {
    let mut kept: BTreeSet<GateId> = pins.names().into_values().collect();
    if let Some(handovers) = Handovers::open(pins)? {
        kept.extend(handovers.gates()?);
    }
    Ok(kept)
}

/// What [`define`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defined {
    /// The gate.
    pub gate: Gate,
    /// Whether it was just so before.
    pub already: bool,
    /// Endpoints that it had and has no more.
    pub dropped: Vec<Endpoint>,
}

/// Gives these endpoints, and no others, to the gate of that name; makes the gate, open, where
/// there is none.
///
/// # Errors
/// [`Error::Closed`] where the gate, or one that would lose an endpoint, is closed;
/// [`Error::Guarded`] where one that would lose its endpoint is guarded;
/// [`Error::Member`] where another named gate has an endpoint; where the gate is guarded,
/// [`Error::NotHere`] and [`Error::NotCovered`]; [`Error::Full`]; those of the maps.
pub fn define(
    pins: &Pins,
    lock: &Lock,
    tables: &mut Tables,
    (name, endpoints): (&GateName, &BTreeSet<Endpoint>),
    now: BootTime,
) -> Result<Defined> {
    let all = list(pins, tables)?;
    let own = all.iter().find(|gate| gate.name.as_ref() == Some(name));
    let before: BTreeSet<Endpoint> = own
        .map(|gate| gate.endpoints.iter().copied().collect())
        .unwrap_or_default();
    if let Some(own) = own
        && before != *endpoints
    {
        check_open(tables, own, now)?;
        if tables.state(own.id)?.is_guarded() {
            let added: Vec<Endpoint> = endpoints.difference(&before).copied().collect();
            check_guardable(pins, &added)?;
        }
    }
    for endpoint in endpoints {
        alias::check_none(&all, *endpoint)?;
    }
    if let Some(own) = own {
        check_answering(own, endpoints)?;
    }
    for gate in all.iter().filter(|gate| gate.name.as_ref() != Some(name)) {
        for endpoint in gate.endpoints.iter().filter(|it| endpoints.contains(it)) {
            alone(gate, *endpoint)?;
            check_answering(gate, &BTreeSet::new())?;
            check_open(tables, gate, now)?;
            check_unguarded(tables, gate)?;
            check_not_handed(pins, gate)?;
        }
    }
    let id = match own {
        Some(gate) => gate.id,
        None => {
            let id = tables.free_gate(lock, (endpoints, &kept(pins)?), now)?;
            // The name first: whoever dies here leaves a gate without endpoints, which the next
            // definition fills.
            pins.make_name(lock, id, name)?;
            id
        }
    };
    let dropped: Vec<Endpoint> = before.difference(endpoints).copied().collect();
    let entered = endpoints.iter().map(|endpoint| (*endpoint, Some(id)));
    let gone = dropped.iter().map(|endpoint| (*endpoint, None));
    tables.lead_all(lock, &entered.chain(gone).collect())?;
    Ok(Defined {
        gate: Gate {
            id,
            name: Some(name.clone()),
            endpoints: endpoints.iter().copied().collect(),
            aliases: own.map(|own| own.aliases.clone()).unwrap_or_default(),
        },
        already: before == *endpoints,
        dropped,
    })
}

/// Forgets a gate of that name, its endpoints and its status ports.
///
/// # Errors
/// [`Error::NoGate`], [`Error::Closed`], [`Error::Guarded`], [`Refusal::HandedOver`], and those of the
/// maps.
pub fn forget(
    pins: &Pins,
    lock: &Lock,
    tables: &mut Tables,
    name: &GateName,
    now: BootTime,
) -> Result<Gate> {
    let gate = named(pins, tables, name)?;
    check_open(tables, &gate, now)?;
    check_unguarded(tables, &gate)?;
    check_not_handed(pins, &gate)?;
    alias::forget(pins, lock, tables, &gate)?;
    let gone = gate.endpoints.iter().map(|endpoint| (*endpoint, None));
    tables.lead_all(lock, &gone.collect())?;
    pins.forget_managed(lock, gate.id, name)?;
    // The name last: as long as it is there, its slot is nobody else's.
    pins::remove(&pins.name(gate.id, name))?;
    Ok(gate)
}

/// Fails where a wildcard stands for another of the endpoints as well.
///
/// # Errors
/// [`Error::Overlap`].
pub fn check_overlap(endpoints: &BTreeSet<Endpoint>) -> Result<()> {
    for wildcard in endpoints.iter().filter(|it| it.address.is_none()) {
        let exact = |other: &&Endpoint| other.address.is_some() && other.port == wildcard.port;
        if let Some(endpoint) = endpoints.iter().find(exact) {
            return Err(Error::Overlap {
                endpoint: *endpoint,
                wildcard: *wildcard,
            });
        }
    }
    Ok(())
}

fn named(pins: &Pins, tables: &Tables, name: &GateName) -> Result<Gate> {
    let all = list(pins, tables)?;
    let mut same = all
        .into_iter()
        .filter(|gate| gate.name.as_ref() == Some(name));
    same.next().ok_or_else(|| no_gate(name))
}

fn no_gate(name: &GateName) -> Error {
    Error::NoGate { name: name.clone() }
}

/// Fails where the endpoint belongs to a named gate: closing or opening it would do the same to
/// the others.
fn alone(gate: &Gate, endpoint: Endpoint) -> Result<()> {
    match &gate.name {
        None => Ok(()),
        Some(name) => Err(Error::Member {
            endpoint,
            name: name.clone(),
        }),
    }
}

fn check_open(tables: &Tables, gate: &Gate, now: BootTime) -> Result<()> {
    match tables.state(gate.id)?.at(|| now) {
        Effective::Closed(_) => Err(Error::Closed {
            gate: gate.to_string(),
        }),
        Effective::Open | Effective::Expired => Ok(()),
    }
}

/// Fails where one of the gate's status ports is answered by another endpoint than these.
pub(crate) fn check_answering(gate: &Gate, endpoints: &BTreeSet<Endpoint>) -> Result<()> {
    for port in gate.aliases.iter().filter(|it| it.kind == Kind::Alias) {
        let is_kept = |it: &Endpoint| *it == port.of || (it.address.is_none() && it.meets(port.of));
        if !endpoints.iter().any(is_kept) {
            return Err(AliasError::Answering {
                at: port.at,
                of: port.of,
                gate: gate.to_string(),
            }
            .into());
        }
    }
    Ok(())
}

fn check_unguarded(tables: &Tables, gate: &Gate) -> Result<()> {
    match tables.state(gate.id)?.is_guarded() {
        true => Err(Error::Guarded {
            gate: gate.to_string(),
        }),
        false => Ok(()),
    }
}

fn check_not_handed(pins: &Pins, gate: &Gate) -> Result<()> {
    match Handovers::open(pins)? {
        Some(handovers) if handovers.split(gate.id)?.is_some() => {
            Err(Refusal::HandedOver(gate.to_string()).into())
        }
        _ => Ok(()),
    }
}

/// Fails where a guard would see nothing of one of these.
fn check_guardable(pins: &Pins, endpoints: &[Endpoint]) -> Result<()> {
    for endpoint in endpoints {
        if !reach::is_here(*endpoint)? {
            let endpoint = *endpoint;
            return Err(Error::NotHere { endpoint });
        }
    }
    reach::check(pins, endpoints, &datapath::live(pins)?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect(text)
    }

    #[test]
    fn reads_names_and_endpoints() {
        for text in ["web", "Web-2_b", "a"] {
            let Ok(Target::Named(name)) = text.parse() else {
                panic!("{text}");
            };
            assert_eq!(name.to_string(), text);
        }
        for text in ["10.0.0.5:80", "[fd00::5]:80", "*:80"] {
            assert_eq!(text.parse(), Ok(Target::Endpoint(endpoint(text))));
        }
    }

    #[test]
    fn refuses_the_rest() {
        use EndpointError as E;
        use TargetError as T;
        let long = "a".repeat(NAME_MAX + 1);
        for (text, error) in [
            ("", T::Endpoint(E::NoPort)),
            ("8080", T::Endpoint(E::NoPort)),
            ("10.0.0.5", T::Endpoint(E::NoPort)),
            ("-web", T::Endpoint(E::NoPort)),
            ("localhost:80", T::Endpoint(E::Address("localhost".into()))),
            ("fd00::5:80", T::Endpoint(E::Brackets)),
            ("a.b", T::Name("a.b".into())),
            ("web/1", T::Name("web/1".into())),
            (long.as_str(), T::Name(long.clone())),
        ] {
            assert_eq!(text.parse::<Target>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_wildcard_and_one_of_its_addresses_overlap() {
        let set = |texts: &[&str]| texts.iter().map(|text| endpoint(text)).collect();
        assert!(check_overlap(&set(&["*:80", "10.0.0.5:81", "[fd00::5]:80"])).is_err());
        assert!(check_overlap(&set(&["*:80", "10.0.0.5:81"])).is_ok());
        assert!(check_overlap(&set(&["10.0.0.5:80", "[fd00::5]:80"])).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _answered = text.parse::<Target>();
        }
    }
}
