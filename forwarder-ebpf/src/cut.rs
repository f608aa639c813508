//! Cutting a packet at TC: what it carries is kept aside, and each piece is written over the packet and handed in again.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_clone_redirect, bpf_loop, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use forwarder_common::{
    answer::Quotable as _,
    cut::{Cut, LONGEST, LONGEST_PIECE},
    packet::Packet as _,
    verdict::Outcome,
    wire::ipv4,
};

use crate::{access::tc::TcPacket, held::bounded, maps::CARRIED};

/// What a packet carries while it is cut: as much longer than it as the verifier thinks a piece may reach.
pub(crate) type Carried = [u8; (LONGEST + LONGEST_PIECE) as usize];

/// A packet that is being cut.
#[repr(C)]
struct Cutting {
    cut: Cut,
    context: *mut __sk_buff,
}

/// Cuts an IPv4 packet for a way of this MTU, if it may be cut. What is left of it then is no use any more.
///
/// Not what the kernel will cut into segments, nor what lacks its checksum: only the whole packet could get that. Says what
/// became of the packet.
#[inline(always)]
pub(crate) fn cut<const NETWORK: usize>(context: *mut __sk_buff, mtu: u32) -> Outcome {
    let mut packet = TcPacket::of(context);
    let Some(cut) = Cut::of(&packet, NETWORK, mtu) else { return Outcome::DropTooBig };
    // Any two bytes do to ask; these are of the destination.
    let unfinished = packet.is_unfinished(NETWORK + ipv4::LEN - 2);
    if packet.segment_payload() != 0 || unfinished != Some(false) {
        return Outcome::DropTooBig;
    }
    let Some(carried) = CARRIED.get_ptr_mut(0) else { return Outcome::DropTooBig };
    let (offset, length) = ((NETWORK + ipv4::LEN) as u32, bounded::<LONGEST>(cut.payload()));
    // SAFETY: the program's own argument, and this CPU's own memory, which the helper writes as many bytes of as it is told;
    // TC programs of a CPU run one after the other.
    if unsafe { bpf_skb_load_bytes(context.cast(), offset, carried.cast(), length) } != 0 {
        return Outcome::DropTooBig;
    }
    let pieces = cut.pieces();
    let mut cutting = Cutting { cut, context };
    // SAFETY: the callback has the type that the helper calls, and `cutting` outlives the call.
    let rounds = unsafe { bpf_loop(pieces + 1, hand_in_piece::<NETWORK> as *mut c_void, (&raw mut cutting).cast(), 0) };
    // The last round finds no piece. If there were fewer, one could not be handed in, and no receiver gets the packet.
    if rounds > i64::from(pieces) { Outcome::HeldToCut } else { Outcome::DropError }
}

/// Writes a piece over the packet and hands it in: it arrives on the same interface, and the link header is the same. Returns
/// 1 to stop.
unsafe extern "C" fn hand_in_piece<const NETWORK: usize>(number: u32, cutting: *mut Cutting) -> i64 {
    // SAFETY: `cut` passes its own record.
    let Cutting { cut, context } = unsafe { &mut *cutting };
    let (Some(piece), Some(carried)) = (cut.piece(number), CARRIED.get_ptr(0)) else { return 1 };
    let context = *context;
    let (offset, length) = ((NETWORK + ipv4::LEN) as u32, bounded::<LONGEST_PIECE>(piece.length));
    let start = (core::hint::black_box(piece.start) & (LONGEST - 1)) as usize;
    // SAFETY: the program's own argument and helpers on it; they read a header on the stack, and memory of this CPU, in
    // which a piece fits behind every start.
    unsafe {
        let sums = BPF_F_RECOMPUTE_CSUM.into();
        let carried = carried.cast::<u8>().add(start).cast();
        let written = bpf_skb_change_tail(context, offset + length, 0) == 0
            && bpf_skb_store_bytes(
                context.cast(),
                NETWORK as u32,
                piece.header.as_ptr().cast(),
                ipv4::LEN as u32,
                sums,
            ) == 0
            && bpf_skb_store_bytes(context.cast(), offset, carried, length, sums) == 0;
        if !written || bpf_clone_redirect(context, (*context).ifindex, BPF_F_INGRESS.into()) != 0 {
            return 1;
        }
    }
    0
}
