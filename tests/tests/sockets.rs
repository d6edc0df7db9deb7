//! Sockets that ask for more than plain TCP over IPv4: ECN, Multipath TCP, signatures, Fast Open, both
//! families on one listener, large frames. Held and opened, each gets it. Needs root.

mod common;

use std::io::Read as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use common::{
    Dial, Ended, LIMIT, PORT, dial, gate, gate_status, listen, shell, status, wait_until_counted,
    wait_until_held,
};
use gate_common::abi::Counter;
use gate_tests::topology::{CLIENT_V4, INTERFACE, SERVER_V4, Side, Topology, server_v4, server_v6};
use socket2::{Domain, Protocol, Socket, Type};

/// Ways to meet a gate: hook, interface, who connects to whom.
const WAYS: [(&str, &str, Side, Side, IpAddr); 4] = [
    (
        "xdp-generic",
        INTERFACE,
        Side::Client,
        Side::Server,
        IpAddr::V4(SERVER_V4),
    ),
    (
        "tc-ingress",
        INTERFACE,
        Side::Client,
        Side::Server,
        IpAddr::V4(SERVER_V4),
    ),
    (
        "tc-egress",
        INTERFACE,
        Side::Server,
        Side::Client,
        IpAddr::V4(CLIENT_V4),
    ),
    (
        "tc-ingress",
        "lo",
        Side::Server,
        Side::Server,
        IpAddr::V4(SERVER_V4),
    ),
];

/// Holds and opens for one client on every hook; `look` gets the client's and the backend's socket.
fn held_and_opened(
    prepare: impl Fn(&Topology),
    make: impl Fn() -> std::io::Result<Socket> + Send + Sync + Clone + 'static,
    look: impl Fn(&Socket, &Socket, &str),
) {
    for (hook, interface, client, server, address) in WAYS {
        let what = format!("{hook} {interface}");
        let topology = Topology::new().unwrap();
        prepare(&topology);
        gate(&topology, &["up", "--hook", hook, interface]);
        let target = SocketAddr::new(address, PORT);
        let endpoint = target.to_string();
        let listener = topology.run(server, || {
            let socket = make()?;
            socket.bind(&target.into())?;
            socket.listen(16)?;
            Ok(socket)
        });
        let listener = listener.unwrap();
        gate(&topology, &["hold", &endpoint]);
        let make = make.clone();
        let thread = topology.start(client, move || {
            let socket = make()?;
            socket.connect_timeout(&target.into(), LIMIT)?;
            Ok(socket)
        });
        wait_until_held(&topology, &endpoint, 1);
        gate(&topology, &["open", &endpoint]);
        let socket = thread.unwrap().join().unwrap().unwrap();
        let (accepted, _) = listener.accept().unwrap();
        look(&socket, &accepted, &what);
    }
}

fn tcp() -> std::io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
}

#[test]
fn a_connection_with_ecn_keeps_it() {
    const TCPI_OPT_ECN: u8 = 8;
    let prepare = |topology: &Topology| {
        for side in [Side::Client, Side::Server] {
            topology.sysctl(side, "net.ipv4.tcp_ecn", "1").unwrap();
        }
    };
    held_and_opened(prepare, tcp, |client, backend, what| {
        for socket in [client, backend] {
            // Its sixth byte is `tcpi_options`.
            let info: [u8; 8] = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO);
            assert!(info[5] & TCPI_OPT_ECN != 0, "{what}: {info:?}");
        }
    });
}

/// The first bytes of a socket option.
fn option<const N: usize>(socket: &Socket, level: i32, name: i32) -> [u8; N] {
    let mut bytes = [0; N];
    let mut len = N as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the array, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            bytes.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "getsockopt: {}", std::io::Error::last_os_error());
    bytes
}

