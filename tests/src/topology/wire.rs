//! The veth pair, its addresses and neighbours, by netlink.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoVeth};
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{INTERFACE, Side};

/// `lo` is the first interface of every network namespace.
const LOOPBACK: u32 = 1;
/// The kernel picks one.
const ANY_PORT: u16 = 0;
/// How long the kernel may take to notice that the other end is up.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);

/// Joins the two namespaces and makes both ends usable. Leaves the calling thread in the server's.
pub(super) fn connect(client: &File, server: &File) -> Result<()> {
    enter(client)?;
    with_netlink(async |netlink| {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(INTERFACE)
            .address(Side::Server.mac().to_vec())
            .setns_by_fd(server.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(INTERFACE, INTERFACE)
            .address(Side::Client.mac().to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        netlink
            .link()
            .add(pair)
            .execute()
            .await
            .context("add a veth pair")
    })?;
    for (side, namespace) in [(Side::Client, client), (Side::Server, server)] {
        enter(namespace)?;
        with_netlink(async |netlink| configure(netlink, side).await)
            .with_context(|| format!("configure the {side:?}'s interfaces"))?;
    }
    for any in [
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), ANY_PORT),
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), ANY_PORT),
    ] {
        let from = End::new(client, Side::Client, any)?;
        let to = End::new(server, Side::Server, any)?;
        wait_for_datagram(&from, &to)?;
        wait_for_datagram(&to, &from)?;
    }
    Ok(())
}

/// A datagram socket of one side, which doesn't wait.
struct End {
    socket: UdpSocket,
    /// Where the peer reaches it.
    address: SocketAddr,
}

impl End {
    /// Leaves the calling thread in the side's namespace.
    fn new(namespace: &File, side: Side, any: SocketAddr) -> Result<Self> {
        enter(namespace)?;
        let socket = UdpSocket::bind(any).context("open a socket")?;
        socket.set_nonblocking(true).context("set non-blocking")?;
        let ip = match any {
            SocketAddr::V4(_) => side.v4().into(),
            SocketAddr::V6(_) => side.v6().into(),
        };
        let port = socket.local_addr().context("find the port")?.port();
        Ok(Self {
            socket,
            address: SocketAddr::new(ip, port),
        })
    }
}

/// Waits until a datagram arrives. The kernel notices the carrier in its own time: until then IPv6
/// may have no route, and the interface's queue drops what is sent.
fn wait_for_datagram(from: &End, to: &End) -> Result<()> {
    let late = Instant::now() + CARRIER_LIMIT;
    loop {
        let sent = from.socket.send_to(&[0], to.address);
        let Err(error) = to.socket.recv(&mut [0]) else {
            return Ok(());
        };
        if Instant::now() > late {
            let error = sent.err().unwrap_or(error);
            return Err(error).with_context(|| format!("reach {}", to.address));
        }
        sleep(Duration::from_millis(1));
    }
}

async fn configure(netlink: &Handle, side: Side) -> Result<()> {
    let index = if_nametoindex(INTERFACE).with_context(|| format!("find {INTERFACE}"))?;
    for (name, index) in [("lo", LOOPBACK), (INTERFACE, index)] {
        let up = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .up()
            .build();
        netlink
            .link()
            .set(up)
            .execute()
            .await
            .with_context(|| format!("set {name} up"))?;
    }
    let peer = side.peer();
    for (own, other, prefix) in [
        (IpAddr::V4(side.v4()), IpAddr::V4(peer.v4()), 24),
        (IpAddr::V6(side.v6()), IpAddr::V6(peer.v6()), 64),
    ] {
        let mut address = netlink.address().add(index, own, prefix);
        // Usable at once: nobody else can have it on this cable.
        address.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        address
            .execute()
            .await
            .with_context(|| format!("add address {own}"))?;
        netlink
            .neighbours()
            .add(index, other)
            .link_layer_address(&peer.mac())
            .execute()
            .await
            .with_context(|| format!("add neighbour {other}"))?;
    }
    Ok(())
}

/// Makes every address of [`super::MANY_CLIENTS`] one of the calling thread's namespace.
pub(super) fn own_many() -> Result<()> {
    /// `RT_TABLE_LOCAL` of linux/rtnetlink.h.
    const LOCAL: u32 = 255;
    let (prefix, bits) = super::MANY_CLIENTS;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(prefix, bits)
        .output_interface(LOOPBACK)
        .table_id(LOCAL)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build();
    add_route(route)
}

/// Sends what is for [`super::MANY_CLIENTS`] to the client.
pub(super) fn reach_many() -> Result<()> {
    let (prefix, bits) = super::MANY_CLIENTS;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(prefix, bits)
        .gateway(Side::Client.v4())
        .build();
    add_route(route)
}

fn add_route(route: RouteMessage) -> Result<()> {
    with_netlink(async |netlink| {
        let added = netlink.route().add(route).execute().await;
        added.context("add a route")
    })
}

/// Gives `f` a netlink connection of the calling thread's network namespace.
fn with_netlink(f: impl AsyncFnOnce(&Handle) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start a runtime")?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
        tokio::spawn(connection);
        f(&handle).await
    })
}

fn enter(network: &File) -> Result<()> {
    setns(network, CloneFlags::CLONE_NEWNET).context("setns(network namespace)")
}
