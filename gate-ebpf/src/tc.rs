//! The TC hooks, ingress and egress.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::check_bounds_signed;
use aya_ebpf::helpers::{
    bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use gate_common::abi::{CAPTURE_LEN, Direction, HeldSyn};
use gate_common::checksum::is_partial;
use gate_common::flow::GateId;
use gate_common::parse::{Family, Packet, Syn};
use gate_common::reset::{self, Sum};
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;

use crate::frame::Direct;
use crate::hook::{self, Hook};
use crate::maps::{has_no_ethernet, is_armed, reset_room};
use crate::{listeners, peers};

/// A packet at a TC hook.
struct Tc<'a, const EGRESS: bool> {
    ctx: &'a TcContext,
}

/// A packet that the kernel copies from, wherever its bytes are. Where the interface has no
/// Ethernet header, it counts as one of 14 bytes that can't be read.
struct Loaded {
    skb: *mut __sk_buff,
    missing: usize,
}

/// Bytes on the stack, where the verifier lets a word be read only from its own alignment.
#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

impl Packet for Loaded {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<Aligned<N>>::uninit();
        let at = (at - self.missing) as u32;
        // SAFETY: the helper writes all `N` bytes, or none and says so.
        unsafe {
            let result =
                bpf_skb_load_bytes(self.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32);
            (result == 0).then(|| bytes.assume_init().0)
        }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context is this run's own.
        let len = unsafe { (*self.skb).len };
        len as usize + self.missing
    }
}

/// The index of loopback in every network namespace.
const LOOPBACK: u32 = 1;

/// Judges one packet.
#[inline(always)]
pub fn judge<const EGRESS: bool>(ctx: &TcContext) -> i32 {
    if !is_armed() {
        return TC_ACT_UNSPEC;
    }
    let hook = &Tc::<EGRESS> { ctx };
    if has_no_ethernet() {
        // The EtherType, in network byte order.
        let protocol = (ctx.skb.protocol() as u16).to_ne_bytes();
        return hook::judge(hook, &Direct::new(0, 0), || Some(protocol));
    }
    // The headers are mostly where they can be read directly.
    let direct = Direct::new(ctx.data(), ctx.data_end());
    hook::judge(hook, &direct, || hook.packet().load::<2>(EthHdr::LEN - 2))
}

impl<const EGRESS: bool> EbpfContext for Tc<'_, EGRESS> {
    fn as_ptr(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }
}

impl<const EGRESS: bool> Tc<'_, EGRESS> {
    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    #[inline(always)]
    fn missing(&self) -> usize {
        if has_no_ethernet() { EthHdr::LEN } else { 0 }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, at: usize, bytes: &[u8; N]) -> bool {
        let at = (at - self.missing()) as u32;
        // SAFETY: `N` bytes are readable, and the helper checks the packet's bounds.
        unsafe { bpf_skb_store_bytes(self.skb(), at, bytes.as_ptr().cast(), N as u32, 0) == 0 }
    }

    /// Writes the RST over the SYN; its length, or none.
    #[inline(always)]
    fn answer(&self, syn: &Syn) -> Option<usize> {
        let packet = self.packet();
        let network = syn.at.network;
        let field = packet.load::<2>(syn.at.transport + CHECKSUM)?;
        let (sum, header) = match (is_partial(syn, field), syn.at.family) {
            (false, _) => (Sum::Whole, None),
            (true, Family::V4) => (Sum::Partial, Some(Ipv4Hdr::LEN)),
            (true, Family::V6) => (Sum::Partial, Some(Ipv6Hdr::LEN)),
        };
        // The device completes a partial checksum where the SYN's TCP header began.
        if header.is_some_and(|header| syn.at.transport != network + header) {
            return None;
        }
        let room = reset_room()?;
        let (stored, len) = match syn.at.family {
            Family::V4 => {
                let reset = room.first_chunk_mut()?;
                reset::v4(syn, sum, reset);
                (self.store(network, reset), network + reset::V4_LEN)
            }
            Family::V6 => {
                reset::v6(syn, sum, room);
                (self.store(network, room), network + reset::V6_LEN)
            }
        };
        if !stored {
            return None;
        }
        if !has_no_ethernet() {
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = packet.load::<12>(0)?;
            let addresses = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5];
            if !self.store(0, &addresses) {
                return None;
            }
        }
        let len = len - self.missing();
        // SAFETY: the context is this run's own; no packet pointer is used after the call.
        let cut = unsafe { bpf_skb_change_tail(self.skb(), len as u32, 0) };
        (cut == 0).then_some(len)
    }
}

