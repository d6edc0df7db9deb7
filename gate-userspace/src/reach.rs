//! Over which interfaces, and which way, connections to an endpoint go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gate_common::abi::Direction;
use gate_common::handover::{Split, Steered};

use crate::attach::Attachment;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::hooks::HookChoice;
use crate::interfaces::{self, Interface, Kind, LOOPBACK, Layer};
use crate::pins::Pins;
use crate::routes::{Route, Routes};
use crate::tables::Tables;
use crate::tables::handovers::Handovers;

/// Where an endpoint is, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Any address of this host.
    Here,
    /// An address that only this host itself reaches.
    Loopback,
    /// Behind an interface.
    Behind(u32),
}

fn place(endpoint: Endpoint) -> Result<Place> {
    let place = Places::default().of(endpoint)?;
    place.ok_or(Error::NoRoute { endpoint })
}

/// Where endpoints are; the kernel is asked once for each address.
#[derive(Default)]
pub struct Places {
    routes: Option<Routes>,
    known: BTreeMap<IpAddr, Option<Place>>,
}

impl Places {
    /// Where an endpoint is; none where no route leads there.
    ///
    /// # Errors
    /// When the kernel doesn't answer.
    pub fn of(&mut self, endpoint: Endpoint) -> Result<Option<Place>> {
        let Some(address) = endpoint.address else {
            return Ok(Some(Place::Here));
        };
        if address.is_loopback() {
            return Ok(Some(Place::Loopback));
        }
        if let Some(place) = self.known.get(&address) {
            return Ok(*place);
        }
        let routes = match &mut self.routes {
            Some(routes) => routes,
            none => none.insert(Routes::open()?),
        };
        let place = match routes.to(address, None)? {
            Route::Local => Some(Place::Here),
            Route::Out { ifindex, .. } => Some(Place::Behind(ifindex)),
            Route::None => None,
        };
        self.known.insert(address, place);
        Ok(place)
    }
}

impl Place {
    /// Whether connections end at this host.
    #[must_use]
    pub const fn is_here(self) -> bool {
        match self {
            Self::Here | Self::Loopback => true,
            Self::Behind(_) => false,
        }
    }
}

/// Where connections to these endpoints go: to each of them, and to the backends that those which are
/// made here are sent to instead.
fn places(pins: &Pins, endpoints: &[Endpoint]) -> Result<Vec<(Endpoint, Result<Place>)>> {
    let mut places: Vec<_> = endpoints.iter().map(|it| (*it, place(*it))).collect();
    places.extend(backends(pins, endpoints)?.into_iter().map(from_here));
    Ok(places)
}

/// Where connections go that this host makes to a backend.
fn from_here(backend: Endpoint) -> (Endpoint, Result<Place>) {
    match place(backend) {
        Ok(Place::Here) => (backend, Ok(Place::Loopback)),
        place => (backend, place),
    }
}

/// The backends that connections to these endpoints are sent to where they are made.
fn backends(pins: &Pins, endpoints: &[Endpoint]) -> Result<BTreeSet<Endpoint>> {
    let mut backends = BTreeSet::new();
    let Some(handovers) = Handovers::open(pins)? else {
        return Ok(backends);
    };
    let tables = Tables::open(pins)?;
    for endpoint in endpoints {
        let Some(gate) = tables.gate_of(*endpoint)? else {
            continue;
        };
        let split = handovers.split(gate)?;
        let sent = split.filter(|split| split.is_by(Steered::Connect));
        let others = sent.iter().flat_map(Split::others);
        backends.extend(others.map(|share| Endpoint::from(share.backend)));
    }
    Ok(backends)
}

/// Whether connections to an endpoint end at this host.
///
/// # Errors
/// When the kernel doesn't answer.
pub fn is_here(endpoint: Endpoint) -> Result<bool> {
    let place = Places::default().of(endpoint)?;
    Ok(place.is_some_and(Place::is_here))
}

