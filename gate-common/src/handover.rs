//! Where new connections go instead of to their endpoint's own listener: the map values, and the
//! decision, which runs in the BPF programs and in tests.

use crate::flow::{Address, EndpointKey, GateId, Port, PortEntry};

/// Backends that one gate's new connections can be shared among.
pub const MAX_SHARES: usize = 8;

/// Largest weight of a backend.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// Listening sockets that one backend is known by: of a `SO_REUSEPORT` group and of both families.
/// The kernel shares a group's load among all its members, whichever of them is found.
pub const MAX_SOCKETS: u32 = 16;

/// Splits that can be known at once: a gate's own, and the one that it is being given.
pub const MAX_SPLITS: u32 = 2 * crate::abi::MAX_GATES;

/// Listening sockets that can be known at once.
pub const MAX_LISTENERS: u32 = 16_384;

/// Aliases that can be known at once.
pub const MAX_ALIASES: u32 = 1024;

/// A part of a gate's new connections, and the backend that gets it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The backend. The gate's own listener where this is an endpoint of the gate.
    pub backend: EndpointKey,
    /// Where it listens as well, for the other family; port 0 for nowhere. For user space.
    pub also: EndpointKey,
    /// The sum of the weights up to this one, its own included.
    pub limit: u32,
    /// A combination of [`Share::OWN`] and [`Share::LOCAL`].
    pub flags: u32,
}

impl Share {
    /// The gate's own listener: the connection goes on as if there were no handover.
    pub const OWN: u32 = 1;
    /// The backend's address is one of this host's.
    pub const LOCAL: u32 = 2;

    /// Whether it is the gate's own listener's.
    #[inline(always)]
    #[must_use]
    pub const fn is_own(&self) -> bool {
        self.flags & Self::OWN != 0
    }

    /// No share.
    pub const NONE: Self = Self {
        backend: EndpointKey::NONE,
        also: EndpointKey::NONE,
        limit: 0,
        flags: 0,
    };
}

/// By which hook a split works.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Steered {
    /// On the backend's host: the look-up of the listening socket (`sk_lookup`, Linux 5.9).
    Lookup = 1,
    /// On the caller's host: connect(2) (`cgroup/connect4` and `connect6`, Linux 4.17).
    Connect = 2,
}

/// How a gate's new connections are shared; value of `SPLITS`. It is never changed: a new one is
/// entered, and the gate's word in `HANDOVERS` is stored.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// A [`Steered`].
    pub hook: u32,
    /// The sum of all weights.
    pub total: u32,
    /// The shares; one of limit 0 is none.
    pub shares: [Share; MAX_SHARES],
}

impl Split {
    /// Whether it works by this hook.
    #[inline(always)]
    #[must_use]
    pub const fn is_by(&self, hook: Steered) -> bool {
        self.hook == hook as u32
    }

    /// Its shares.
    pub fn used(&self) -> impl Iterator<Item = &Share> {
        self.shares.iter().filter(|share| share.limit > 0)
    }

    /// Its shares but for that of the gate's own listener.
    pub fn others(&self) -> impl Iterator<Item = &Share> {
        self.used().filter(|share| !share.is_own())
    }

    /// The share that a random number falls to; none where the split has no weight.
    #[inline(always)]
    #[must_use]
    pub fn pick(&self, random: u32) -> Option<Share> {
        let at = random.checked_rem(self.total)?;
        let mut shares = self.shares.iter();
        // The compiler unrolls this; the verifier then needs no proof that it ends.
        shares.find(|share| at < share.limit).copied()
    }
}

/// Which listening socket; key of `LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The backend.
    pub backend: EndpointKey,
    /// From 0 to [`MAX_SOCKETS`].
    pub index: u32,
}

/// What a socket that was sent to a backend was connected to; value of `PEERS`. One of gate
/// [`GateId::HOST`] is of a socket that must not be sent anywhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What its process asked for.
    pub asked: EndpointKey,
    /// Where it went.
    pub actual: EndpointKey,
    /// The gate.
    pub gate: GateId,
}

impl Peer {
    /// Of a socket that goes where it is told to.
    pub const EXEMPT: Self = Self {
        asked: Share::NONE.backend,
        actual: Share::NONE.backend,
        gate: GateId::HOST,
    };

