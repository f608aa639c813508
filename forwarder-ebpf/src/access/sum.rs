//! The ones' complement sum over a part of a packet, of any length and linear or not.

use core::{ffi::c_void, hint::black_box, ptr};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_csum_diff, bpf_loop, bpf_skb_load_bytes},
};
use forwarder_common::checksum::Delta;

use crate::maps::{PIECE, PIECE_BYTES};

/// An IP packet is not longer.
const MOST_PIECES: u32 = 0x1_0000 / PIECE_BYTES;

/// A sum that is being worked out.
struct Summing {
    context: *mut __sk_buff,
    offset: u32,
    left: u32,
    sum: u32,
    failed: bool,
}

/// The sum of `length` bytes at `offset`; `None` where they do not all exist.
#[inline(always)]
pub(super) fn of_range(context: *mut __sk_buff, offset: u32, length: u32) -> Option<Delta> {
    let mut summing = Summing { context, offset, left: length, sum: 0, failed: false };
    // SAFETY: the callback has the type that the helper calls, and `summing` outlives the call.
    unsafe { bpf_loop(MOST_PIECES, next_piece as *mut c_void, (&raw mut summing).cast(), 0) };
    if summing.failed || summing.left != 0 {
        return None;
    }
    Some(Delta((summing.sum & 0xffff) as u16).and(Delta((summing.sum >> 16) as u16)))
}

/// What `bpf_loop` calls: sums one more piece. Returns 1 to stop.
unsafe extern "C" fn next_piece(_: u32, summing: *mut Summing) -> i64 {
    // SAFETY: `of_range` passes its own exclusive reference.
    let summing = unsafe { &mut *summing };
    if summing.left == 0 {
        return 1;
    }
    let length = if summing.left < PIECE_BYTES { summing.left } else { PIECE_BYTES };
    let Some(sum) = with_piece(summing, length) else {
        summing.failed = true;
        return 1;
    };
    summing.sum = sum;
    summing.offset += length;
    summing.left -= length;
    0
}

/// The sum with `length` more bytes: at least one, at most [`PIECE_BYTES`].
#[inline(always)]
fn with_piece(summing: &Summing, length: u32) -> Option<u32> {
    let piece = PIECE.get_ptr_mut(0)?;
    // What the compiler knows of it the verifier does not.
    let length = ((black_box(length) - 1) & (PIECE_BYTES - 1)) + 1;
    let partial = ((length / 4) & (PIECE_BYTES / 4 - 1)) as usize;
    // SAFETY: this CPU's own copy of an array value, valid while the program runs; TC programs of a CPU run one after
    // the other. The helpers stay inside of it and check the packet's end themselves; the last word is whole, for what
    // the packet does not fill of it is zero.
    unsafe {
        *(*piece).get_mut(partial)? = 0;
        if bpf_skb_load_bytes(summing.context.cast(), summing.offset, piece.cast(), length) != 0 {
            return None;
        }
        let sum = bpf_csum_diff(ptr::null_mut(), 0, piece.cast(), (length + 3) & !3, summing.sum);
        u32::try_from(sum).ok()
    }
}
