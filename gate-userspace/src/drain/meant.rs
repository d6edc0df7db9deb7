//! Which endpoints a drain or a flush is about, and what their gates do meanwhile.

use std::collections::{BTreeSet, HashMap};

use gate_common::state::{BootTime, Closed, Effective, StateWord};

use crate::alias;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates::{self, Gate, Target};
use crate::handover;
use crate::pins::Pins;
use crate::rights;
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

use super::whose::meet;

/// What a command was told to work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meant {
    /// The endpoints, each once, and the aliases by which connections come to their gates.
    pub endpoints: Vec<Endpoint>,
    /// Those that are aliases: their gates' endpoints tell whether they are open.
    aliases: BTreeSet<Endpoint>,
    /// The word that decides over each of them; none where this process may not look.
    words: Option<Vec<StateWord>>,
}

impl Meant {
    /// Those that are known to be open, to which new connections go on coming in.
    #[must_use]
    pub fn open(&self, now: BootTime) -> Vec<Endpoint> {
        let words = self.words.iter().flatten();
        let all = self.endpoints.iter().zip(words);
        all.filter(|(_, word)| !matches!(word.at(|| now), Effective::Closed(_)))
            .map(|(endpoint, _)| *endpoint)
            .filter(|endpoint| !self.aliases.contains(endpoint))
            .collect()
    }

    /// Whether a gate may hold attempts to connect, so that they are to go on waiting.
    #[must_use]
    pub fn may_hold(&self, now: BootTime) -> bool {
        let holds = |word: &StateWord| {
            word.is_guarded() || word.at(|| now) == Effective::Closed(Closed::Hold)
        };
        self.words
            .as_ref()
            .is_none_or(|words| words.iter().any(holds))
    }
}

/// Looks up what is meant. A name needs gate's pins, and the rights to read them; an endpoint
/// stands for itself, also where gate is not up.
///
/// # Errors
/// [`Error::NoGate`], [`Error::Rights`], and those of the pins and the maps.
pub fn resolve(targets: &[Target], now: BootTime) -> Result<Meant> {
    let mut endpoints: BTreeSet<Endpoint> = BTreeSet::new();
    let mut is_by_name = false;
    for target in targets {
        match target {
            Target::Endpoint(endpoint) => {
                endpoints.insert(*endpoint);
            }
            Target::Named(_) => is_by_name = true,
        }
    }
    let may_look = rights::missing()?.is_empty();
    if is_by_name {
        rights::check()?;
    }
    let pins = match Pins::here() {
        Err(Error::NoBpffs { .. }) if !is_by_name => None,
        pins => Some(pins?),
    };
    if let Some(pins) = pins.as_ref().filter(|_| is_by_name) {
        endpoints.extend(gates::meant(pins, targets)?);
    }
    let aliases = match &pins {
        Some(pins) if may_look => alias::meant(pins, targets)?,
        _ => BTreeSet::new(),
    };
    endpoints.extend(&aliases);
    let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
    let words = match pins {
        _ if !may_look => None,
        None => Some(vec![StateWord::OPEN; endpoints.len()]),
        Some(pins) => Some(words(&pins, &endpoints, now)?),
    };
    Ok(Meant {
        endpoints,
        aliases,
        words,
    })
}

/// What a drain of backends is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeantBackends {
    /// The endpoints by which the connections came; none for any.
    pub by: Vec<Endpoint>,
    /// The gates that still give new connections to one of the backends.
    pub giving: Vec<String>,
}

/// Looks up by which endpoints, and aliases of them, a backend's connections came, if gates are
/// named.
///
/// # Errors
/// [`Error::NoGate`], [`Error::Rights`], and those of the pins and the maps.
pub fn of_backends(
    backends: &[Endpoint],
    targets: &[Target],
    now: BootTime,
) -> Result<MeantBackends> {
    rights::check()?;
    let mut by = resolve(targets, now)?.endpoints;
    let pins = match Pins::here() {
        Err(Error::NoBpffs { .. }) => None,
        pins => Some(pins?),
    };
    let Some(pins) = pins.filter(Pins::exist) else {
        let giving = Vec::new();
        return Ok(MeantBackends { by, giving });
    };
    let tables = Tables::open(&pins)?;
    let handovers = Handovers::open(&pins)?;
    let mut giving = Vec::new();
    for gate in gates::list(&pins, &tables)? {
        let is_meant = by.is_empty() || gate.endpoints.iter().any(|it| by.contains(it));
        let is_closed = matches!(tables.state(gate.id)?.at(|| now), Effective::Closed(_));
        if is_meant && !is_closed && gives(handovers.as_ref(), &gate, backends)? {
            giving.push(gate.to_string());
        }
    }
    if !by.is_empty() {
        by.extend(aliases(handovers.as_ref(), |of| by.contains(&of))?);
    }
    Ok(MeantBackends { by, giving })
}