    /// What the process of a socket that is connected to `real` asked for.
    #[inline(always)]
    #[must_use]
    pub const fn asked_instead_of(&self, real: &EndpointKey) -> Option<EndpointKey> {
        match self.actual.is(real) {
            true => Some(self.asked),
            false => None,
        }
    }

    /// The gate that judges a SYN of the socket to `remote`.
    #[inline(always)]
    #[must_use]
    pub const fn gate_of(&self, remote: &EndpointKey) -> Option<GateId> {
        match self.actual.is(remote) {
            true => Some(self.gate),
            false => None,
        }
    }
}

/// Another address by which a gate's listener answers, or by which its status is asked for; value
/// of `ALIASES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The endpoint whose listener answers.
    pub of: EndpointKey,
    /// The gate.
    pub gate: GateId,
    /// A combination of [`Alias::WITHDRAWN`] and [`Alias::EXISTING`].
    pub flags: u32,
}

impl Alias {
    /// Connections are refused.
    pub const WITHDRAWN: u32 = 1;
    /// A socket of its own listens there; all that is done is to refuse.
    pub const EXISTING: u32 = 2;
}

/// The maps, as the decision reads them.
pub trait Tables {
    /// What is known of a port.
    fn port(&self, port: Port) -> PortEntry;
    /// The gate of an endpoint with an address.
    fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId>;
    /// The share of a gate's split for this hook that a new connection falls to.
    fn share(&self, gate: GateId, hook: Steered) -> Option<Share>;
    /// What is known of an alias, with an address or for any.
    fn alias(&self, local: &EndpointKey) -> Option<Alias>;
}

/// Where a new connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// Where it would go by itself.
    Pass,
    /// Nowhere: it is refused.
    Refuse,
    /// To this backend; if that has no socket any more, to the listener of the endpoint
    /// `otherwise`, where there is one, and else where it would go by itself.
    To(Share, Option<EndpointKey>),
    /// To the listener of this endpoint.
    Own(EndpointKey),
}

/// Chooses the listener for a connection that comes in for `local`. An alias goes before an
/// endpoint, and of both the exact one before the wildcard.
#[inline(always)]
pub fn steer<T: Tables>(tables: &T, local: &EndpointKey) -> Steer {
    let any = EndpointKey::new(Address::ANY, local.port);
    if let Some(alias) = tables.alias(local).or_else(|| tables.alias(&any)) {
        return answer(tables, alias);
    }
    let port = tables.port(local.port);
    let exact = match port.has_exact() {
        true => tables.gate_of(local),
        false => None,
    };
    let share = |gate| tables.share(gate, Steered::Lookup);
    match exact
        .and_then(share)
        .or_else(|| port.wildcard().and_then(share))
    {
        Some(share) if !share.is_own() => Steer::To(share, None),
        Some(_) | None => Steer::Pass,
    }
}

#[inline(always)]
fn answer<T: Tables>(tables: &T, alias: Alias) -> Steer {
    if alias.flags & Alias::WITHDRAWN != 0 {
        return Steer::Refuse;
    }
    if alias.flags & Alias::EXISTING != 0 {
        return Steer::Pass;
    }
    match tables.share(alias.gate, Steered::Lookup) {
        Some(share) if !share.is_own() => Steer::To(share, Some(alias.of)),
        Some(_) | None => Steer::Own(alias.of),
    }
}

/// Chooses the backend for a connect(2) to `remote`; none leaves it as it is. A socket of one family
/// can't be sent to an address of the other.
#[inline(always)]
pub fn redirect<T: Tables>(tables: &T, remote: &EndpointKey) -> Option<(GateId, Share)> {
    // The unspecified address means loopback there, and a wildcard in the map.
    if !tables.port(remote.port).has_exact() || remote.address.is(&Address::ANY) {
        return None;
    }
    let gate = tables.gate_of(remote)?;
    let share = tables.share(gate, Steered::Connect)?;
    let backend = &share.backend;
    let is_meant =
        !share.is_own() && !backend.is(remote) && backend.address.is_v4() == remote.address.is_v4();
    is_meant.then_some((gate, share))
}

