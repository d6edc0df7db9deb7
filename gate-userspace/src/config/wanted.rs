//! Which interfaces a configuration wants, and what is missing on each. Pure.

use std::collections::{BTreeMap, BTreeSet};

use gate_common::abi::Direction;

use super::change::Awaited;
use super::live::Live;
use super::{Config, GateConfig, Interfaces};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::gates::GateName;
use crate::hooks::{self, Hook, HookChoice};
use crate::interfaces::{Interface, Kind};
use crate::reach::{self, Place};

/// An interface that is to be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub interface: String,
    /// By which hook.
    pub hook: HookChoice,
}

/// Interfaces, and which way what passes there is seen.
pub(super) type Ways = [(u32, Direction)];

/// What is wanted of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// How what comes in is seen; [`HookChoice::Auto`] is satisfied with whatever is there.
    ingress: Option<HookChoice>,
    /// Whether what goes out is seen.
    egress: bool,
}

impl Need {
    fn of(hook: HookChoice) -> Self {
        let (ingress, egress) = match hook {
            HookChoice::Tc => (Some(HookChoice::TcIngress), true),
            HookChoice::TcEgress => (None, true),
            other => (Some(other), false),
        };
        Self { ingress, egress }
    }

    fn join(&mut self, other: Self) {
        self.egress |= other.egress;
        self.ingress = match (self.ingress, other.ingress) {
            (None | Some(HookChoice::Auto), Some(named)) => Some(named),
            (own, _) => own,
        };
    }
}

/// What is wanted of all interfaces.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub needs: BTreeMap<u32, Need>,
    pub awaited: BTreeSet<Awaited>,
    /// The gates that wait for an interface or a route.
    pub waiting: BTreeSet<GateName>,
}

impl Wanted {
    fn need(&mut self, index: u32, need: Need) {
        self.needs.entry(index).or_default().join(need);
    }

    /// What will be seen once all is attached that is wanted.
    pub(super) fn ways(&self, live: &Live) -> Vec<(u32, Direction)> {
        let there = live.attached.iter();
        let hooks = there.flat_map(|(index, hooks)| hooks.iter().map(|it| (*index, *it)));
        let mut ways: BTreeSet<(u32, bool)> = hooks
            .map(|(index, hook)| (index, hook.slot().direction() == Direction::Egress))
            .collect();
        for (index, need) in &self.needs {
            let kind = live.interface(*index).map(|it| it.kind);
            // TC both ways is what auto takes there.
            let is_both = need.ingress == Some(HookChoice::Auto)
                && !matches!(kind, Some(Kind::Nic | Kind::Loopback) | None);
            if need.ingress.is_some() || kind == Some(Kind::Loopback) {
                ways.insert((*index, false));
            }
            if need.egress || (is_both && !live.attached.contains_key(index)) {
                ways.insert((*index, true));
            }
        }
        let direction = |is_out| match is_out {
            true => Direction::Egress,
            false => Direction::Ingress,
        };
        ways.into_iter()
            .map(|(index, is_out)| (index, direction(is_out)))
            .collect()
    }
}

/// What is wanted of which interface.
pub(super) fn interfaces(config: &Config, live: &Live) -> Wanted {
    let mut wanted = Wanted::default();
    // One that is down for a moment keeps what is attached.
    let mut all = live.interfaces.clone();
    for interface in &mut all {
        interface.is_up |= live.attached.contains_key(&interface.index);
    }
    let by_name: BTreeMap<&str, u32> = live
        .interfaces
        .iter()
        .map(|it| (it.name.as_str(), it.index))
        .collect();
    let mut seen = BTreeMap::new();
    for (name, gate) in &config.gates {
        match &gate.interfaces {
            Interfaces::Named(names) => {
                for interface in names {
                    match by_name.get(interface.as_str()) {
                        Some(index) => wanted.need(*index, Need::of(gate.hook)),
                        None => {
                            wanted.awaited.insert(Awaited::Interface(interface.clone()));
                            wanted.waiting.insert(name.clone());
                        }
                    }
                }
            }
            Interfaces::Auto => reached(&mut wanted, (name, gate), live, &all, &mut seen),
        }
    }
    wanted
}

/// All interfaces over which a gate's endpoints can be reached, and the backends that this host's own
/// connections go to instead.
fn reached(
    wanted: &mut Wanted,
    (name, gate): (&GateName, &GateConfig),
    live: &Live,
    all: &[Interface],
    seen: &mut BTreeMap<Place, Vec<(u32, Direction)>>,
) {
    let place = |endpoint: &Endpoint| live.places.get(endpoint).copied().flatten();
    let mut places = BTreeSet::new();
    for endpoint in &gate.endpoints {
        match place(endpoint) {
            Some(place) => drop(places.insert(place)),
            None => {
                wanted.awaited.insert(Awaited::Route(*endpoint));
                wanted.waiting.insert(name.clone());
            }
        }
    }
    if places.iter().any(|it| !it.is_here()) {
        let of_backends = gate.backends.iter().filter_map(|it| place(&it.address));
        places.extend(of_backends.map(|it| match it {
            Place::Here => Place::Loopback,
            other => other,
        }));
    }
    for place in places {
        let ways = seen
            .entry(place)
            .or_insert_with(|| reach::seen_at(place, all));
        for (index, direction) in ways.iter() {
            let need = match (gate.hook, direction) {
                (HookChoice::Auto, Direction::Egress) => Need::of(HookChoice::TcEgress),
                (hook, _) => Need::of(hook),
            };
            wanted.need(*index, need);
        }
    }
}

