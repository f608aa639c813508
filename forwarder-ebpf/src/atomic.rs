//! Operations on a word that other CPUs change as well.

use core::arch::asm;

/// Swaps `new` in if the word is `expected`; what it was. A full barrier.
#[inline(always)]
pub(crate) fn swap_if(word: *mut u32, expected: u32, new: u32) -> u32 {
    let found;
    // SAFETY: an aligned word of an array value.
    unsafe {
        asm!("w0 = cmpxchg32_32({word} + 0, w0, {new})", word = in(reg) word, new = in(wreg) new,
            inlateout("w0") expected => found, options(nostack));
    }
    found
}

/// Sets bits; what the word was before. A full barrier.
#[inline(always)]
pub(crate) fn set(word: *mut u32, mut bits: u32) -> u32 {
    // SAFETY: an aligned word of an array value.
    unsafe {
        asm!("{bits} = atomic_fetch_or((u32 *)({word} + 0), {bits})", word = in(reg) word,
            bits = inlateout(wreg) bits, options(nostack));
    }
    bits
}

/// Clears all bits but these. A full barrier.
#[inline(always)]
pub(crate) fn keep_only(word: *mut u32, bits: u32) {
    // SAFETY: an aligned word of an array value.
    unsafe {
        asm!("{bits} = atomic_fetch_and((u32 *)({word} + 0), {bits})", word = in(reg) word,
            bits = inlateout(wreg) bits => _, options(nostack));
    }
}

/// The same pointer, computed from `word`, so that no CPU reads through it before it has read `word`.
#[inline(always)]
pub(crate) fn after<T>(mut pointer: *mut T, word: u32) -> *mut T {
    // SAFETY: adds zero.
    unsafe {
        asm!("{word} &= 0", "{pointer} += {word}", word = inlateout(reg) u64::from(word) => _,
            pointer = inlateout(reg) pointer, options(pure, readonly, nostack));
    }
    pointer
}