/// The interfaces over which connections to these endpoints come in or go out, each with the TC
/// hook that sees them.
///
/// # Errors
/// [`Error::NoRoute`], and when the kernel doesn't answer.
pub fn reach(
    pins: &Pins,
    endpoints: &[Endpoint],
    all: &[Interface],
) -> Result<Vec<(Interface, HookChoice)>> {
    let mut choices = BTreeMap::<u32, HookChoice>::new();
    for (_, place) in places(pins, endpoints)? {
        for (ifindex, direction) in seen_at(place?, all) {
            let choice = match direction {
                Direction::Ingress => HookChoice::TcIngress,
                Direction::Egress => HookChoice::TcEgress,
            };
            choices
                .entry(ifindex)
                .and_modify(|other| {
                    if *other != choice {
                        *other = HookChoice::Tc;
                    }
                })
                .or_insert(choice);
        }
    }
    let named = |(ifindex, choice)| {
        let interface = all.iter().find(|interface| interface.index == ifindex)?;
        Some((interface.clone(), choice))
    };
    Ok(choices.into_iter().filter_map(named).collect())
}

/// The interfaces, and the ways on them, that see what goes to a place.
pub(crate) fn seen_at(place: Place, all: &[Interface]) -> Vec<(u32, Direction)> {
    let up = all
        .iter()
        .filter(|interface| interface.is_up && interface.layer != Layer::Unknown);
    let is_port = |interface: &Interface| {
        let controller = all
            .iter()
            .find(|other| Some(other.index) == interface.controller);
        controller.is_some_and(|controller| controller.kind == Kind::Bridge)
    };
    match place {
        // What comes in by a bridge's port for this host comes in by the bridge as well.
        Place::Here => up
            .filter(|interface| !is_port(interface))
            .map(|interface| (interface.index, Direction::Ingress))
            .collect(),
        Place::Loopback => up
            .filter(|interface| interface.kind == Kind::Loopback)
            .map(|interface| (interface.index, Direction::Ingress))
            .collect(),
        // What a bridge's ports send each other doesn't go out by the bridge.
        Place::Behind(ifindex) => up
            .filter(|interface| is_port(interface) && interface.controller == Some(ifindex))
            .map(|interface| (interface.index, Direction::Ingress))
            .chain([(ifindex, Direction::Egress)])
            .collect(),
    }
}

/// A line for each interface that may bring connections and can't be gated.
///
/// # Errors
/// When the kernel doesn't answer.
pub fn left_out() -> Result<Vec<String>> {
    let all = interfaces::list()?;
    let unknown = all
        .iter()
        .filter(|interface| interface.is_up && interface.layer == Layer::Unknown);
    let note = |interface: &Interface| {
        format!(
            "{} is left out: its frames begin with neither an Ethernet nor an IP header",
            interface.name
        )
    };
    Ok(unknown.map(note).collect())
}

/// Fails where none of the attachments sees what goes to some endpoint, or is sent to a backend instead, so that closing its gate
/// would be a lie. Returns a line for each endpoint of which they see only a part.
///
/// # Errors
/// [`Error::NotCovered`], and when the kernel doesn't answer.
pub fn check(pins: &Pins, endpoints: &[Endpoint], live: &[Attachment]) -> Result<Vec<String>> {
    check_places(places(pins, endpoints)?, live)
}

/// The same for backends that connections which are made here are about to be sent to.
///
/// # Errors
/// As for [`check`].
pub fn check_backends(
    backends: impl IntoIterator<Item = Endpoint>,
    live: &[Attachment],
) -> Result<()> {
    check_places(backends.into_iter().map(from_here), live).map(drop)
}

fn check_places(
    places: impl IntoIterator<Item = (Endpoint, Result<Place>)>,
    live: &[Attachment],
) -> Result<Vec<String>> {
    let ways: Vec<(u32, Direction)> = live
        .iter()
        .map(|attachment| (attachment.ifindex, attachment.slot.direction()))
        .collect();
    let mut notes = Vec::new();
    for (endpoint, place) in places {
        let place = match place {
            // Where it will be is not known yet: whoever is attached may be on the way.
            Err(Error::NoRoute { .. }) => continue,
            place => place?,
        };
        let remedy = match place {
            Place::Here => "`gate up INTERFACE`".to_owned(),
            Place::Loopback => "`gate up lo`".to_owned(),
            Place::Behind(ifindex) => {
                let all = interfaces::list()?;
                let name = all.iter().find(|it| it.index == ifindex);
                let name = name.map_or("INTERFACE", |it| it.name.as_str());
                format!("`gate up --hook tc-egress {name}`")
            }
        };
        match coverage(place, &ways) {
            Coverage::None => {
                return Err(Error::NotCovered { endpoint, remedy });
            }
            Coverage::Forwarded => notes.push(format!(
                "{endpoint}: what this host itself sends there, or gives another address on the way, \
                 does not go by what is attached; {remedy} sees it"
            )),
            Coverage::Full => {}
        }
    }
    Ok(notes)
}

