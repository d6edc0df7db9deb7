//! The XDP hook.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::programs::XdpContext;
use core::ffi::c_void;
use gate_common::abi::{CAPTURE_LEN, Direction, HeldSyn, TAG_LEN};
use gate_common::flow::GateId;
use gate_common::parse::{Family, Packet, Syn};
use gate_common::reset::{self, Sum};
use network_types::eth::EthHdr;

use crate::frame::{Direct, Sought};
use crate::hook::{self, Hook};
use crate::maps::{is_armed, reset_room};

/// A frame at the XDP hook.
struct Xdp<'a> {
    ctx: &'a XdpContext,
}

/// Judges one frame.
#[inline(always)]
pub fn judge(ctx: &XdpContext) -> u32 {
    if !is_armed() {
        return XDP_PASS;
    }
    let hook = &Xdp { ctx };
    let packet = hook.direct();
    hook::judge(hook, &packet, || packet.load::<2>(EthHdr::LEN - 2))
}

impl Xdp<'_> {
    #[inline(always)]
    fn direct(&self) -> Direct {
        let ctx = self.ctx.ctx;
        // SAFETY: the context is this run's own; volatile, so that the compiler reads it again.
        let (start, end) = unsafe {
            (
                (&raw const (*ctx).data).read_volatile(),
                (&raw const (*ctx).data_end).read_volatile(),
            )
        };
        Direct::new(start as usize, end as usize)
    }
}

impl EbpfContext for Xdp<'_> {
    fn as_ptr(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }
}

impl Hook for Xdp<'_> {
    type Code = u32;

    type Packet = Sought;

    const DIRECTION: Direction = Direction::Ingress;

    #[inline(always)]
    fn packet(&self) -> Sought {
        Sought(self.direct())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// XDP comes before the kernel has looked at the address.
    #[inline(always)]
    fn is_for_another(&self) -> bool {
        false
    }

    /// By the lowest bit of the address's first byte (IEEE 802).
    #[inline(always)]
    fn is_for_many(&self) -> bool {
        // The verifier allows nothing to be read behind a check of one byte.
        let station = self.direct().load::<6>(0);
        station.is_some_and(|[first, ..]| first & 1 != 0)
    }

    /// What comes in here was sent by another host.
    #[inline(always)]
    fn asked_for(&self, _syn: &Syn) -> Option<GateId> {
        None
    }

    #[inline(always)]
    fn pass(&self) -> u32 {
        XDP_PASS
    }

    #[inline(always)]
    fn drop(&self) -> u32 {
        XDP_DROP
    }

    /// Turns the SYN into the RST that answers it, and sends it back.
    #[inline(always)]
    fn reject(&self, syn: &Syn) -> u32 {
        // Shorter frames than Ethernet's least need padding again.
        const MIN_FRAME: usize = 60;
        const PLAIN: usize = EthHdr::LEN + reset::V4_LEN;
        const TAGGED: usize = PLAIN + TAG_LEN;
        let packet = self.direct();
        let network = syn.at.network;
        if network > CAPTURE_LEN {
            return XDP_DROP;
        }
        let Some(room) = reset_room() else {
            return XDP_DROP;
        };
        // What comes by XDP has its checksum whole, and so must what goes.
        let (written, len) = match syn.at.family {
            Family::V4 => {
                let Some(reset) = room.first_chunk_mut() else {
                    return XDP_DROP;
                };
                reset::v4(syn, Sum::Whole, reset);
                (packet.store(network, *reset), network + reset::V4_LEN)
            }
            Family::V6 => {
                reset::v6(syn, Sum::Whole, room);
                (packet.store(network, *room), network + reset::V6_LEN)
            }
        };
        let (Some(destination), Some(source)) = (packet.load::<6>(0), packet.load::<6>(6)) else {
            return XDP_DROP;
        };
        if !(written && packet.store(0, source) && packet.store(6, destination)) {
            return XDP_DROP;
        }
        let old = packet.len();
        let padded = match len {
            PLAIN => packet.store(PLAIN, [0; MIN_FRAME - PLAIN]),
            TAGGED => packet.store(TAGGED, [0; MIN_FRAME - TAGGED]),
            _ => false,
        };
        let new = if padded { MIN_FRAME } else { len };
        // SAFETY: the context is this run's own; no packet pointer is used after the call.
        let cut = unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, new as i32 - old as i32) };
        if cut == 0 { XDP_TX } else { XDP_DROP }
    }

    /// Copies word by word: `bpf_xdp_load_bytes` came with Linux 5.18. Every header behind the
    /// Ethernet header is made of whole words, and a SYN that is held carries no data.
    #[inline(always)]
    fn capture(&self, held: &mut HeldSyn, len: usize) -> bool {
        const WORD: usize = 4;
        held.mark = 0;
        held.priority = 0;
        held.tag = 0;
        let packet = self.direct();
        let Some(ethernet) = packet.load::<{ EthHdr::LEN }>(0) else {
            return false;
        };
        held.frame[..EthHdr::LEN].copy_from_slice(&ethernet);
        for word in 0..(CAPTURE_LEN - EthHdr::LEN) / WORD {
            let at = EthHdr::LEN + word * WORD;
            if at >= len {
                return true;
            }
            let Some(bytes) = packet.load::<WORD>(at) else {
                return false;
            };
            held.frame[at..at + WORD].copy_from_slice(&bytes);
        }
        len <= CAPTURE_LEN
    }
}