/// What has to be attached to an interface that has these hooks already.
///
/// # Errors
/// [`Error::OtherHook`] where what is there is another hook than the one that is asked for by name;
/// [`Error::Impossible`] where the interface can't take it.
pub(super) fn missing(
    interface: &Interface,
    all: &[Interface],
    need: Need,
    there: &[Hook],
) -> Result<Vec<Target>> {
    let at = |direction| there.iter().find(|it| it.slot().direction() == direction);
    let (comes_in, goes_out) = (at(Direction::Ingress), at(Direction::Egress));
    let is_loopback = interface.kind == Kind::Loopback;
    // What leaves by loopback comes in there.
    let egress = need.egress && !is_loopback && goes_out.is_none();
    let asked = match (need.ingress, need.egress && is_loopback) {
        (None, true) => Some(HookChoice::TcIngress),
        (asked, _) => asked,
    };
    let ingress = match (asked, comes_in) {
        (None, _) | (Some(HookChoice::Auto), Some(_)) => None,
        (Some(asked), Some(actual)) => match fits(asked, *actual) {
            true => None,
            false => {
                return Err(Error::OtherHook {
                    interface: interface.name.clone(),
                    actual: actual.to_string(),
                    asked: asked.name().to_owned(),
                });
            }
        },
        // Where something is there, auto would be satisfied with that.
        (Some(HookChoice::Auto), None) if goes_out.is_some() => Some(HookChoice::TcIngress),
        (Some(asked), None) => Some(asked),
    };
    let hooks = match (ingress, egress) {
        (None, false) => vec![],
        (None, true) => vec![HookChoice::TcEgress],
        (Some(HookChoice::Auto | HookChoice::TcIngress), true) => vec![HookChoice::Tc],
        (Some(named), true) => vec![named, HookChoice::TcEgress],
        (Some(asked), false) => vec![asked],
    };
    let mut targets = Vec::new();
    for hook in hooks {
        hooks::plan(hook, interface, all, None)?;
        let interface = interface.name.clone();
        targets.push(Target { interface, hook });
    }
    Ok(targets)
}

/// Whether a hook that is there is the one that was asked for by name.
fn fits(asked: HookChoice, actual: Hook) -> bool {
    use crate::interfaces::XdpMode;
    match actual {
        Hook::Xdp(XdpMode::Native) => asked == HookChoice::Xdp,
        Hook::Xdp(XdpMode::Generic) => asked == HookChoice::XdpGeneric,
        Hook::Xdp(XdpMode::Offloaded) => false,
        Hook::Tc(_) => matches!(asked, HookChoice::Tc | HookChoice::TcIngress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces::XdpMode;

    const IN: Hook = Hook::Tc(Direction::Ingress);
    const OUT: Hook = Hook::Tc(Direction::Egress);
    const XDP: Hook = Hook::Xdp(XdpMode::Native);

    #[test]
    fn only_what_is_missing_is_attached() {
        use HookChoice as C;
        let need = |all: &[HookChoice]| {
            let mut need = Need::default();
            all.iter().for_each(|it| need.join(Need::of(*it)));
            need
        };
        for (asked, there, expected) in [
            (&[C::Auto][..], &[][..], Some(&[C::Auto][..])),
            (&[C::Auto], &[XDP], Some(&[])),
            (&[C::Auto], &[IN], Some(&[])),
            (&[C::Auto], &[OUT], Some(&[C::TcIngress])),
            (&[C::Auto, C::TcEgress], &[], Some(&[C::Tc])),
            (&[C::Auto, C::TcEgress], &[XDP], Some(&[C::TcEgress])),
            (&[C::TcEgress, C::Auto], &[XDP, OUT], Some(&[])),
            (&[C::Auto, C::Xdp], &[], Some(&[C::Xdp])),
            (&[C::Xdp, C::Auto], &[XDP], Some(&[])),
            (&[C::Xdp, C::TcEgress], &[], Some(&[C::Xdp, C::TcEgress])),
            (&[C::Tc], &[IN], Some(&[C::TcEgress])),
            (&[C::Tc], &[OUT], Some(&[C::TcIngress])),
            (&[C::TcIngress, C::TcEgress], &[], Some(&[C::Tc])),
            (&[C::XdpGeneric], &[XDP], None),
            (&[C::Xdp], &[IN], None),
            (&[C::Tc], &[XDP], None),
        ] {
            let nic = Interface::example(Kind::Nic);
            let missing = missing(&nic, std::slice::from_ref(&nic), need(asked), there);
            let hooks = missing.map(|all| all.iter().map(|it| it.hook).collect::<Vec<_>>());
            assert_eq!(hooks.ok().as_deref(), expected, "{asked:?} on {there:?}");
        }
    }

    #[test]
    fn what_leaves_by_loopback_comes_in_there() {
        let lo = Interface::example(Kind::Loopback);
        let all = std::slice::from_ref(&lo);
        let hooks = |need, there: &[Hook]| {
            let missing = missing(&lo, all, need, there).expect("possible");
            missing.iter().map(|it| it.hook).collect::<Vec<_>>()
        };
        let out = Need::of(HookChoice::TcEgress);
        assert_eq!(hooks(out, &[]), [HookChoice::TcIngress]);
        assert_eq!(hooks(out, &[IN]), []);
        assert_eq!(hooks(Need::of(HookChoice::Tc), &[IN]), []);
        assert!(missing(&lo, all, Need::of(HookChoice::Xdp), &[]).is_err());
    }
}
