//! Makes status ports, and forgets them.

use std::collections::HashSet;
use std::slice;

use super::{Kind, StatusPort, bring_back, withdraw};
use crate::endpoint::Endpoint;
use crate::error::{AliasError, BackendError, Error, Result};
use crate::gates::{self, Gate, Target};
use crate::pins::{Lock, Pins};
use crate::sockets::{self, Listener};
use crate::tables::Tables;
use crate::tables::handovers::Handovers;
use crate::{clock, datapath, handover, reach, steering};

/// A status port as it is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose.
    pub target: Target,
    /// Where.
    pub at: Endpoint,
    /// The endpoint whose listener is to answer; none for the one that fits.
    pub of: Option<Endpoint>,
    /// Who listens there.
    pub kind: Kind,
}

/// What [`add`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The gate.
    pub gate: Gate,
    /// Its status port.
    pub port: StatusPort,
    /// Whether it was just so before.
    pub already: bool,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Makes a status port. One that is there already stays withdrawn, if it is.
///
/// # Errors
/// [`AliasError`], [`BackendError`], [`Error::Kernel`], [`Error::NoGate`], [`Error::Full`], and those
/// of the maps; nothing is changed then.
pub fn add(pins: &Pins, wanted: &Wanted) -> Result<Added> {
    let lock = pins.lock_or_create()?;
    let was_up = pins.exist();
    let added = gates::meant(pins, slice::from_ref(&wanted.target))
        .and_then(|_| steering::check_lookup())
        .and_then(|()| datapath::prepare(pins, &lock))
        .and_then(|()| add_locked(pins, &lock, wanted));
    if added.is_err() {
        // The first failure counts.
        match (was_up, pins.exist()) {
            (true, _) => {
                let _second = steering::detach_if_idle(pins, &lock);
            }
            (false, true) => {
                let _second = pins.remove(lock);
            }
            (false, false) => pins.remove_empty(lock),
        }
    }
    added
}

fn add_locked(pins: &Pins, lock: &Lock, wanted: &Wanted) -> Result<Added> {
    let mut tables = Tables::open(pins)?;
    let now = clock::now();
    tables.settle(lock, now)?;
    let targets = slice::from_ref(&wanted.target);
    let endpoints = gates::meant(pins, targets)?;
    let all = gates::list(pins, &tables)?;
    // Whatever is wrong is told before a gate is made.
    let own = gates::find(pins, &tables, targets)?.into_iter().next();
    let of = match wanted.kind {
        Kind::Alias => choose(wanted, &endpoints)?,
        Kind::Existing => wanted.at,
    };
    for endpoint in [wanted.at, of] {
        if !reach::is_here(endpoint)? {
            return Err(AliasError::NotHere { endpoint }.into());
        }
    }
    let ports = own.iter().flat_map(|gate| &gate.aliases);
    let known = ports.copied().find(|port| port.at == wanted.at);
    let port = StatusPort {
        at: wanted.at,
        of,
        kind: wanted.kind,
        is_withdrawn: known.is_some_and(|port| port.is_withdrawn),
    };
    let already = known == Some(port);
    if !already {
        check_free(wanted, &endpoints, &all, own.as_ref())?;
        check_use(wanted)?;
    }
    let backend = match port.kind {
        Kind::Alias => sockets::take_if_any(of)?,
        Kind::Existing => None,
    };
    if port.kind == Kind::Alias && backend.is_none() && !has_other_backend(pins, own.as_ref())? {
        return Err(nothing_listens(of)?);
    }
    let gate = match own {
        Some(gate) => gate,
        None => gates::find_or_make(pins, lock, &mut tables, targets, now)?
            .into_iter()
            .next()
            .ok_or(Error::NotUp)?,
    };
    steering::attach_lookup(pins, lock)?;
    let mut handovers = Handovers::open(pins)?.ok_or(Error::NotUp)?;
    if let Some(known) = known.filter(|known| known.kind != port.kind) {
        withdraw(&mut handovers, lock, &mut tables, (gate.id, known))?;
    }
    if port.kind == Kind::Alias {
        handovers.enter(lock, of.into(), backend.as_slice())?;
    }
    // The sockets are let go of: as long as this process has them, their port is in use.
    drop(backend);
    match port.is_withdrawn {
        true => handovers.set_alias(lock, port.at.into(), port.entry(gate.id))?,
        false => make(&mut handovers, lock, &mut tables, (&gate, port))?,
    }
    // What answered before may have no alias any more.
    handover::clear_up(pins, lock, &tables, &mut handovers)?;
    let gate = gates::find(pins, &tables, targets)?.into_iter().next();
    Ok(Added {
        gate: gate.ok_or(Error::NotUp)?,
        port,
        already,
        notes: notes(pins, port),
    })
}

