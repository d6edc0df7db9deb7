//! Addresses, endpoints and flows, as the maps key them: words that hold the bytes as they
//! lie in a packet, in network byte order. Words and not byte arrays, because LLVM takes
//! arrays of bytes apart and moves each byte by itself.

/// An IPv6 address in network byte order; IPv4 is v4-mapped (`::ffff:a.b.c.d`, RFC 4291
/// section 2.5.5.2).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address([u32; 4]);

impl Address {
    /// `::`, which stands for any address in a wildcard endpoint.
    pub const ANY: Self = Self([0; 4]);

    /// The v4-mapped form of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(octets)])
    }

    /// The address with these octets.
    #[inline(always)]
    #[must_use]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The address whose octets are in four words, as they lie in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The octets as four words, as they lie in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Whether it is an IPv4 address in its v4-mapped form.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.0;
        a == 0 && b == 0 && c == 0xffff_u32.to_be()
    }

    /// Whether both are the same. Word by word: of a comparison by `==` the compiler may make a loop
    /// over bytes, which the verifier goes through again and again.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        self.differs(other) == 0
    }

    /// The bits that differ, of all words at once.
    #[inline(always)]
    const fn differs(&self, other: &Self) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)
    }

    /// The last four octets: the IPv4 address of a v4-mapped one.
    #[inline(always)]
    #[must_use]
    pub const fn v4_octets(&self) -> [u8; 4] {
        self.0[3].to_ne_bytes()
    }

    /// All octets.
    #[inline(always)]
    #[must_use]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.0[0].to_ne_bytes();
        let [e, f, g, h] = self.0[1].to_ne_bytes();
        let [i, j, k, l] = self.0[2].to_ne_bytes();
        let [m, n, o, p] = self.0[3].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

/// A TCP port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port(u16);

impl Port {
    /// The port of that number.
    #[inline(always)]
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The port with these octets.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(octets: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(octets))
    }

    /// Its octets.
    #[inline(always)]
    #[must_use]
    pub const fn octets(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// Its number.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// A SYN's sequence number, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isn(u32);

impl Isn {
    /// The sequence number with these octets.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The number.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u32 {
        u32::from_be(self.0)
    }
}

/// Key of the `ENDPOINTS` map: where new connections go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// The destination address, or [`Address::ANY`] for a wildcard.
    pub address: Address,
    /// The destination port.
    pub port: Port,
    /// Always zero; makes the key a multiple of four bytes, which the kernel hashes faster.
    pub zero: u16,
}

impl EndpointKey {
    /// No endpoint: one of port 0.
    pub const NONE: Self = Self::new(Address::ANY, Port::new(0));

    /// The key of one address and port.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: Port) -> Self {
        Self {
            address,
            port,
            zero: 0,
        }
    }

    /// Whether both are the same, as by [`Address::is`].
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        self.differs(other) == 0
    }

    /// The bits that differ, of all words at once.
    #[inline(always)]
    const fn differs(&self, other: &Self) -> u32 {
        self.address.differs(&other.address) | (self.port.0 ^ other.port.0) as u32
    }

    /// All bits of it in 64. Who picks endpoints is the operator, so nothing is secret about it.
    #[inline(always)]
    const fn mixed(&self) -> u64 {
        // Odd, and without a pattern: the golden ratio's, pi's and e's first bits.
        const A: u64 = 0x9e37_79b9_7f4a_7c15;
        const B: u64 = 0x243f_6a88_85a3_08d3;
        const C: u64 = 0xb7e1_5162_8aed_2a6b;
        let [a, b, c, d] = self.address.0;
        let upper = (a as u64) << 32 | b as u64;
        let lower = (d as u64) << 32 | (c ^ self.port.0 as u32) as u64;
        let sum = upper.wrapping_mul(A) ^ lower.wrapping_mul(B);
        let mixed = (sum ^ (sum >> 32)).wrapping_mul(C);
        mixed ^ (mixed >> 32)
    }
}

