//! The interfaces of the current network namespace, as far as a hook cares.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::error::{Error, Result};
use crate::netlink;
use crate::sys;

/// The index of the loopback interface in every network namespace (`LOOPBACK_IFINDEX` of
/// linux/net.h).
pub const LOOPBACK: u32 = 1;

/// How an XDP program sits on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, for each packet's skb.
    Generic,
    /// In the device.
    Offloaded,
}

/// What a frame begins with at the TC hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, WireGuard, GRE, PPP.
    Network,
    /// Something that gate can't parse.
    Unknown,
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The namespace's own.
    Loopback,
    /// One with a driver, real or para-virtual.
    Nic,
    /// One end of a veth pair.
    Veth,
    /// A bridge.
    Bridge,
    /// A VLAN of another interface.
    Vlan,
    /// Any other that is made of software.
    Virtual,
}

/// A network interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// The kernel's index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, where it has one.
    pub address: Option<[u8; 6]>,
    /// Whether it is up.
    pub is_up: bool,
    /// What it is.
    pub kind: Kind,
    /// What its frames begin with.
    pub layer: Layer,
    /// Its largest packet, in bytes.
    pub mtu: u32,
    /// The bridge, bond or the like that it is a member of.
    pub controller: Option<u32>,
    /// The interface that it is made upon.
    pub lower: Option<u32>,
    /// The XDP program on it: mode and program id.
    pub xdp: Option<(XdpMode, u32)>,
}

impl Interface {
    /// `eth0`, of that kind, for tests.
    #[cfg(test)]
    pub(crate) fn example(kind: Kind) -> Self {
        Self {
            index: 2,
            name: "eth0".to_owned(),
            address: None,
            is_up: true,
            kind,
            layer: Layer::Ethernet,
            mtu: 1500,
            controller: None,
            lower: None,
            xdp: None,
        }
    }

    /// Whether the device takes VLAN tags off the frames that come in, so that XDP doesn't see
    /// them.
    #[must_use]
    pub fn strips_tags(&self) -> bool {
        /// `ETH_FLAG_RXVLAN` of linux/ethtool.h.
        const RXVLAN: u32 = 1 << 8;
        sys::ethtool_flags(&self.name).is_ok_and(|flags| flags & RXVLAN != 0)
    }
}

/// All interfaces of this network namespace.
///
/// # Errors
/// When the kernel doesn't answer.
pub fn list() -> Result<Vec<Interface>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = netlink::dump(NETLINK_ROUTE, request)
        .map_err(Error::call("netlink dump of", "the interfaces"))?;
    Ok(links
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(Interface::from(&link)),
            _ => None,
        })
        .collect())
}

/// The interface of that name among `all`.
///
/// # Errors
/// [`Error::UnknownInterface`] where there is none.
pub fn named<'a>(all: &'a [Interface], name: &str) -> Result<&'a Interface> {
    all.iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| Error::UnknownInterface {
            name: name.to_owned(),
        })
}

impl From<&LinkMessage> for Interface {
    fn from(link: &LinkMessage) -> Self {
        let is_loopback = link.header.flags.contains(LinkFlags::Loopback);
        let mut interface = Self {
            index: link.header.index,
            name: String::new(),
            address: None,
            is_up: link.header.flags.contains(LinkFlags::Up),
            kind: match is_loopback {
                true => Kind::Loopback,
                false => Kind::Nic,
            },
            layer: layer(link.header.link_layer_type),
            mtu: 0,
            controller: None,
            lower: None,
            xdp: None,
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Address(bytes) => {
                    interface.address = bytes.as_slice().try_into().ok();
                }
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Controller(index) => interface.controller = Some(*index),
                LinkAttribute::Link(index) => interface.lower = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    interface.kind = infos.iter().find_map(kind).unwrap_or(interface.kind);
                }
                LinkAttribute::Xdp(xdp) => interface.xdp = attached(xdp),
                _ => {}
            }
        }
        interface
    }
}

fn kind(info: &LinkInfo) -> Option<Kind> {
    let LinkInfo::Kind(kind) = info else {
        return None;
    };
    Some(match kind {
        InfoKind::Veth => Kind::Veth,
        InfoKind::Bridge => Kind::Bridge,
        InfoKind::Vlan => Kind::Vlan,
        _ => Kind::Virtual,
    })
}

/// As the kernel's own `dev_is_mac_header_xmit` divides them.
fn layer(kind: LinkLayerType) -> Layer {
    match kind {
        LinkLayerType::Ether | LinkLayerType::Loopback => Layer::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp => Layer::Network,
        _ => Layer::Unknown,
    }
}

fn attached(xdp: &[LinkXdp]) -> Option<(XdpMode, u32)> {
    let mode = xdp.iter().find_map(|item| match item {
        LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Multiple) => Some(XdpMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
        LinkXdp::Attached(XdpAttached::Hardware) => Some(XdpMode::Offloaded),
        _ => None,
    })?;
    let id = xdp.iter().find_map(|item| match item {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id)
            if *id != 0 =>
        {
            Some(*id)
        }
        _ => None,
    })?;
    Some((mode, id))
}
