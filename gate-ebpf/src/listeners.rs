//! What the kernel's sockets say of a SYN.

use core::mem::size_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
};
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use gate_common::flow::{Address, FlowKey, Port};
use gate_common::parse::{Family, Syn};

use crate::hook::Hook;
use crate::maps::scratch;

/// `TCP_LISTEN` of linux/tcp_states.h.
const LISTEN: u32 = 10;

/// The packet's own network namespace: any negative number.
const OWN: u64 = u64::MAX;

/// One end of a connection.
type End = (Address, Port);

/// Whether a socket listens for a flow's SYN. It is looked up as the kernel would, but from source port
/// 0: that no connection has, so none hides the listener. Doubt says yes.
#[inline(always)]
pub fn is_there<C: EbpfContext>(ctx: &C, flow: &FlowKey, family: Family) -> bool {
    let from = (flow.source, Port::new(0));
    let to = (flow.endpoint.address, flow.endpoint.port);
    match find(ctx, family, from, to) {
        Some(socket) => !socket.is_null() && listens(socket),
        None => true,
    }
}

/// Asks the socket of this host that sent a SYN, where there is one.
#[inline(always)]
pub fn sender<H: Hook, T>(
    hook: &H,
    syn: &Syn,
    ask: impl FnOnce(*mut bpf_sock) -> Option<T>,
) -> Option<T> {
    let flow = &syn.attempt.flow;
    let from = (flow.endpoint.address, flow.endpoint.port);
    let to = (flow.source, flow.source_port);
    let socket = find(hook, syn.at.family, from, to)?;
    if socket.is_null() {
        return None;
    }
    let answer = ask(socket);
    // SAFETY: the kernel returned the socket with a reference.
    unsafe { bpf_sk_release(socket.cast()) };
    answer
}

/// The socket that a packet meets, or null, with a reference; none where it can't be asked for.
#[inline(always)]
fn find<C: EbpfContext>(ctx: &C, family: Family, from: End, to: End) -> Option<*mut bpf_sock> {
    let room = scratch()?;
    let port = |(_, port): End| u16::from_ne_bytes(port.octets());
    // SAFETY: the pointer is to this CPU's own scratch value, which only this run uses; a frame
    // there is larger than a tuple and aligned to eight bytes.
    let tuple = unsafe { &raw mut (*room).frame }.cast::<bpf_sock_tuple>();
    // SAFETY: as above.
    let size = unsafe {
        match family {
            Family::V4 => {
                tuple.cast::<TupleV4>().write(TupleV4 {
                    saddr: from.0.words()[3],
                    daddr: to.0.words()[3],
                    sport: port(from),
                    dport: port(to),
                });
                size_of::<TupleV4>()
            }
            Family::V6 => {
                tuple.cast::<TupleV6>().write(TupleV6 {
                    saddr: from.0.words(),
                    daddr: to.0.words(),
                    sport: port(from),
                    dport: port(to),
                });
                size_of::<TupleV6>()
            }
        }
    };
    // SAFETY: the tuple is written as far as its size says (Linux 5.2).
    Some(unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, size as u32, OWN, 0) })
}

/// Reads the state and gives the reference back.
#[inline(always)]
fn listens(socket: *mut bpf_sock) -> bool {
    // SAFETY: the kernel returned the socket with a reference, which keeps it until it is released.
    unsafe {
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state == LISTEN
    }
}
