//! Addresses, endpoints and flows, as the maps key them: big-endian byte arrays.

/// An IPv6 address in network byte order; IPv4 is v4-mapped (`::ffff:a.b.c.d`, RFC 4291
/// section 2.5.5.2).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// `::`, which stands for any address in a wildcard endpoint.
    pub const ANY: Self = Self([0; 16]);

    /// The v4-mapped form of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
        ])
    }
}

/// A TCP port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub [u8; 2]);

/// Key of the `ENDPOINTS` map: where new connections go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The destination address, or [`Address::ANY`].
    pub address: Address,
    /// The destination port.
    pub port: Port,
    /// Always zero; makes the key a multiple of four bytes, which the kernel hashes faster.
    pub zero: [u8; 2],
}

impl EndpointKey {
    /// The key of one address and port.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: Port) -> Self {
        Self {
            address,
            port,
            zero: [0; 2],
        }
    }
}

/// The 4-tuple of a connection as its first SYN shows it; key of the `HELD` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// The client's address.
    pub source: Address,
    /// The endpoint's address.
    pub destination: Address,
    /// The client's port.
    pub source_port: Port,
    /// The endpoint's port.
    pub destination_port: Port,
}

impl FlowKey {
    /// The endpoint that the flow goes to, for the exact look-up.
    #[inline(always)]
    #[must_use]
    pub const fn endpoint(&self) -> EndpointKey {
        EndpointKey::new(self.destination, self.destination_port)
    }

    /// The same with any address, for the wildcard look-up.
    #[inline(always)]
    #[must_use]
    pub const fn wildcard(&self) -> EndpointKey {
        EndpointKey::new(Address::ANY, self.destination_port)
    }
}

/// A flow and the initial sequence number of its SYN; key of the `RELEASED` map. A client
/// that reuses its 4-tuple for another connection picks another ISN, so this names one
/// connection attempt.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptKey {
    /// The 4-tuple.
    pub flow: FlowKey,
    /// The SYN's sequence number, network byte order.
    pub isn: [u8; 4],
}

/// Index of a gate in `GATES` and `STATS`. Slot 0 is no gate: its counters are the host's.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GateId(pub u32);

impl GateId {
    /// Slot 0: counters of frames that belong to no gate.
    pub const HOST: Self = Self(0);
}
