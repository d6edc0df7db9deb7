//! The connections of health checks.

use std::net::SocketAddr;

use aya::maps::{HashMap, Map, MapData};
use gate_common::flow::{EndpointKey, FlowKey, GateId};

use super::typed;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::pins::Pins;

/// The connections of health checks, which pass a gate that a restart closed. They need no lock:
/// an entry names one connection of the process that makes it.
pub struct Checks {
    map: HashMap<MapData, FlowKey, GateId>,
}

impl Checks {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// Those of the pin.
    pub fn open(pins: &Pins) -> Result<Self> {
        let path = pins.map("CHECKS");
        let data =
            MapData::from_pin(&path).map_err(Error::aya(format!("open pin {}", path.display())))?;
        Ok(Self {
            map: typed(Map::LruHashMap(data), "CHECKS")?,
        })
    }

    /// Lets the connection between these addresses pass.
    ///
    /// # Errors
    /// Those of the map.
    pub fn enter(&mut self, from: SocketAddr, to: SocketAddr) -> Result<()> {
        self.map
            .insert(flow(from, to), GateId::HOST, 0)
            .map_err(Error::aya(format!("enter the check of {to}")))
    }

    /// Takes that back.
    pub fn leave(&mut self, from: SocketAddr, to: SocketAddr) {
        // Pushed out by others, or removed with the map: gone is gone.
        let _gone = self.map.remove(&flow(from, to));
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
