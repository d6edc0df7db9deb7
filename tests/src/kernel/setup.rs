//! What a test puts into the tables, and what comes of a frame.

use std::net::SocketAddr;

use gate_common::abi::{Counter, Guard, Missing};
use gate_common::flow::{
    Address, AttemptKey, EndpointKey, FlowKey, GateId, Port, PortEntry, Shortcut,
};
use gate_common::shares::Room;
use gate_common::state::StateWord;
use gate_userspace::allow::Cidr;

/// What a hook did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it through.
    Pass,
    /// Dropped it.
    Drop,
    /// Sent this frame back.
    Reply(Vec<u8>),
}

/// All that one frame caused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The action.
    pub action: Action,
    /// The counters that moved, by gate; all others stood still.
    pub counted: Vec<(GateId, Counter)>,
    /// The frame that is held now for the frame's flow, if one is.
    pub held: Option<Vec<u8>>,
    /// Whether the frame's destination misses a listener now.
    pub missing: bool,
}

/// What there is in the slots of the endpoints' shortcuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shortcuts {
    /// A shortcut each; of two with one slot, the later one's.
    #[default]
    Made,
    /// Nothing.
    None,
    /// One half of which is of another gate: what a program may see while it is written.
    Torn,
}

impl Shortcuts {
    pub(super) fn of(self, endpoint: EndpointKey, gate: GateId) -> Shortcut {
        match self {
            Self::Made => Shortcut::new(endpoint, gate),
            Self::None => Shortcut::NONE,
            Self::Torn => Shortcut {
                gate: GateId(gate.0 ^ 1),
                ..Shortcut::new(endpoint, gate)
            },
        }
    }
}

/// The gates of a test: endpoint, gate, and the gate's word.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Whether the armed flag is set.
    pub armed: bool,
    /// The endpoints.
    pub endpoints: Vec<(EndpointKey, GateId)>,
    /// What the slots of their shortcuts have.
    pub shortcuts: Shortcuts,
    /// The words of the gates.
    pub words: Vec<(GateId, StateWord)>,
    /// Attempts that were released.
    pub released: Vec<AttemptKey>,
    /// Connections of the gate's own health checks.
    pub checks: Vec<FlowKey>,
    /// Sources that pass.
    pub allowed: Vec<(GateId, Cidr)>,
    /// How gates are guarded.
    pub guards: Vec<(GateId, Guard)>,
    /// Where sockets listen; [`Kernel`](super::Kernel) makes them.
    pub listening: Vec<SocketAddr>,
    /// Destinations that miss a listener.
    pub missing: Vec<(EndpointKey, Missing)>,
    /// What the shares of the held SYNs are of.
    pub room: Room,
}

impl Setup {
    pub(super) fn port(&self, port: Port) -> PortEntry {
        let of_port = || self.endpoints.iter().filter(|(key, _)| key.port == port);
        let any = Address::ANY;
        PortEntry::new(
            of_port()
                .find(|(key, _)| key.address == any)
                .map(|(_, gate)| *gate),
            of_port().any(|(key, _)| key.address != any),
        )
    }
}

/// What the frames of an interface begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header. A test run takes the protocol from where an Ethernet header would have it, so
    /// those two bytes of the packet must say the same.
    Bare,
}