const _: () = {
    assert!(size_of::<Share>() == 48);
    assert!(size_of::<Split>() == 8 + 48 * MAX_SHARES);
    assert!(size_of::<ListenerKey>() == 24);
    assert!(size_of::<Peer>() == 44);
    assert!(size_of::<Alias>() == 28);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Alias, ListenerKey, Peer, Share, Split};
    use aya::Pod;

    // SAFETY: all are repr(C) over integers, without padding (the size assertions above add up),
    // so any bytes are a valid value.
    unsafe impl Pod for Share {}
    // SAFETY: as above.
    unsafe impl Pod for Split {}
    // SAFETY: as above.
    unsafe impl Pod for ListenerKey {}
    // SAFETY: as above.
    unsafe impl Pod for Peer {}
    // SAFETY: as above.
    unsafe impl Pod for Alias {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: EndpointKey = key([127, 0, 0, 1], 8082);
    const WEB: EndpointKey = key([10, 0, 0, 5], 80);
    const STATUS: EndpointKey = key([10, 0, 0, 5], 81);

    const fn key(address: [u8; 4], port: u16) -> EndpointKey {
        EndpointKey::new(Address::from_v4(address), Port::new(port))
    }

    fn share(limit: u32, flags: u32) -> Share {
        Share {
            backend: B,
            also: EndpointKey::NONE,
            limit,
            flags,
        }
    }

    #[derive(Default)]
    struct Maps {
        exact: Option<(GateId, Option<Share>)>,
        wildcard: Option<(GateId, Option<Share>)>,
        alias: Option<Alias>,
        any_alias: Option<Alias>,
        hook: Option<Steered>,
        /// Whether any address belongs to the exact gate.
        any: bool,
    }

    impl Tables for Maps {
        fn port(&self, _port: Port) -> PortEntry {
            PortEntry::new(self.wildcard.map(|(gate, _)| gate), self.exact.is_some())
        }

        fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId> {
            self.exact
                .map(|(gate, _)| gate)
                .filter(|_| self.any || *endpoint == WEB)
        }

        fn share(&self, gate: GateId, hook: Steered) -> Option<Share> {
            let known = [self.exact, self.wildcard].into_iter().flatten();
            let mut own =
                known.filter(|(id, _)| *id == gate && self.hook.is_none_or(|it| it == hook));
            own.next()?.1
        }

        fn alias(&self, local: &EndpointKey) -> Option<Alias> {
            match local.address {
                Address::ANY => self.any_alias.filter(|_| local.port == STATUS.port),
                _ => self.alias.filter(|_| *local == STATUS),
            }
        }
    }

    #[test]
    fn a_random_number_falls_to_one_share() {
        let mut split = Split {
            hook: 1,
            total: 10,
            shares: [Share::NONE; MAX_SHARES],
        };
        split.shares[0] = share(9, 0);
        split.shares[1] = share(10, Share::OWN);
        for (random, limit) in [(0, 9), (8, 9), (9, 10), (10, 9), (19, 10)] {
            let picked = split.pick(random).map(|share| share.limit);
            assert_eq!(picked, Some(limit), "{random}");
        }
        let none = Split { total: 0, ..split };
        assert_eq!(none.pick(3), None);
    }

    #[test]
    fn the_exact_endpoint_goes_before_the_wildcard() {
        let (a, b) = (share(1, 0), share(2, 0));
        let maps = |exact, wildcard| Maps {
            exact: Some((GateId(1), exact)),
            wildcard: Some((GateId(2), wildcard)),
            ..Maps::default()
        };
        assert_eq!(steer(&maps(Some(a), Some(b)), &WEB), Steer::To(a, None));
        assert_eq!(steer(&maps(None, Some(b)), &WEB), Steer::To(b, None));
        assert_eq!(steer(&maps(None, None), &WEB), Steer::Pass);
        assert_eq!(
            steer(&maps(Some(a), None), &key([10, 0, 0, 6], 80)),
            Steer::Pass
        );
        let own = share(1, Share::OWN);
        assert_eq!(steer(&maps(Some(own), Some(b)), &WEB), Steer::Pass);
    }

    #[test]
    fn an_alias_answers_by_what_is_current() {
        let maps = |flags, share| Maps {
            exact: Some((GateId(1), share)),
            alias: Some(Alias {
                of: WEB,
                gate: GateId(1),
                flags,
            }),
            ..Maps::default()
        };
        let b = share(1, 0);
        assert_eq!(steer(&maps(0, None), &STATUS), Steer::Own(WEB));
        assert_eq!(steer(&maps(0, Some(b)), &STATUS), Steer::To(b, Some(WEB)));
        assert_eq!(
            steer(&maps(0, Some(share(1, Share::OWN))), &STATUS),
            Steer::Own(WEB)
        );
        assert_eq!(
            steer(&maps(Alias::WITHDRAWN, Some(b)), &STATUS),
            Steer::Refuse
        );
        assert_eq!(steer(&maps(Alias::EXISTING, Some(b)), &STATUS), Steer::Pass);
        let both = Alias::EXISTING | Alias::WITHDRAWN;
        assert_eq!(steer(&maps(both, None), &STATUS), Steer::Refuse);
        assert_eq!(steer(&maps(Alias::WITHDRAWN, None), &WEB), Steer::Pass);
    }

    #[test]
    fn an_alias_of_any_address_answers_where_there_is_no_exact_one() {
        let of = |of, flags| Alias {
            of,
            gate: GateId(1),
            flags,
        };
        let other = key([10, 0, 0, 6], 81);
        let any = EndpointKey::new(Address::ANY, Port::new(80));
        let mut maps = Maps {
            any_alias: Some(of(any, 0)),
            ..Maps::default()
        };
        assert_eq!(steer(&maps, &STATUS), Steer::Own(any));
        maps.alias = Some(of(WEB, Alias::WITHDRAWN));
        assert_eq!(steer(&maps, &STATUS), Steer::Refuse);
        assert_eq!(steer(&maps, &other), Steer::Own(any));
        assert_eq!(steer(&maps, &key([10, 0, 0, 6], 80)), Steer::Pass);
    }

    #[test]
    fn each_hook_has_its_own_splits() {
        let maps = |hook| Maps {
            exact: Some((GateId(1), Some(share(1, 0)))),
            hook: Some(hook),
            ..Maps::default()
        };
        assert_eq!(steer(&maps(Steered::Connect), &WEB), Steer::Pass);
        assert_eq!(redirect(&maps(Steered::Lookup), &WEB), None);
        assert_eq!(
            redirect(&maps(Steered::Connect), &WEB),
            Some((GateId(1), share(1, 0)))
        );
        assert_eq!(redirect(&maps(Steered::Connect), &B), None);
    }

    #[test]
    fn a_connect_stays_in_its_family_and_goes_by_its_address() {
        let v6 = EndpointKey::new(Address::from_v6([0xfd; 16]), Port::new(80));
        let maps = |backend| Maps {
            exact: Some((
                GateId(1),
                Some(Share {
                    backend,
                    ..share(1, 0)
                }),
            )),
            any: true,
            ..Maps::default()
        };
        let backend = |remote, to| redirect(&maps(to), remote).map(|(_, share)| share.backend);
        assert_eq!(backend(&WEB, B), Some(B));
        assert_eq!(backend(&WEB, v6), None);
        assert_eq!(backend(&v6, B), None);
        assert_eq!(backend(&WEB, WEB), None);
        let any = EndpointKey::new(Address::ANY, Port::new(80));
        assert_eq!(backend(&any, v6), None);
        let own = Maps {
            exact: Some((GateId(1), Some(share(1, Share::OWN)))),
            ..Maps::default()
        };
        assert_eq!(redirect(&own, &WEB), None);
    }

    #[test]
    fn a_peer_counts_as_long_as_it_is_the_peer() {
        let peer = Peer {
            asked: WEB,
            actual: B,
            gate: GateId(3),
        };
        assert_eq!(peer.asked_instead_of(&B), Some(WEB));
        assert_eq!(peer.asked_instead_of(&STATUS), None);
        assert_eq!(peer.gate_of(&B), Some(GateId(3)));
        assert_eq!(peer.gate_of(&WEB), None);
    }
}
