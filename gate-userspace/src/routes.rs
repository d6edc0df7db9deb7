//! Which way packets go: routes, addresses of this host, neighbours.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use gate_common::abi::{ReplayFrame, Way};
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::endpoint::ip;
use crate::error::{Error, Result};
use crate::interfaces;
use crate::netlink::{self, Channel};

/// How long a release waits, in all, for neighbours that have to be asked.
const PATIENCE: Duration = Duration::from_millis(200);

/// Between two looks.
const GLANCE: Duration = Duration::from_millis(1);

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this host.
    Local,
    /// Out of an interface, to the next hop.
    Out {
        /// The interface.
        ifindex: u32,
        /// The router, or the address itself.
        next_hop: IpAddr,
    },
    /// Nowhere.
    None,
}

/// Asks the kernel for the route to an address; `oif` is the interface that it must leave by, or
/// none for any.
///
/// # Errors
/// When the kernel doesn't answer.
pub fn to(address: IpAddr, oif: Option<u32>) -> Result<Route> {
    Routes::open()?.to(address, oif)
}

/// A way to ask for many routes.
pub struct Routes {
    channel: Channel,
}

impl Routes {
    /// Those of the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn open() -> Result<Self> {
        let channel = Channel::open(NETLINK_ROUTE);
        let channel = channel.map_err(Error::call("open", "a netlink socket"))?;
        Ok(Self { channel })
    }

    /// As [`to`].
    ///
    /// # Errors
    /// When the kernel doesn't answer.
    pub fn to(&mut self, address: IpAddr, oif: Option<u32>) -> Result<Route> {
        let mut message = RouteMessage::default();
        let destination = match address {
            IpAddr::V4(v4) => {
                message.header.address_family = AddressFamily::Inet;
                message.header.destination_prefix_length = 32;
                RouteAddress::Inet(v4)
            }
            IpAddr::V6(v6) => {
                message.header.address_family = AddressFamily::Inet6;
                message.header.destination_prefix_length = 128;
                RouteAddress::Inet6(v6)
            }
        };
        message
            .attributes
            .push(RouteAttribute::Destination(destination));
        message.attributes.extend(oif.map(RouteAttribute::Oif));
        let answers = match self.channel.ask(RouteNetlinkMessage::GetRoute(message)) {
            Err(error) if is_unreachable(&error) => return Ok(Route::None),
            answers => answers.map_err(Error::call("look up the route to", address.to_string()))?,
        };
        let route = answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(read(route, address)),
            _ => None,
        });
        Ok(route.unwrap_or(Route::None))
    }
}

fn is_unreachable(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENODEV)
    )
}

fn read(message: &RouteMessage, address: IpAddr) -> Route {
    match message.header.kind {
        RouteType::Local => return Route::Local,
        RouteType::Unicast => {}
        _ => return Route::None,
    }
    let (mut ifindex, mut next_hop) = (None, address);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => next_hop = (*v4).into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => next_hop = (*v6).into(),
            _ => {}
        }
    }
    match ifindex {
        Some(ifindex) => Route::Out { ifindex, next_hop },
        None => Route::None,
    }
}

/// The Ethernet addresses of next hops, as far as they matter for one release.
#[derive(Debug, Default)]
pub struct Neighbours {
    known: BTreeMap<(u32, IpAddr), Option<[u8; 6]>>,
    waited: Duration,
    own: Option<BTreeMap<u32, [u8; 6]>>,
}

impl Neighbours {
    /// Readdresses the frames that leave this host: while they were held, a backend may have come
    /// back with another Ethernet address, as containers do.
    ///
    /// # Errors
    /// When the kernel doesn't answer.
    pub fn refresh(&mut self, frames: &mut [ReplayFrame]) -> Result<()> {
        let leaving = |frame: &&mut ReplayFrame| frame.way == Way::Out as u32;
        for replay in frames.iter_mut().filter(leaving) {
            // A bridge's frames from elsewhere keep the address that their sender gave them.
            if self.own_address(replay.ifindex)? != replay.frame[6..12].first_chunk().copied() {
                continue;
            }
            let address = ip(&replay.attempt.flow.endpoint.address);
            if let Some(current) = self.of(replay.ifindex, address)? {
                replay.frame[..6].copy_from_slice(&current);
            }
        }
        Ok(())
    }

    fn own_address(&mut self, ifindex: u32) -> Result<Option<[u8; 6]>> {
        let own = match &self.own {
            Some(own) => own,
            None => {
                let all = interfaces::list()?;
                let addresses = all.iter().filter_map(|it| Some((it.index, it.address?)));
                self.own.insert(addresses.collect())
            }
        };
        Ok(own.get(&ifindex).copied())
    }

    /// The Ethernet address behind which `address` is, out of that interface.
    fn of(&mut self, ifindex: u32, address: IpAddr) -> Result<Option<[u8; 6]>> {
        if let Some(known) = self.known.get(&(ifindex, address)) {
            return Ok(*known);
        }
        let found = match to(address, Some(ifindex))? {
            Route::Out {
                ifindex: out,
                next_hop,
            } if out == ifindex => self.neighbour(ifindex, next_hop)?,
            _ => None,
        };
        self.known.insert((ifindex, address), found);
        Ok(found)
    }

    /// Looks the neighbour up, and has the kernel ask for it where it is unknown: the address that the
    /// SYN was held with may be that of a container that is gone.
    fn neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<Option<[u8; 6]>> {
        let mut found = neighbour(ifindex, address)?;
        if found.is_some() || self.waited >= PATIENCE {
            return Ok(found);
        }
        // An interface without neighbours refuses.
        if solicit(ifindex, address).is_err() {
            return Ok(None);
        }
        let start = Instant::now();
        while found.is_none() && self.waited + start.elapsed() < PATIENCE {
            std::thread::sleep(GLANCE);
            found = neighbour(ifindex, address)?;
        }
        self.waited += start.elapsed();
        Ok(found)
    }
}

/// Has the kernel ask for a neighbour, as a packet to it would.
fn solicit(ifindex: u32, address: IpAddr) -> std::io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Use;
    let destination = match address {
        IpAddr::V4(v4) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(v4)
        }
        IpAddr::V6(v6) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(v6)
        }
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    let request = RouteNetlinkMessage::NewNeighbour(message);
    netlink::ask(NETLINK_ROUTE, request, NLM_F_CREATE).map(drop)
}

fn neighbour(ifindex: u32, address: IpAddr) -> Result<Option<[u8; 6]>> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let answers = netlink::dump(NETLINK_ROUTE, request)
        .map_err(Error::call("netlink dump of", "the neighbours"))?;
    let found = answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(entry) if entry.header.ifindex == ifindex => {
            link_address(entry, address)
        }
        _ => None,
    });
    Ok(found)
}

fn link_address(entry: &NeighbourMessage, address: IpAddr) -> Option<[u8; 6]> {
    let wanted = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    let is_known = matches!(
        entry.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let is_it = entry
        .attributes
        .contains(&NeighbourAttribute::Destination(wanted));
    if !is_known || !is_it {
        return None;
    }
    entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        })
}