/// Offset of the checksum in the TCP header (RFC 9293 section 3.1).
const CHECKSUM: usize = 16;

impl<const EGRESS: bool> Hook for Tc<'_, EGRESS> {
    type Code = i32;
    type Packet = Loaded;

    const DIRECTION: Direction = match EGRESS {
        true => Direction::Egress,
        false => Direction::Ingress,
    };

    #[inline(always)]
    fn packet(&self) -> Loaded {
        Loaded {
            skb: self.skb(),
            missing: self.missing(),
        }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is this run's own.
        unsafe { (*self.skb()).ifindex }
    }

    #[inline(always)]
    fn is_for_another(&self) -> bool {
        /// `PACKET_OTHERHOST` of linux/if_packet.h.
        const OTHER_HOST: u32 = 3;
        // SAFETY: the context is this run's own.
        unsafe { (*self.skb()).pkt_type == OTHER_HOST }
    }

    /// Where there is no Ethernet header there is no such address.
    #[inline(always)]
    fn is_for_many(&self) -> bool {
        /// `PACKET_BROADCAST` and `PACKET_MULTICAST` of linux/if_packet.h.
        const MANY: core::ops::RangeInclusive<u32> = 1..=2;
        // SAFETY: the context is this run's own.
        !has_no_ethernet() && MANY.contains(&unsafe { (*self.skb()).pkt_type })
    }

    /// By the socket that sends it. What comes in by loopback was sent by one of this host, but has
    /// lost it.
    #[inline(always)]
    fn asked_for(&self, syn: &Syn) -> Option<GateId> {
        let gate = |sender| peers::of(sender)?.gate_of(&syn.attempt.flow.endpoint);
        match EGRESS {
            // SAFETY: the context is this run's own.
            true => gate(unsafe { (*self.skb()).__bindgen_anon_2.sk }),
            false if self.ifindex() == LOOPBACK => listeners::sender(self, syn, gate),
            false => None,
        }
    }

    /// Other programs and filters go on.
    #[inline(always)]
    fn pass(&self) -> i32 {
        TC_ACT_UNSPEC
    }

    /// On egress by a redirect to no interface, of which the sender isn't told: told of a drop,
    /// its TCP would begin the connection with a reduced congestion window.
    #[inline(always)]
    fn drop(&self) -> i32 {
        match EGRESS {
            // SAFETY: the helper has no preconditions.
            true => unsafe { bpf_redirect(0, 0) as i32 },
            false => TC_ACT_SHOT,
        }
    }

    /// Turns the SYN into the RST that answers it, and sends it back the way it came.
    #[inline(always)]
    fn reject(&self, syn: &Syn) -> i32 {
        if self.answer(syn).is_none() {
            return self.drop();
        }
        let flags = if EGRESS { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_redirect(self.ifindex(), flags) as i32 }
    }

    #[inline(always)]
    fn capture(&self, held: &mut HeldSyn, len: usize) -> bool {
        // SAFETY: the context is this run's own.
        let skb = unsafe { &*self.skb() };
        held.mark = skb.mark;
        held.priority = skb.priority;
        held.tag = match skb.vlan_present {
            0 => 0,
            _ => u32::from(u16::from_be(skb.vlan_proto as u16)) << 16 | skb.vlan_tci & 0xffff,
        };
        let missing = self.missing();
        if has_no_ethernet() {
            let protocol = (skb.protocol as u16).to_ne_bytes();
            held.frame[..EthHdr::LEN - 2].fill(0);
            held.frame[EthHdr::LEN - 2..EthHdr::LEN].copy_from_slice(&protocol);
        }
        let len = (len - missing) as i64;
        check_bounds_signed(len, TcpHdr::LEN as i64, (CAPTURE_LEN - missing) as i64)
            // SAFETY: `len` bytes fit behind what is missing, as just checked for the verifier's
            // sake once more.
            && unsafe {
                let to = held.frame.as_mut_ptr().add(missing);
                bpf_skb_load_bytes(self.skb().cast(), 0, to.cast(), len as u32) == 0
            }
    }
}