/// Whether a gate's new connections go to one of these, or a part of them does.
fn gives(handovers: Option<&Handovers>, gate: &Gate, backends: &[Endpoint]) -> Result<bool> {
    let split = match handovers {
        Some(handovers) => handover::status(handovers, gate.id)?,
        None => None,
    };
    let is_one = |it: Endpoint| backends.iter().any(|backend| meet(*backend, it));
    let own = gate.endpoints.iter().any(|it| is_one(*it));
    Ok(split.map_or(own, |split| {
        let mut to = split.to.iter().filter(|to| to.weight > 0);
        to.any(|to| is_one(to.backend) || to.is_own && own)
    }))
}

/// Where the aliases of some endpoints are.
fn aliases(
    handovers: Option<&Handovers>,
    is_meant: impl Fn(Endpoint) -> bool,
) -> Result<Vec<Endpoint>> {
    let all = handovers.map_or(Ok(Vec::new()), Handovers::aliases)?;
    let meant = all
        .into_iter()
        .filter(|(_, alias)| is_meant(alias.of.into()));
    Ok(meant.map(|(at, _)| at.into()).collect())
}

/// All endpoints of gates, and all aliases.
pub(super) fn all_endpoints(pins: Option<&Pins>) -> Result<Vec<Endpoint>> {
    let Some(pins) = pins.filter(|pins| pins.exist()) else {
        return Ok(Vec::new());
    };
    let mut all: Vec<Endpoint> = Tables::open(pins)?.endpoints()?.into_keys().collect();
    all.extend(aliases(Handovers::open(pins)?.as_ref(), |_| true)?);
    Ok(all)
}

/// A closed wildcard's gate goes before an endpoint's own, as in the data path. What has no gate is
/// open.
fn words(pins: &Pins, endpoints: &[Endpoint], now: BootTime) -> Result<Vec<StateWord>> {
    let tables = match Tables::open(pins) {
        Err(Error::NotUp) => return Ok(vec![StateWord::OPEN; endpoints.len()]),
        tables => tables?,
    };
    let mut words = HashMap::new();
    for gate in gates::list(pins, &tables)? {
        let word = tables.state(gate.id)?;
        words.extend(gate.endpoints.iter().map(|it| (*it, word)));
    }
    let word = |endpoint: &Endpoint| {
        let any = words.get(&Endpoint {
            address: None,
            ..*endpoint
        });
        let closed = any.filter(|word| matches!(word.at(|| now), Effective::Closed(_)));
        let word = closed.or_else(|| words.get(endpoint)).or(any);
        word.copied().unwrap_or(StateWord::OPEN)
    };
    Ok(endpoints.iter().map(word).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime((5_000 + ms) * 1_000_000)
    }

    #[test]
    fn what_a_gate_may_hold_goes_on_waiting() {
        let until = |ms| StateWord::closed(Closed::Hold, at(ms));
        let dropping = StateWord::closed(Closed::Drop, at(10));
        for (words, may_hold, open) in [
            (Some(vec![StateWord::OPEN, StateWord::OPEN]), false, 2),
            (Some(vec![StateWord::OPEN, until(10)]), true, 1),
            // Its lease is over.
            (Some(vec![StateWord::OPEN, until(1)]), false, 2),
            (Some(vec![dropping, dropping]), false, 0),
            (
                Some(vec![StateWord::OPEN, StateWord::OPEN.guarded(true)]),
                true,
                2,
            ),
            (None, true, 0),
        ] {
            let meant = Meant {
                endpoints: ["10.0.0.5:80", "10.0.0.6:80"]
                    .map(|text| text.parse().expect(text))
                    .to_vec(),
                aliases: BTreeSet::new(),
                words,
            };
            assert_eq!(meant.may_hold(at(5)), may_hold, "{meant:?}");
            assert_eq!(meant.open(at(5)).len(), open, "{meant:?}");
        }
    }
}
