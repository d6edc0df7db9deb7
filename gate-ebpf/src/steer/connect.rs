//! `cgroup/connect4` and `connect6`: to which backend a connect(2) goes, before the kernel chooses a
//! route and a port for it; `cgroup/getpeername4` and `getpeername6`: what the process asked for.

use core::mem::size_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::SockAddrContext;
use gate_common::flow::{Address, EndpointKey, GateId, Port};
use gate_common::handover::{Peer, Share, redirect};

use crate::maps::Kernel;
use crate::peers::{self, PEERS};

/// `SOCK_STREAM` of linux/net.h, `IPPROTO_TCP` of linux/in.h, `TCP_LISTEN` of linux/tcp_states.h.
const STREAM: u32 = 1;
const TCP: u32 = 6;
const LISTEN: u32 = 10;

/// `AF_INET` and `AF_INET6` of linux/socket.h.
const INET: u32 = 2;
const INET6: u32 = 10;

/// The socket's own network namespace: any negative number.
const OWN: u64 = u64::MAX;

/// The cookie of the network namespace whose sockets are meant; the cgroup has those of others too.
/// A constant to the verifier.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;

/// Sends a connection to its backend, or leaves it as it is.
#[inline(always)]
pub fn send<const V6: bool>(ctx: &SockAddrContext) {
    if !is_ours::<V6>(ctx) {
        return;
    }
    let asked = address::<V6>(ctx);
    let known = peers::of(socket(ctx));
    match redirect(&Kernel, &asked) {
        // What a socket was once connected to means nothing for its next connection.
        None if known.is_some() => forget(ctx),
        None => {}
        // It was told where to go.
        Some(_) if known.is_some_and(|peer| peer.gate == GateId::HOST) => {}
        Some((gate, share)) => {
            let actual = share.backend;
            let is_gone = share.flags & Share::LOCAL != 0 && !listens(ctx, &actual);
            if !is_gone
                && remember(
                    ctx,
                    Peer {
                        asked,
                        actual,
                        gate,
                    },
                )
            {
                set::<V6>(ctx, &actual);
            } else if known.is_some() {
                forget(ctx);
            }
        }
    }
}

/// Tells the process of a socket that was sent to a backend what it asked for.
#[inline(always)]
pub fn name<const V6: bool>(ctx: &SockAddrContext) {
    let Some(peer) = peers::of(socket(ctx)) else {
        return;
    };
    if let Some(asked) = peer.asked_instead_of(&address::<V6>(ctx)) {
        set::<V6>(ctx, &asked);
    }
}

/// Whether it is a TCP socket of the network namespace that is meant.
#[inline(always)]
fn is_ours<const V6: bool>(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is this run's own; its fields are read one by one, as the verifier wants
    // it. The helper has no preconditions (Linux 5.7). Nobody writes the constant once the program is
    // loaded; volatile, because the compiler must not take the value that it has here.
    unsafe {
        let at = ctx.sock_addr;
        let family = if V6 { INET6 } else { INET };
        (&raw const (*at).type_).read_volatile() == STREAM
            && (&raw const (*at).protocol).read_volatile() == TCP
            && (&raw const (*at).user_family).read_volatile() == family
            && bpf_get_netns_cookie(ctx.as_ptr()) == (&raw const NETNS).read_volatile()
    }
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the context is this run's own, and the socket is the one that the call is about.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// The address that the call names.
#[inline(always)]
fn address<const V6: bool>(ctx: &SockAddrContext) -> EndpointKey {
    // SAFETY: as in `is_ours`.
    unsafe {
        let at = ctx.sock_addr;
        let address = if V6 {
            let words = (&raw const (*at).user_ip6).cast::<u32>();
            Address::from_words([
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ])
        } else {
            Address::from_v4((&raw const (*at).user_ip4).read_volatile().to_ne_bytes())
        };
        let port = (&raw const (*at).user_port).read_volatile() as u16;
        EndpointKey::new(address, Port::from_octets(port.to_ne_bytes()))
    }
}

/// Makes the call name another.
#[inline(always)]
fn set<const V6: bool>(ctx: &SockAddrContext, to: &EndpointKey) {
    let words = to.address.words();
    // SAFETY: as in `is_ours`, and these fields may be written.
    unsafe {
        let at = ctx.sock_addr;
        if V6 {
            let to = (&raw mut (*at).user_ip6).cast::<u32>();
            to.write_volatile(words[0]);
            to.add(1).write_volatile(words[1]);
            to.add(2).write_volatile(words[2]);
            to.add(3).write_volatile(words[3]);
        } else {
            (&raw mut (*at).user_ip4).write_volatile(words[3]);
        }
        let port = u16::from_ne_bytes(to.port.octets());
        (&raw mut (*at).user_port).write_volatile(u32::from(port));
    }
}

/// Notes what the socket asked for; false where there is no room for that.
#[inline(always)]
fn remember(ctx: &SockAddrContext, mut peer: Peer) -> bool {
    // SAFETY: connect(2) has the socket locked, so nobody else writes the value.
    unsafe {
        let value = PEERS.get_or_insert_ptr_mut(ctx, Some(&mut peer));
        let Some(value) = value.as_mut() else {
            return false;
        };
        *value = peer;
    }
    true
}

#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: the socket is the one that the call is about.
    let _gone = unsafe { PEERS.delete(socket(ctx)) };
}

/// Whether a socket of this host listens there. It is asked for from source port 0, which no
/// connection has.
#[inline(always)]
fn listens(ctx: &SockAddrContext, at: &EndpointKey) -> bool {
    let (words, port) = (at.address.words(), u16::from_ne_bytes(at.port.octets()));
    let look_up = |tuple: *mut bpf_sock_tuple, size: usize| {
        // SAFETY: the tuple is as large as its size says (Linux 5.2).
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, size as u32, OWN, 0) }
    };
    let socket = if at.address.is_v4() {
        let mut tuple = TupleV4 {
            saddr: words[3],
            daddr: words[3],
            sport: 0,
            dport: port,
        };
        look_up((&raw mut tuple).cast(), size_of::<TupleV4>())
    } else {
        let mut tuple = TupleV6 {
            saddr: words,
            daddr: words,
            sport: 0,
            dport: port,
        };
        look_up((&raw mut tuple).cast(), size_of::<TupleV6>())
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the kernel returned the socket with a reference, which keeps it until it is released.
    unsafe {
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state == LISTEN
    }
}
