//! What happened to the gates, as it is told to people, machines and the counters.
//!
//! The kernel tells nobody that a gate was closed, and whoever closes one may die before he could. So
//! what happened is found out by comparing two looks at what is live: a [`Source`] takes them, ten a
//! second, and an [`Observer`] compares them.

mod json;
mod observer;
mod source;

use std::time::{Duration, SystemTime};

use gate_common::state::{BootTime, Mode};

use crate::clock;
use crate::endpoint::Endpoint;

pub use json::{from_json, json, name};
pub use observer::Observer;
pub use source::{Known, Outage, Snapshot, Source};

/// Between two looks. What comes and goes within it may not be seen.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// A moment, by the clock of leases and by that of people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since boot.
    pub boot: BootTime,
    /// The time of day.
    pub wall: SystemTime,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self {
            boot: clock::now(),
            wall: SystemTime::now(),
        }
    }

    /// The time of day at an earlier moment; this one's where it is later.
    #[must_use]
    pub fn wall_at(self, earlier: BootTime) -> SystemTime {
        let ago = clock::between(earlier, self.boot);
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// To which gate, by its name or endpoint; none for the host as a whole.
    pub gate: Option<String>,
    /// What.
    pub what: What,
}

impl Event {
    /// A failure of the daemon's own, at this moment.
    pub(crate) fn failed(why: String) -> Self {
        Self {
            at: SystemTime::now(),
            gate: None,
            what: What::Failed { why },
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// A gate was defined.
    Defined,
    /// A gate was forgotten.
    Forgotten,
    /// A gate was closed, or closed in another mode.
    Closed {
        /// In which mode.
        mode: Mode,
        /// For how long, to a tenth of a second.
        lease: Duration,
    },
    /// A closed gate was opened.
    Opened,
    /// A lease ran out.
    Expired,
    /// A gate is guarded from now on.
    Guarded {
        /// How long SYNs are held from the first one on that finds no listener.
        lease: Duration,
    },
    /// A gate is guarded no more.
    Unguarded,
    /// Nothing listens at a guarded endpoint.
    ListenerMissing {
        /// Where.
        endpoint: Endpoint,
    },
    /// A socket listens at a guarded endpoint again.
    ListenerBack {
        /// Where.
        endpoint: Endpoint,
        /// Since the first connection that found none.
        after: Duration,
        /// SYNs that were released.
        released: usize,
    },
    /// A gate's checks say that it is up.
    Up,
    /// A gate's checks say that it is down.
    Down {
        /// Which check, and why.
        why: String,
    },
    /// The new connections go elsewhere.
    HandedOver {
        /// Who gets them; none for the gate's own listener.
        to: Vec<Endpoint>,
    },
    /// The data path was attached to an interface.
    Attached {
        /// Its name.
        interface: String,
    },
    /// The data path sees an interface no more.
    Detached {
        /// Its name.
        interface: String,
    },
    /// Something that the configuration names is not there; it is taken as soon as it is.
    Awaited {
        /// What: an interface, say.
        what: String,
    },
    /// A configuration was applied.
    Applied {
        /// How many things it changed.
        changes: usize,
    },
    /// Something went wrong; nothing else is affected.
    Failed {
        /// What, and why.
        why: String,
    },
}
