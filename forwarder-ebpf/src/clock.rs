//! The clock, read for every packet.
//!
//! `bpf_ktime_get_coarse_ns` says when the kernel's last timer tick was. It is a call out of the program, which costs
//! more than a whole stage of the fast path where the kernel guards each return. `bpf_jiffies64` needs no call: the
//! verifier replaces it by a load (since Linux 5.6). It counts the same ticks, though in a unit that only the kernel
//! knows. So the time is asked for once for each tick, and kept together with the tick that it belongs to.

use core::{arch::asm, cell::UnsafeCell};

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use forwarder_common::abi::{TICK_SHIFT, Ticks};

/// The tick that the time was last asked for in, and the time. Each interface's programs have their own.
static CLOCK: Kept = Kept(UnsafeCell::new(0));

/// A word that programs read and write as a whole.
#[repr(transparent)]
struct Kept(UnsafeCell<u64>);

// SAFETY: only read and written as one word, by volatile accesses.
unsafe impl Sync for Kept {}

/// The time. May be behind by one tick of the kernel, for a CPU may ask while another is about to advance it.
#[inline(always)]
pub(crate) fn now() -> Ticks {
    let mut now = kept_or_asked();
    // A word that may be anything, whichever way it came: the verifier then follows the rest only once.
    // SAFETY: a move in registers.
    unsafe { asm!("{now} = {now}", now = inlateout(wreg) now, options(pure, nomem, nostack)) };
    now
}

#[inline(always)]
fn kept_or_asked() -> Ticks {
    // SAFETY: a helper without arguments.
    let tick = unsafe { bpf_jiffies64() } as u32;
    let kept = CLOCK.0.get();
    // SAFETY: a word of the programs' own data. It holds both, so that each CPU sees a time with its own tick; the last to
    // write wins, and has the same to say.
    let pair = unsafe { kept.read_volatile() };
    if (pair >> 32) as u32 == tick {
        return pair as Ticks;
    }
    let now = ask();
    // SAFETY: as above.
    unsafe { kept.write_volatile(u64::from(tick) << 32 | u64::from(now)) };
    now
}

#[inline(always)]
fn ask() -> Ticks {
    // SAFETY: a helper without arguments. Coarse, for a tick of ours is shorter than what it can tell apart anyway.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as Ticks
}