/// Enters it refused first: an entry of `ENDPOINTS` without one of `ALIASES` would be taken for an
/// endpoint of its own, should this process die.
fn make(
    handovers: &mut Handovers,
    lock: &Lock,
    tables: &mut Tables,
    (gate, port): (&Gate, StatusPort),
) -> Result<()> {
    if !gate.aliases.contains(&port) {
        let refused = StatusPort {
            is_withdrawn: true,
            ..port
        };
        handovers.set_alias(lock, port.at.into(), refused.entry(gate.id))?;
    }
    let made = bring_back(handovers, lock, tables, (gate.id, port));
    if made.is_err() && !gate.aliases.contains(&port) {
        // The first failure counts.
        let _second = handovers.forget_alias(lock, port.at.into());
    }
    made
}

fn has_other_backend(pins: &Pins, gate: Option<&Gate>) -> Result<bool> {
    match (Handovers::open(pins)?, gate) {
        (Some(handovers), Some(gate)) => handover::has_backend(&handovers, gate.id),
        _ => Ok(false),
    }
}

/// The error that [`sockets::take`] gave.
pub(super) fn nothing_listens(of: Endpoint) -> Result<Error> {
    let on_port = sockets::listeners_on(Some(of.port)).map_err(Error::call("ask", "sock_diag"))?;
    Ok(BackendError::NothingListens {
        address: of,
        elsewhere: on_port.iter().map(|it| it.bound).collect(),
    }
    .into())
}

/// Whose listener answers: the endpoint with the same address, else the wildcard, else the only one
/// of the family.
fn choose(wanted: &Wanted, endpoints: &[Endpoint]) -> Result<Endpoint> {
    let at = wanted.at;
    let shown = || {
        let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        shown.join(", ")
    };
    let gate = || wanted.target.to_string();
    // Of a wildcard the listener for the same address is meant.
    let of = |endpoint: Endpoint| Endpoint {
        address: endpoint.address.or(at.address),
        port: endpoint.port,
    };
    if let Some(asked) = wanted.of {
        return match endpoints.contains(&asked) {
            true => Ok(of(asked)),
            false => Err(AliasError::NotOf {
                of: asked,
                gate: gate(),
                endpoints: shown(),
            }
            .into()),
        };
    }
    let family = |endpoint: &Endpoint| match (endpoint.address, at.address) {
        (Some(own), Some(other)) => own.is_ipv4() == other.is_ipv4(),
        (None, _) | (_, None) => true,
    };
    let ranks: [&dyn Fn(&Endpoint) -> bool; 3] = [
        &|it| it.address == at.address,
        &|it| it.address.is_none(),
        &family,
    ];
    for is_it in ranks {
        let mut found = endpoints.iter().filter(|it| is_it(it));
        match (found.next(), found.next()) {
            (Some(one), None) => return Ok(of(*one)),
            (Some(_), Some(_)) => break,
            (None, _) => {}
        }
    }
    Err(AliasError::Which {
        at,
        gate: gate(),
        endpoints: shown(),
    }
    .into())
}

/// Fails where another endpoint or status port is in the way.
fn check_free(
    wanted: &Wanted,
    endpoints: &[Endpoint],
    all: &[Gate],
    own: Option<&Gate>,
) -> Result<()> {
    let at = wanted.at;
    let of_gates = all
        .iter()
        .flat_map(|gate| gate.endpoints.iter().map(move |it| (*it, gate.to_string())));
    // One that never had a gate is not among them.
    let asked = endpoints.iter().map(|it| (*it, wanted.target.to_string()));
    if let Some((_, gate)) = of_gates.chain(asked).find(|(it, _)| it.meets(at)) {
        return Err(AliasError::Endpoint { at, gate }.into());
    }
    for gate in all {
        let is_own = own.is_some_and(|own| own.id == gate.id);
        let in_the_way = |port: &&StatusPort| port.at.meets(at) && !(is_own && port.at == at);
        if let Some(port) = gate.aliases.iter().find(in_the_way) {
            let gate = gate.to_string();
            return Err(AliasError::Known { at: port.at, gate }.into());
        }
    }
    Ok(())
}

/// Fails where a socket listens and should not, or the other way round.
fn check_use(wanted: &Wanted) -> Result<()> {
    let at = wanted.at;
    let all = sockets::listeners_on(Some(at.port)).map_err(Error::call("ask", "sock_diag"))?;
    let found = match at.address {
        Some(_) => sockets::reached(&all, at),
        None => all,
    };
    let gate = wanted.target.to_string();
    match (wanted.kind, found.is_empty()) {
        (Kind::Alias, false) => {
            let by = owner(&found);
            Err(AliasError::InUse { at, by, gate }.into())
        }
        (Kind::Existing, true) => Err(AliasError::NotInUse { at, gate }.into()),
        (Kind::Alias, true) | (Kind::Existing, false) => Ok(()),
    }
}

