//! Carrying a handover out: everything that can be refused is looked at first, then one store
//! switches the gate.

use std::collections::BTreeSet;
use std::net::IpAddr;

use gate_common::flow::{EndpointKey, GateId};
use gate_common::handover::{Alias, Share, Split, Steered};
use gate_common::state::Effective;

use super::renew::addresses;
use super::{HookChoice, Plan, Portion, Refusal, Weighed, portions, split};
use crate::endpoint::Endpoint;
use crate::error::{BackendError, Error, Result};
use crate::gates::{self, Gate, Target};
use crate::pins::{Lock, Pins};
use crate::sockets::{self, Backend, Listener, Process};
use crate::tables::Tables;
use crate::tables::handovers::Handovers;
use crate::{clock, datapath, reach, steering};

/// A backend, and its part of the new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its address.
    pub backend: Endpoint,
    /// Its weight.
    pub weight: u32,
    /// Whether it is the gate's own listener.
    pub is_own: bool,
    /// Who listens there, where its sockets were taken.
    pub process: Option<Process>,
}

/// What a handover did.
#[derive(Clone, Debug)]
pub struct Handed {
    /// The gate.
    pub gate: Gate,
    /// By which hook; none where new connections go to the gate's own listener again.
    pub hook: Option<Steered>,
    /// Who gets new connections.
    pub now: Vec<Part>,
    /// Who got some before and gets no more.
    pub left: Vec<Endpoint>,
    /// Whether it was just so before.
    pub already: bool,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A backend that is ready to be switched to.
struct Ready {
    share: Weighed,
    sockets: Vec<Backend>,
}

/// Gives a gate's new connections to other backends.
///
/// # Errors
/// [`Refusal`], [`Error::Backend`], and those of the kernel; nothing is changed then.
pub fn hand_over(pins: &Pins, target: &Target, plan: &Plan) -> Result<Handed> {
    let endpoints = gates::meant(pins, std::slice::from_ref(target))?;
    let prepared = ready(plan, target, &endpoints)?;
    let lock = pins.lock_or_create()?;
    let was_up = pins.exist();
    let handed = switch(pins, &lock, target, (&endpoints, &prepared), plan);
    if handed.is_err() {
        // The first failure counts.
        let _second = match was_up {
            true => steering::detach_if_idle(pins, &lock),
            false => pins.remove(lock),
        };
    }
    handed
}

/// All that a handover needs, taken and found right.
pub(crate) struct Prepared {
    hook: Steered,
    ready: Vec<Ready>,
}

/// Takes what a handover of a gate with these endpoints needs, and looks for what is wrong with it.
///
/// # Errors
/// [`Refusal`], [`Error::Backend`], and those of the kernel.
pub(crate) fn ready(plan: &Plan, target: &Target, endpoints: &[Endpoint]) -> Result<Prepared> {
    plan.check()?;
    let hook = choose(plan, endpoints)?;
    let ready = prepare(plan, hook, target, endpoints)?;
    Ok(Prepared { hook, ready })
}

/// Where the new connections are seen: where they arrive, or where they are made.
fn choose(plan: &Plan, endpoints: &[Endpoint]) -> Result<Steered> {
    let mut here = Vec::new();
    let mut there = Vec::new();
    for endpoint in endpoints {
        match reach::is_here(*endpoint)? {
            true => here.push(*endpoint),
            false => there.push(*endpoint),
        }
    }
    let hook = match (plan.hook, &here[..], &there[..]) {
        (HookChoice::Auto, [here, ..], [there, ..]) => {
            let (here, there) = (*here, *there);
            return Err(Refusal::Mixed { here, there }.into());
        }
        (HookChoice::SkLookup, _, [there, ..]) => return Err(Refusal::NotHere(*there).into()),
        (HookChoice::Auto, _, []) | (HookChoice::SkLookup, _, []) => Steered::Lookup,
        (HookChoice::Auto, [], _) | (HookChoice::CgroupConnect, _, _) => Steered::Connect,
    };
    let wildcard = endpoints.iter().find(|it| it.address.is_none());
    match (hook, wildcard) {
        (Steered::Connect, Some(wildcard)) => Err(Refusal::Wildcard(*wildcard).into()),
        (Steered::Connect, None) if plan.pid.is_some() => Err(Refusal::WrongHost.into()),
        (Steered::Lookup, _) if plan.cgroup.is_some() => Err(Refusal::WrongHost.into()),
        _ => Ok(hook),
    }
}

/// Takes the sockets of all backends, and looks for what is wrong with them.
fn prepare(
    plan: &Plan,
    hook: Steered,
    target: &Target,
    endpoints: &[Endpoint],
) -> Result<Vec<Ready>> {
    let mut ready = Vec::new();
    if let (true, Some(pid)) = (plan.to.is_empty(), plan.pid) {
        let backend = sockets::take_of(pid)?;
        let portion = Portion {
            at: backend.address,
            also: None,
            weight: 1,
        };
        ready.push(with_sockets(&portion, vec![backend]));
    }
    for portion in &plan.to {
        let is_own = |at: Endpoint| endpoints.iter().any(|own| stands_for(*own, at));
        if portion.addresses().any(is_own) {
            check_listens(hook, portion.at)?;
            ready.push(Ready {
                share: Weighed {
                    backend: portion.at,
                    also: portion.also,
                    weight: portion.weight,
                    flags: Share::OWN,
                },
                sockets: Vec::new(),
            });
            continue;
        }
        ready.push(match hook {
            Steered::Lookup => {
                let take = |at| sockets::take(at, plan.pid);
                let taken: Result<Vec<Backend>> = portion.addresses().map(take).collect();
                with_sockets(portion, taken?)
            }
            Steered::Connect => remote(portion)?,
        });
    }
    check_loop(target, endpoints, &ready)?;
    for it in ready.iter().filter(|it| !it.share.is_own()) {
        for endpoint in endpoints {
            check_family(hook, it, *endpoint, target)?;
        }
    }
    Ok(ready)
}

fn with_sockets(portion: &Portion, sockets: Vec<Backend>) -> Ready {
    Ready {
        share: Weighed {
            backend: portion.at,
            also: portion.also,
            weight: portion.weight,
            flags: 0,
        },
        sockets,
    }
}

/// A backend that connect(2) is sent to. Where it is this host's it must listen.
fn remote(portion: &Portion) -> Result<Ready> {
    let at = portion.at;
    if at.address.is_none() {
        return Err(Refusal::Wildcard(at).into());
    }
    if portion.also.is_some() {
        return Err(Refusal::BothFamilies(at).into());
    }
    let flags = match reach::is_here(at)? {
        true => Share::LOCAL,
        false => 0,
    };
    if flags == Share::LOCAL {
        check_listens(Steered::Lookup, at)?;
    }
    Ok(Ready {
        share: Weighed {
            backend: at,
            also: None,
            weight: portion.weight,
            flags,
        },
        sockets: Vec::new(),
    })
}

/// Whether an endpoint is an address, or a wildcard that stands for it.
fn stands_for(own: Endpoint, at: Endpoint) -> bool {
    own == at || own.address.is_none() && own.port == at.port
}

/// The gate's own listener must be there, too, if it is to get a part.
fn check_listens(hook: Steered, at: Endpoint) -> Result<()> {
    match hook {
        Steered::Connect => Ok(()),
        Steered::Lookup => {
            let all = on_port(at)?;
            if !sockets::reached(&all, at).is_empty() {
                return Ok(());
            }
            Err(BackendError::NothingListens {
                address: at,
                elsewhere: all.iter().map(|it| it.bound).collect(),
            }
            .into())
        }
    }
}

fn on_port(at: Endpoint) -> Result<Vec<Listener>> {
    sockets::listeners_on(Some(at.port)).map_err(Error::call("ask sock_diag for", at.to_string()))
}

/// Fails where all that would get connections is what gets them without a handover: by its address,
/// or by the socket that is found there.
fn check_loop(target: &Target, endpoints: &[Endpoint], ready: &[Ready]) -> Result<()> {
    let looped = |backend: Endpoint| {
        let gate = target.to_string();
        Err(Refusal::Loop { backend, gate }.into())
    };
    let mut weighty = ready.iter().filter(|it| it.share.weight > 0);
    if let Some(first) = ready.first()
        && weighty.all(|it| it.share.is_own())
    {
        return looped(first.share.backend);
    }
    let taken = ready.iter().flat_map(|it| &it.sockets);
    let cookies: BTreeSet<u64> = taken
        .flat_map(|backend| &backend.sockets)
        .map(|taken| taken.socket.cookie)
        .collect();
    if cookies.is_empty() {
        return Ok(());
    }
    for endpoint in endpoints {
        let all = on_port(*endpoint)?;
        let own = match endpoint.address {
            Some(_) => sockets::reached(&all, *endpoint),
            None => all,
        };
        if own.iter().any(|own| cookies.contains(&own.cookie)) {
            return looped(ready.first().map_or(*endpoint, |it| it.share.backend));
        }
    }
    Ok(())
}

/// Fails where the backend can't take the connections of an endpoint's family.
fn check_family(hook: Steered, ready: &Ready, endpoint: Endpoint, target: &Target) -> Result<()> {
    // For a wildcard each family goes where there is a socket for it.
    let Some(address) = endpoint.address else {
        return Ok(());
    };
    let takes = match (hook, ready.share.backend.address) {
        (Steered::Connect, backend) => {
            backend.is_some_and(|backend| backend.is_ipv4() == address.is_ipv4())
        }
        (Steered::Lookup, _) => {
            let mut sockets = ready.sockets.iter().flat_map(|it| &it.sockets);
            sockets.any(|taken| match address {
                IpAddr::V4(_) => !(taken.socket.is_v6 && taken.socket.v6_only),
                IpAddr::V6(_) => taken.socket.is_v6,
            })
        }
    };
    match takes {
        true => Ok(()),
        false => Err(Refusal::Family {
            backend: ready.share.backend,
            family: family(address),
            gate: target.to_string(),
            endpoint,
        }
        .into()),
    }
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

fn switch(
    pins: &Pins,
    lock: &Lock,
    target: &Target,
    (endpoints, prepared): (&[Endpoint], &Prepared),
    plan: &Plan,
) -> Result<Handed> {
    datapath::prepare(pins, lock)?;
    let mut tables = Tables::open(pins)?;
    let now = clock::now();
    tables.settle(lock, now)?;
    let gate = gates::find_or_make(pins, lock, &mut tables, std::slice::from_ref(target), now)?;
    let Some(gate) = gate
        .into_iter()
        .next()
        .filter(|it| it.endpoints == endpoints)
    else {
        return Err(Refusal::Changed(target.to_string()).into());
    };
    let (before, after) = store(pins, lock, &tables, (gate.id, prepared), plan)?;
    let mut handovers = steering::maps(pins)?;
    let notes = tidy(pins, lock, &tables, &mut handovers);
    let now: Vec<Part> = portions(&after)
        .into_iter()
        .map(|(backend, weight, is_own)| Part {
            backend,
            weight,
            is_own,
            process: prepared
                .ready
                .iter()
                .find(|it| it.share.backend == backend)
                .and_then(|it| it.sockets.first())
                .map(|taken| taken.process.clone()),
        })
        .collect();
    Ok(Handed {
        left: left(&gate, before.as_ref(), &now),
        already: before == Some(after),
        hook: Some(prepared.hook),
        now,
        gate,
        notes,
    })
}

/// Attaches what is needed and switches the gate, by one store; how it was shared before, and is now.
/// What is no longer needed is left to [`clear_up`].
///
/// # Errors
/// Those of the kernel; the gate is as it was then.
pub(crate) fn store(
    pins: &Pins,
    lock: &Lock,
    tables: &Tables,
    (gate, Prepared { hook, ready }): (GateId, &Prepared),
    plan: &Plan,
) -> Result<(Option<Split>, Split)> {
    match hook {
        Steered::Lookup => steering::attach_lookup(pins, lock)?,
        Steered::Connect => {
            if matches!(tables.state(gate)?.at(clock::now), Effective::Closed(_)) {
                // It stays closed for what goes elsewhere from now on.
                let backends = ready.iter().map(|it| it.share.backend);
                reach::check_backends(backends, &datapath::live(pins)?)?;
            }
            steering::attach_connect(pins, lock, plan.cgroup.as_deref())?;
        }
    }
    let mut handovers = steering::maps(pins)?;
    let before = handovers.split(gate)?;
    for it in ready {
        if !it.sockets.is_empty() {
            handovers.enter(lock, it.share.backend.into(), &it.sockets)?;
        }
    }
    let shares: Vec<Weighed> = ready.iter().map(|it| it.share).collect();
    let after = split(*hook, &shares);
    handovers.switch(lock, gate, Some(&after))?;
    Ok((before, after))
}

/// Clears up after a switch, which is done whatever becomes of that; what to tell the operator.
fn tidy(pins: &Pins, lock: &Lock, tables: &Tables, handovers: &mut Handovers) -> Vec<String> {
    let tidied = clear_up(pins, lock, tables, handovers);
    let note = |error: Error| format!("what is no longer needed could not be cleared: {error}");
    tidied.err().map(note).into_iter().collect()
}

/// Who got new connections before and gets none now; without a handover that is the gate's own
/// listener.
fn left(gate: &Gate, before: Option<&Split>, now: &[Part]) -> Vec<Endpoint> {
    let own_gets = now.iter().any(|part| part.is_own);
    let own = || match own_gets {
        true => Vec::new(),
        false => gate.endpoints.clone(),
    };
    let Some(before) = before else {
        return own();
    };
    let mut left = BTreeSet::new();
    for share in before.used() {
        let backend = Endpoint::from(share.backend);
        if share.is_own() {
            left.extend(own());
        } else if !now.iter().any(|part| part.backend == backend) {
            // Connections are marked with the address that took them, so both count.
            left.extend(addresses(share));
        }
    }
    left.into_iter().collect()
}

/// Gives a gate's new connections to its own listener again.
///
/// # Errors
/// [`Error::NotUp`], [`Error::NoGate`], and those of the maps.
pub fn back(pins: &Pins, target: &Target) -> Result<Handed> {
    let lock = pins.lock()?;
    let mut tables = Tables::open(pins)?;
    let now = clock::now();
    tables.settle(&lock, now)?;
    let gate = gates::find_or_make(pins, &lock, &mut tables, std::slice::from_ref(target), now)?;
    let Some(gate) = gate.into_iter().next() else {
        return Err(Refusal::Changed(target.to_string()).into());
    };
    let own: Vec<Part> = gate
        .endpoints
        .iter()
        .map(|endpoint| Part {
            backend: *endpoint,
            weight: 1,
            is_own: true,
            process: None,
        })
        .collect();
    let handovers = Handovers::open(pins)?;
    let before = match &handovers {
        Some(handovers) => handovers.split(gate.id)?,
        None => None,
    };
    let mut notes = Vec::new();
    if let (Some(mut handovers), Some(before)) = (handovers, &before) {
        handovers.switch(&lock, gate.id, None)?;
        notes = tidy(pins, &lock, &tables, &mut handovers);
        if before.is_by(Steered::Lookup) {
            notes.extend(silent(&gate).unwrap_or_default());
        }
    }
    Ok(Handed {
        left: left(&gate, before.as_ref(), &own),
        already: before.is_none(),
        hook: None,
        now: own,
        gate,
        notes,
    })
}

/// What nobody answers any more.
fn silent(gate: &Gate) -> Result<Vec<String>> {
    let listening = sockets::listening(&gate.endpoints)
        .map_err(Error::call("ask sock_diag for", "listening sockets"))?;
    let silent = gate.endpoints.iter().filter(|it| !listening.contains(it));
    Ok(silent
        .map(|endpoint| format!("{endpoint}: nothing listens there: new connections are refused"))
        .collect())
}

/// Forgets the sockets of backends that no gate and no alias leads to any more, and detaches what none
/// needs.
pub(crate) fn clear_up(
    pins: &Pins,
    lock: &Lock,
    tables: &Tables,
    handovers: &mut Handovers,
) -> Result<()> {
    let mut used = BTreeSet::new();
    for gate in gates::list(pins, tables)? {
        let split = handovers.split(gate.id)?;
        let backends = split.as_ref().map(portions).unwrap_or_default();
        used.extend(backends.into_iter().map(|(backend, _, _)| backend));
    }
    let of_alias = |(_, alias): (EndpointKey, Alias)| Endpoint::from(alias.of);
    used.extend(handovers.aliases()?.into_iter().map(of_alias));
    handovers.keep(lock, &used)?;
    steering::detach_if_idle(pins, lock)
}