/// The 4-tuple of a connection as its first SYN shows it; key of the `HELD` map. It begins
/// with the endpoint, so that one piece of stack serves both look-ups.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Where the connection goes.
    pub endpoint: EndpointKey,
    /// The client's address.
    pub source: Address,
    /// The client's port.
    pub source_port: Port,
    /// Always zero, as in [`EndpointKey`].
    pub zero: u16,
}

/// A flow and the initial sequence number of its SYN; key of the `RELEASED` map. A client
/// that reuses its 4-tuple for another connection picks another ISN, so this names one
/// connection attempt.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptKey {
    /// The 4-tuple.
    pub flow: FlowKey,
    /// The SYN's sequence number.
    pub isn: Isn,
}

/// What is known of a port; value of the `PORTS` map. It spares a SYN that no gate cares for
/// every hash look-up, and all SYNs the one for the wildcard.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortEntry(u32);

impl PortEntry {
    const EXACT: u32 = 1 << 31;

    /// An entry with the gate of the port's wildcard endpoint, and whether the port has
    /// endpoints with an address.
    #[must_use]
    pub const fn new(wildcard: Option<GateId>, exact: bool) -> Self {
        let gate = match wildcard {
            Some(gate) => gate.0,
            None => 0,
        };
        Self(gate | if exact { Self::EXACT } else { 0 })
    }

    /// The gate of `*:port`.
    #[inline(always)]
    #[must_use]
    pub const fn wildcard(self) -> Option<GateId> {
        match self.0 & !Self::EXACT {
            0 => None,
            gate => Some(GateId(gate)),
        }
    }

    /// Whether `ENDPOINTS` is worth a look.
    #[inline(always)]
    #[must_use]
    pub const fn has_exact(self) -> bool {
        self.0 & Self::EXACT != 0
    }
}

/// Slots of the `SHORTCUTS` map.
pub const SHORTCUTS: u32 = 1 << 17;

/// The endpoint with an address that has this slot, and its gate; value of the `SHORTCUTS` map. The slot
/// follows from the endpoint ([`slot`](Self::slot)), so it is compared where the kernel's hash would be
/// walked. It answers for itself: one that is just being written is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcut {
    /// The endpoint.
    pub endpoint: EndpointKey,
    /// Its gate.
    pub gate: GateId,
    /// What both add up to; where it doesn't, this is being written.
    pub check: u32,
}

impl Shortcut {
    /// None: a slot that nobody has.
    pub const NONE: Self = Self {
        endpoint: EndpointKey::NONE,
        gate: GateId::HOST,
        check: 0,
    };

    /// From an endpoint to its gate.
    #[inline(always)]
    #[must_use]
    pub const fn new(endpoint: EndpointKey, gate: GateId) -> Self {
        Self {
            endpoint,
            gate,
            check: endpoint.mixed() as u32 ^ gate.0,
        }
    }

    /// The slot of an endpoint.
    #[inline(always)]
    #[must_use]
    pub const fn slot(endpoint: &EndpointKey) -> u32 {
        (endpoint.mixed() >> 32) as u32 % SHORTCUTS
    }

    /// The gate, where this is the shortcut of that endpoint, and whole.
    #[inline(always)]
    #[must_use]
    pub const fn gate_of(&self, endpoint: &EndpointKey) -> Option<GateId> {
        let check = self.check ^ endpoint.mixed() as u32 ^ self.gate.0;
        match (self.endpoint.differs(endpoint) | check, self.gate) {
            (0, gate) if gate.0 != GateId::HOST.0 => Some(gate),
            _ => None,
        }
    }
}

/// Index of a gate in `GATES` and `STATS`. Slot 0 is no gate: its counters are the host's.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GateId(pub u32);

impl GateId {
    /// Slot 0: counters of frames that belong to no gate.
    pub const HOST: Self = Self(0);
}
