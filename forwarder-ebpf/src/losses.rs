//! Frames that XDP redirected and that were lost on the way: the program that redirected them is not told.
//!
//! Two of the kernel's tracepoints tell. They speak of every XDP program of the machine, not only of ours.

use aya_ebpf::programs::RawTracePointContext;

use crate::maps::REDIRECT_LOSSES;

/// Index in `REDIRECT_LOSSES`: the kernel refused the redirect (no such interface, frame too long, no program there).
const REFUSED: u32 = 0;
/// Index in `REDIRECT_LOSSES`: the driver of the interface out did not take the frame.
const NOT_TAKEN: u32 = 1;
/// The argument of `xdp_devmap_xmit` that says how many frames of a batch were dropped (`trace/events/xdp.h`).
const DROPS: usize = 3;

/// `xdp_redirect_err`: one frame.
#[inline(always)]
pub(crate) fn refused() {
    add(REFUSED, 1);
}

/// `xdp_devmap_xmit`: a batch, whether or not something was lost of it.
#[inline(always)]
pub(crate) fn transmitted(context: &RawTracePointContext) {
    let drops: i32 = context.arg(DROPS);
    if drops > 0 {
        add(NOT_TAKEN, u64::from(drops.unsigned_abs()));
    }
}

#[inline(always)]
fn add(index: u32, frames: u64) {
    if let Some(counter) = REDIRECT_LOSSES.get_ptr_mut(index) {
        // SAFETY: this CPU's own copy of an array value, valid while the program runs.
        unsafe { *counter += frames };
    }
}