#[test]
fn a_connection_of_multipath_tcp_stays_one() {
    /// `SOL_MPTCP` and `MPTCP_INFO` of linux/mptcp.h.
    const SOL_MPTCP: i32 = 284;
    const MPTCP_INFO: i32 = 1;
    if Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_err() {
        return lacks("CONFIG_MPTCP");
    }
    let mptcp = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    held_and_opened(
        |_| {},
        mptcp,
        |client, backend, _| {
            for socket in [client, backend] {
                // A connection that has fallen back to TCP has no such information.
                let _info: [u8; 8] = option(socket, SOL_MPTCP, MPTCP_INFO);
            }
        },
    );
}

#[test]
fn a_connection_that_is_signed_by_md5_is_made() {
    let signed = || {
        let socket = tcp()?;
        for peer in ["10.0.0.1:0", "10.0.0.5:0"] {
            sign(&socket, peer.parse().unwrap())?;
        }
        Ok(socket)
    };
    if tcp()
        .and_then(|socket| sign(&socket, "10.0.0.1:0".parse().unwrap()))
        .is_err()
    {
        return lacks("CONFIG_TCP_MD5SIG");
    }
    held_and_opened(|_| {}, signed, |_, _, _| {});
}

/// Signs what goes to a peer, and asks for its signature (`TCP_MD5SIG`, RFC 2385).
fn sign(socket: &Socket, peer: SocketAddr) -> std::io::Result<()> {
    /// `struct tcp_md5sig` of linux/tcp.h.
    #[repr(C)]
    struct Signature {
        address: libc::sockaddr_storage,
        flags: u8,
        prefix: u8,
        key_len: u16,
        ifindex: i32,
        key: [u8; 80],
    }
    // SAFETY: it is plain integers, for which zero is valid.
    let mut signature: Signature = unsafe { std::mem::zeroed() };
    let address = socket2::SockAddr::from(peer);
    // SAFETY: a sockaddr_storage has room for every address, and the two don't overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut signature.address).cast::<u8>(),
            address.len() as usize,
        );
    }
    signature.key_len = 6;
    signature.key[..6].copy_from_slice(b"secret");
    // SAFETY: the value is of the length that is passed, and outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MD5SIG,
            (&raw const signature).cast(),
            size_of::<Signature>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A server with the gate up at this hook, where a SYN may bring data.
fn up_with_fast_open(hook: &str, interface: &str) -> Topology {
    let topology = Topology::new().unwrap();
    for side in [Side::Client, Side::Server] {
        // Client and server, neither with a cookie.
        topology
            .sysctl(side, "net.ipv4.tcp_fastopen", "519")
            .unwrap();
    }
    gate(&topology, &["up", "--hook", hook, interface]);
    topology
}

#[test]
fn a_syn_with_data_is_dropped_and_its_client_retries_without() {
    for (hook, interface, client, server, address) in WAYS {
        let what = format!("{hook} {interface}");
        let topology = up_with_fast_open(hook, interface);
        let target = SocketAddr::new(address, PORT);
        let endpoint = target.to_string();
        let listener = topology.run(server, || {
            let socket = tcp()?;
            let queue: libc::c_int = 16;
            // SAFETY: the value is of the length that is passed, and outlives the call.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_FASTOPEN,
                    (&raw const queue).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            assert_eq!(set, 0);
            socket.bind(&target.into())?;
            socket.listen(16)?;
            Ok(socket)
        });
        let listener = listener.unwrap();
        gate(&topology, &["hold", &endpoint]);
        let sender = topology.start(client, move || {
            let socket = tcp()?;
            Ok((
                socket.send_to_with_flags(b"early", &target.into(), libc::MSG_FASTOPEN)?,
                socket,
            ))
        });
        wait_until_counted(&topology, &endpoint, Counter::Uncaptured, 1);
        assert_eq!(gate_status(&topology, &endpoint).waiting.held, 0, "{what}");
        wait_until_held(&topology, &endpoint, 1);
        gate(&topology, &["open", &endpoint]);
        let (accepted, _) = listener.accept().unwrap();
        let mut text = [0; 5];
        (&accepted).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"early", "{what}");
        drop(sender.unwrap().join());
    }
}