/// How much of what goes to a place the attached hooks see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// Nothing.
    None,
    /// What comes in with that address to be forwarded, but not what leaves.
    Forwarded,
    /// All.
    Full,
}

pub(crate) fn coverage(place: Place, ways: &[(u32, Direction)]) -> Coverage {
    let comes_in = ways.iter().any(|(_, way)| *way == Direction::Ingress);
    let goes_out = ways.iter().any(|(_, way)| *way == Direction::Egress);
    let by_others = ways
        .iter()
        .any(|(ifindex, way)| *ifindex != LOOPBACK && *way == Direction::Ingress);
    let is_seen = match place {
        Place::Here => comes_in,
        Place::Loopback => ways.contains(&(LOOPBACK, Direction::Ingress)),
        // By the route's interface, or by the port of a bridge that it is.
        Place::Behind(_) if !goes_out && by_others => return Coverage::Forwarded,
        Place::Behind(_) => goes_out,
    };
    match is_seen {
        true => Coverage::Full,
        false => Coverage::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, kind: Kind, controller: Option<u32>) -> Interface {
        Interface {
            index,
            name: format!("if{index}"),
            address: None,
            is_up: true,
            kind,
            layer: Layer::Ethernet,
            mtu: 1500,
            controller,
            lower: None,
            xdp: None,
        }
    }

    /// Loopback, a NIC, a bridge with two ports.
    fn host() -> Vec<Interface> {
        vec![
            interface(1, Kind::Loopback, None),
            interface(2, Kind::Nic, None),
            interface(3, Kind::Bridge, None),
            interface(4, Kind::Veth, Some(3)),
            interface(5, Kind::Veth, Some(3)),
        ]
    }

    const IN: Direction = Direction::Ingress;
    const OUT: Direction = Direction::Egress;

    #[test]
    fn every_way_to_an_endpoint_is_found() {
        let all = host();
        assert_eq!(seen_at(Place::Here, &all), [(1, IN), (2, IN), (3, IN)]);
        assert_eq!(seen_at(Place::Loopback, &all), [(1, IN)]);
        assert_eq!(seen_at(Place::Behind(2), &all), [(2, OUT)]);
        assert_eq!(
            seen_at(Place::Behind(3), &all),
            [(4, IN), (5, IN), (3, OUT)]
        );
    }

    #[test]
    fn what_is_down_or_unknown_is_left_alone() {
        let mut all = host();
        all[1].is_up = false;
        all[2].layer = Layer::Unknown;
        assert_eq!(seen_at(Place::Here, &all), [(1, IN)]);
    }

    #[test]
    fn a_place_that_nothing_sees_is_told() {
        for (place, ways, expected) in [
            (Place::Here, &[(1, IN)][..], Coverage::Full),
            (Place::Here, &[(2, IN)], Coverage::Full),
            (Place::Here, &[(2, OUT)], Coverage::None),
            (Place::Loopback, &[(2, IN)], Coverage::None),
            (Place::Loopback, &[(1, IN)], Coverage::Full),
            (Place::Behind(2), &[(1, IN)], Coverage::None),
            (Place::Behind(2), &[(2, OUT)], Coverage::Full),
            (Place::Behind(2), &[(4, OUT)], Coverage::Full),
            (Place::Behind(2), &[(3, IN)], Coverage::Forwarded),
        ] {
            assert_eq!(coverage(place, ways), expected, "{place:?} {ways:?}");
        }
    }
}
