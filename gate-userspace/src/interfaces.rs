//! The interfaces of the current network namespace, as far as a hook cares.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::error::{Error, Result};
use crate::netlink;

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

/// A network interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// The kernel's index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether it is loopback.
    pub is_loopback: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// The XDP program on it: mode and program id.
    pub xdp: Option<(XdpMode, u32)>,
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

/// The interface of that name.
///
/// # Errors
/// [`Error::UnknownInterface`] where there is none.
pub fn by_name(name: &str) -> Result<Interface> {
    list()?
        .into_iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| Error::UnknownInterface {
            name: name.to_owned(),
        })
}

impl From<&LinkMessage> for Interface {
    fn from(link: &LinkMessage) -> Self {
        let mut interface = Self {
            index: link.header.index,
            name: String::new(),
            is_up: link.header.flags.contains(LinkFlags::Up),
            is_loopback: link.header.flags.contains(LinkFlags::Loopback),
            is_veth: false,
            xdp: None,
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::LinkInfo(infos) => {
                    interface.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                LinkAttribute::Xdp(xdp) => interface.xdp = attached(xdp),
                _ => {}
            }
        }
        interface
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
