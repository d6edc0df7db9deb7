//! The established connections of closed gates: a drain's progress.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gate_common::flow::GateId;
use gate_common::state::Mode;

use crate::drain;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::status::GateStatus;

/// A look walks the host's table of sockets once for each port and family: 3 ms for a large one. So
/// many ports, and no more.
const PORTS_MAX: usize = 16;

/// Counts them, no more often than a drain looks: what it found is good for nine times as long as it
/// took to find it.
#[derive(Debug, Default)]
pub struct Connections {
    found: BTreeMap<GateId, usize>,
    /// For which gates, and until when.
    good: Option<(Vec<GateId>, Instant)>,
}

impl Connections {
    /// Of those of the gates that are closed; an open one takes connections, and nobody waits for
    /// them to end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self, gates: &[GateStatus]) -> Result<BTreeMap<GateId, usize>> {
        let closed = chosen(gates);
        let ids: Vec<GateId> = closed.iter().map(|gate| gate.gate.id).collect();
        if let Some((of, until)) = &self.good
            && *of == ids
            && Instant::now() < *until
        {
            return Ok(self.found.clone());
        }
        self.found = BTreeMap::new();
        let start = Instant::now();
        if !closed.is_empty() {
            let all = closed.iter().flat_map(|gate| &gate.gate.endpoints);
            let all: Vec<Endpoint> = all.copied().collect();
            let found = drain::connections(&all)?;
            for gate in &closed {
                let of = |endpoint: &Endpoint| gate.gate.endpoints.contains(endpoint);
                let connections = found.connections.iter();
                let own = connections.filter(|connection| of(&connection.endpoint));
                self.found.insert(gate.gate.id, own.count());
            }
        }
        let pause: Duration = drain::pause(start.elapsed());
        self.good = Some((ids, Instant::now() + pause));
        Ok(self.found.clone())
    }
}

/// The closed ones, as far as their ports are no more than [`PORTS_MAX`].
fn chosen(gates: &[GateStatus]) -> Vec<&GateStatus> {
    let mut ports = BTreeSet::new();
    let mut chosen = Vec::new();
    for gate in gates.iter().filter(|gate| gate.mode != Mode::Open) {
        let own = gate.gate.endpoints.iter().map(|endpoint| endpoint.port);
        let with: BTreeSet<u16> = ports.iter().copied().chain(own).collect();
        if with.len() <= PORTS_MAX {
            ports = with;
            chosen.push(gate);
        }
    }
    chosen
}