fn owner(listeners: &[Listener]) -> String {
    let inodes: HashSet<u32> = listeners.iter().map(|it| it.inode).collect();
    let owner = sockets::owners(&inodes).into_values().next();
    owner.map_or("a socket".to_owned(), |process| process.to_string())
}

/// What is attached may see the gate's endpoints, but not this.
fn notes(pins: &Pins, port: StatusPort) -> Vec<String> {
    let (Kind::Alias, Ok(live)) = (port.kind, datapath::live(pins)) else {
        return Vec::new();
    };
    match reach::check(pins, &[port.at], &live) {
        Ok(notes) => notes,
        Err(error) => vec![format!(
            "closing the gate would not close {}: {error}",
            port.at
        )],
    }
}

/// What [`remove`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The gate, as it was asked for.
    pub gate: String,
    /// Where the status port was.
    pub at: Endpoint,
    /// Whether it was none before.
    pub already: bool,
}

/// Forgets a status port. Connections that came by it go on.
///
/// # Errors
/// [`AliasError::Known`] where it is another gate's, [`Error::NotUp`], [`Error::NoGate`], and those of
/// the maps.
pub fn remove(pins: &Pins, target: &Target, at: Endpoint) -> Result<Removed> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let own = gates::find(pins, &tables, slice::from_ref(target))?;
    let known = own.iter().find_map(|gate| {
        let port = gate.aliases.iter().find(|port| port.at == at)?;
        Some((gate.id, *port))
    });
    if known.is_none() {
        super::check_none(&gates::list(pins, &tables)?, at)?;
    }
    if let (Some(known), Some(mut handovers)) = (known, Handovers::open(pins)?) {
        withdraw(&mut handovers, &lock, &mut tables, known)?;
        handovers.forget_alias(&lock, at.into())?;
        handover::clear_up(pins, &lock, &tables, &mut handovers)?;
    }
    Ok(Removed {
        gate: target.to_string(),
        at,
        already: known.is_none(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(at: &str, of: Option<&str>, endpoints: &[&str]) -> Option<String> {
        let endpoint = |text: &str| text.parse::<Endpoint>().expect(text);
        let wanted = Wanted {
            target: "web".parse().expect("a name"),
            at: endpoint(at),
            of: of.map(endpoint),
            kind: Kind::Alias,
        };
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|it| endpoint(it)).collect();
        choose(&wanted, &endpoints).ok().map(|it| it.to_string())
    }

    #[test]
    fn the_endpoint_that_fits_best_answers() {
        for (at, endpoints, of) in [
            (
                "10.0.0.5:81",
                &["10.0.0.5:80", "10.0.0.6:80"][..],
                "10.0.0.5:80",
            ),
            (
                "10.0.0.7:81",
                &["10.0.0.5:80", "[fd00::5]:80"],
                "10.0.0.5:80",
            ),
            (
                "[fd00::7]:81",
                &["10.0.0.5:80", "[fd00::5]:80"],
                "[fd00::5]:80",
            ),
            ("10.0.0.7:81", &["10.0.0.5:443", "*:80"], "10.0.0.7:80"),
            ("*:81", &["10.0.0.5:443", "*:80"], "*:80"),
            ("*:81", &["10.0.0.5:80"], "10.0.0.5:80"),
        ] {
            assert_eq!(chosen(at, None, endpoints).as_deref(), Some(of), "{at}");
        }
    }

    #[test]
    fn of_several_that_fit_one_must_be_named() {
        for (at, endpoints) in [
            ("10.0.0.5:81", &["10.0.0.5:80", "10.0.0.5:443"][..]),
            ("10.0.0.7:81", &["10.0.0.5:80", "10.0.0.6:80"]),
            ("10.0.0.7:81", &["[fd00::5]:80"]),
            ("*:81", &["10.0.0.5:80", "[fd00::5]:80"]),
        ] {
            assert_eq!(chosen(at, None, endpoints), None, "{at}");
        }
        let two = ["10.0.0.5:80", "10.0.0.5:443"];
        let of = |of| chosen("10.0.0.5:81", Some(of), &two);
        assert_eq!(of("10.0.0.5:443").as_deref(), Some("10.0.0.5:443"));
        assert_eq!(of("10.0.0.5:444"), None);
    }
}
