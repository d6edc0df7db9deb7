//! `sk_lookup`: which listener gets a connection. The kernel asks where no established socket
//! takes a packet that is for this host, so for SYNs, and not for packets of connections.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::programs::SkLookupContext;
use gate_common::flow::{Address, EndpointKey, Port};
use gate_common::handover::{ListenerKey, MAX_SOCKETS, Steer, steer};

use crate::maps::{Kernel, LISTENERS};

/// `AF_INET` and `IPPROTO_TCP` of linux/socket.h and linux/in.h.
const INET: u32 = 2;
const TCP: u32 = 6;

/// Assigns the socket, or leaves the look-up to go on.
#[inline(always)]
pub fn choose(ctx: &SkLookupContext) -> u32 {
    let Some(local) = local(ctx) else {
        return SK_PASS;
    };
    match steer(&Kernel, &local) {
        Steer::Pass => {}
        Steer::Refuse => return SK_DROP,
        Steer::Own(endpoint) => drop(assign(ctx, endpoint)),
        Steer::To(share, otherwise) => {
            if assign(ctx, share.backend).is_none()
                && let Some(own) = otherwise
            {
                assign(ctx, own);
            }
        }
    }
    SK_PASS
}

/// Where the connection goes; none for another protocol.
#[inline(always)]
fn local(ctx: &SkLookupContext) -> Option<EndpointKey> {
    // SAFETY: the context is this run's own. Its fields are read one by one, as the verifier wants
    // it; volatile, so that the compiler joins no two of them.
    unsafe {
        let ctx = ctx.lookup;
        if (&raw const (*ctx).protocol).read_volatile() != TCP {
            return None;
        }
        // Both, whichever counts: a pointer into the context that depends on the family is one that
        // the verifier doesn't follow.
        let v4 = (&raw const (*ctx).local_ip4).read_volatile();
        let v6 = [
            (&raw const (*ctx).local_ip6[0]).read_volatile(),
            (&raw const (*ctx).local_ip6[1]).read_volatile(),
            (&raw const (*ctx).local_ip6[2]).read_volatile(),
            (&raw const (*ctx).local_ip6[3]).read_volatile(),
        ];
        let address = match (&raw const (*ctx).family).read_volatile() {
            INET => Address::from_v4(v4.to_ne_bytes()),
            _ => Address::from_words(v6),
        };
        let port = (&raw const (*ctx).local_port).read_volatile();
        Some(EndpointKey::new(address, Port::new(port as u16)))
    }
}

/// Gives the connection to the first of the backend's sockets that is there and takes it: one of
/// the other family doesn't.
#[inline(always)]
fn assign(ctx: &SkLookupContext, backend: EndpointKey) -> Option<()> {
    for index in 0..MAX_SOCKETS {
        let key = ListenerKey { backend, index };
        if LISTENERS.redirect_sk_lookup(ctx, key, 0).is_ok() {
            return Some(());
        }
    }
    None
}
