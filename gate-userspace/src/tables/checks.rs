//! The connections of health checks.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd};

use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, SkStorage};
use gate_common::abi::{CHECKING, checking_slot};
use gate_common::flow::{EndpointKey, FlowKey, GateId};
use gate_common::handover::Peer;

use super::{ARMED, open_map, typed};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::pins::Pins;
use crate::sys::mapping::Counts;

/// The connections of health checks, which pass a closed gate that lets them. They need no lock:
/// an entry names one connection of the process that makes it.
pub struct Checks {
    armed: Array<MapData, u64>,
    map: HashMap<MapData, FlowKey, GateId>,
    counts: Counts,
    /// What was entered and counted here.
    entered: HashSet<FlowKey>,
    peers: SkStorage<MapData, Peer>,
}

impl Checks {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// Those of the pins.
    pub fn open(pins: &Pins) -> Result<Self> {
        let data = |name: &str| open_map(pins, name);
        let counts: Array<_, u64> = typed(Map::Array(data("CHECKING")?), pins.map("CHECKING"))?;
        Ok(Self {
            armed: typed(Map::Array(data(ARMED)?), pins.map(ARMED))?,
            map: typed(Map::LruHashMap(data("CHECKS")?), pins.map("CHECKS"))?,
            counts: Counts::new(counts.map().fd().as_fd(), CHECKING as usize)
                .map_err(Error::call("mmap", "CHECKING"))?,
            entered: HashSet::new(),
            peers: typed(Map::SkStorage(data("PEERS")?), pins.map("PEERS"))?,
        })
    }

    /// Whether any gate is closed or guarded, so that a connection may have to be entered.
    #[must_use]
    pub fn are_needed(&self) -> bool {
        // In doubt it is entered, which only costs time.
        self.armed.get(&0, 0).map_or(true, |armed| armed != 0)
    }

    /// Lets the connection between these addresses pass.
    ///
    /// # Errors
    /// Those of the map.
    pub fn enter(&mut self, from: SocketAddr, to: SocketAddr) -> Result<()> {
        let flow = flow(from, to);
        // First: the data path looks at the entry only where one is counted.
        if self.entered.insert(flow) {
            self.count(&flow, 1);
        }
        self.map
            .insert(flow, GateId::HOST, 0)
            .map_err(Error::aya(format!("enter the check of {to}")))
            .inspect_err(|_| self.leave(from, to))
    }

    /// Lets a socket connect to where it is told, also where that is handed over: it is to find out
    /// about the one that it names.
    ///
    /// # Errors
    /// Those of the map.
    pub fn exempt(&mut self, socket: &impl AsRawFd) -> Result<()> {
        self.peers
            .insert(socket, Peer::EXEMPT, 0)
            .map_err(Error::aya("mark a check's socket in PEERS"))
    }

    /// Takes that back. A process that dies before leaves a count that is too high: other SYNs from
    /// that slot's ports cost a look more.
    pub fn leave(&mut self, from: SocketAddr, to: SocketAddr) {
        let flow = flow(from, to);
        // Pushed out by others, or removed with the map: gone is gone.
        let _gone = self.map.remove(&flow);
        if self.entered.remove(&flow) {
            self.count(&flow, -1);
        }
    }

    fn count(&self, flow: &FlowKey, number: i64) {
        let slot = checking_slot(flow.source_port);
        self.counts.add(slot as usize, number);
    }
}

fn flow(from: SocketAddr, to: SocketAddr) -> FlowKey {
    let endpoint = |address: SocketAddr| {
        EndpointKey::from(Endpoint {
            address: Some(address.ip().to_canonical()),
            port: address.port(),
        })
    };
    let source = endpoint(from);
    FlowKey {
        endpoint: endpoint(to),
        source: source.address,
        source_port: source.port,
        zero: 0,
    }
}