#[test]
fn a_syn_with_data_meets_a_gate_that_drops_or_rejects_as_any_other() {
    for (hook, interface, client, server, address) in WAYS {
        let topology = up_with_fast_open(hook, interface);
        let target = SocketAddr::new(address, PORT);
        let endpoint = target.to_string();
        let listener = topology.run(server, || Ok(std::net::TcpListener::bind(target)?));
        let _listener = listener.unwrap();
        let send = || {
            let socket = tcp()?;
            socket.set_nonblocking(true)?;
            // The kernel takes the data only where the SYN has it.
            let sent = socket.send_to_with_flags(b"early", &target.into(), libc::MSG_FASTOPEN);
            Ok((socket, sent.is_ok()))
        };
        for (close, counter) in [("drop", Counter::Dropped), ("reject", Counter::Rejected)] {
            gate(&topology, &[close, &endpoint]);
            let (_under_way, sent) = topology.run(client, send).unwrap();
            // A refusal may be there at once.
            assert!(sent || close == "reject", "{hook} {interface}");
            wait_until_counted(&topology, &endpoint, counter, 1);
        }
        assert_eq!(status(&topology).unparsed, 0, "{hook} {interface}");
    }
}

#[test]
fn an_address_in_its_ipv6_form_is_the_same_address() {
    let mapped: Ipv6Addr = SERVER_V4.to_ipv6_mapped();
    let in_v6 = SocketAddr::new(mapped.into(), PORT);
    for endpoint in ["10.0.0.5:8080", "[::ffff:10.0.0.5]:8080", "*:8080"] {
        for (client, interface) in [(Side::Client, INTERFACE), (Side::Server, "lo")] {
            let topology = Topology::new().unwrap();
            gate(&topology, &["up", interface]);
            // A listener for both families.
            let _listener = listen(&topology, "[::]:8080".parse().unwrap());
            gate(&topology, &["hold", endpoint]);
            let mut clients = vec![
                dial(&topology, client, Dial::to(in_v6)),
                dial(&topology, client, Dial::to(server_v4(PORT))),
            ];
            if endpoint.starts_with('*') {
                clients.push(dial(&topology, client, Dial::to(server_v6(PORT))));
            }
            wait_until_held(&topology, endpoint, clients.len());
            gate(&topology, &["open", endpoint]);
            for client in clients {
                assert_eq!(client.finish(), Ended::Connected, "{endpoint} {interface}");
            }
        }
    }
}

#[test]
fn jumbo_frames_pass_a_closed_gate_and_syns_of_such_connections_are_held() {
    for hook in ["tc", "xdp-generic"] {
        let topology = Topology::new().unwrap();
        for side in [Side::Client, Side::Server] {
            shell(&topology, side, "ip link set eth0 mtu 9000");
        }
        gate(&topology, &["up", "--hook", hook, INTERFACE]);
        let listener = listen(&topology, server_v4(PORT));
        let (_, _, socket) =
            dial(&topology, Side::Client, Dial::to(server_v4(PORT))).finish_with_socket();
        let (mut accepted, _) = listener.accept().unwrap();
        gate(&topology, &["hold", common::ENDPOINT]);
        let sender = std::thread::spawn(move || {
            let data = vec![7; 1 << 20];
            std::io::Write::write_all(&mut socket.unwrap(), &data).unwrap();
        });
        let mut received = Vec::new();
        accepted.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 1 << 20, "{hook}");
        sender.join().unwrap();
        let client = dial(&topology, Side::Client, Dial::to(server_v4(PORT)));
        wait_until_held(&topology, common::ENDPOINT, 1);
        gate(&topology, &["open", common::ENDPOINT]);
        assert_eq!(client.finish(), Ended::Connected, "{hook}");
    }
}

/// Says which feature of the kernel a test would need.
fn lacks(feature: &str) {
    println!("SKIPPED: needs {feature}");
}
