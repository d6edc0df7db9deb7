//! What a plan consists of.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::BackendConfig;
use super::wanted::Target;
use crate::endpoint::Endpoint;
use crate::gates::{Gate, GateName};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The data path is attached to an interface.
    Attach(Target),
    /// A restart attached to this interface; it stays so after it.
    Keep {
        /// Its name.
        interface: String,
    },
    /// A gate is made, or gets other endpoints.
    Define {
        /// Its name.
        gate: GateName,
        /// What it shall have.
        endpoints: BTreeSet<Endpoint>,
        /// What it has; none where it is new.
        before: Option<BTreeSet<Endpoint>>,
    },
    /// A gate that was defined by hand, just so, is the configuration's from now on.
    Adopt {
        /// Its name.
        gate: GateName,
    },
    /// A gate is guarded, or with another lease.
    Guard {
        /// Its name.
        gate: GateName,
        /// The lease.
        lease: Duration,
        /// The lease that it has.
        before: Option<Duration>,
    },
    /// A gate is guarded no more.
    Unguard {
        /// Its name.
        gate: GateName,
        /// The lease that it has.
        before: Duration,
    },
    /// Other backends get the new connections.
    HandOver {
        /// The gate's name.
        gate: GateName,
        /// Who shall get them.
        to: Vec<BackendConfig>,
        /// Whether others than the gate's own listener get them now.
        again: bool,
    },
    /// The gate's own listener gets the new connections again.
    HandBack {
        /// The gate's name.
        gate: GateName,
    },
    /// A gate is forgotten.
    Forget {
        /// As it is.
        gate: Gate,
    },
    /// The data path is detached from an interface.
    Detach {
        /// Its index.
        index: u32,
        /// Its name.
        interface: String,
    },
}

/// Something that is not there yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Awaited {
    /// An interface.
    Interface(String),
    /// A route to an endpoint.
    Route(Endpoint),
    /// A socket that listens as a gate's backend.
    Listener {
        /// The gate.
        gate: GateName,
        /// Where.
        at: Endpoint,
    },
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Route(endpoint) => write!(f, "a route to {endpoint}"),
            Self::Listener { gate, at } => write!(f, "a listener at {at}, a backend of {gate}"),
        }
    }
}
