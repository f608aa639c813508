//! Unaligned loads and stores of packet bytes, in the largest words there are.
//!
//! Packet fields are rarely aligned. The kernel loads and stores them whole wherever the CPU can; LLVM, asked for an
//! unaligned access, makes single bytes of it (and, told not to, also misaligns the program's stack, which the
//! verifier refuses). Hence the assembly: one instruction per word.

use core::arch::asm;

/// Loads a word of the packet.
macro_rules! load_word {
    ($pointer:ident, $type:literal, $offset:expr, $word:ty) => {{
        let word: u64;
        asm!(
            concat!("{word} = *(", $type, " *)({pointer} + {offset})"),
            pointer = in(reg) $pointer,
            offset = const $offset,
            word = lateout(reg) word,
            options(pure, readonly, nostack),
        );
        word as $word
    }};
}

/// Stores a word into the packet.
macro_rules! store_word {
    ($pointer:ident, $type:literal, $offset:expr, $word:expr) => {
        asm!(
            concat!("*(", $type, " *)({pointer} + {offset}) = {word}"),
            pointer = in(reg) $pointer,
            offset = const $offset,
            word = in(reg) u64::from($word),
            options(nostack),
        )
    };
}

/// Runs `$step` for the largest words that make up `N` bytes: (type, offset, word).
macro_rules! for_each_word {
    ($n:ident, $step:ident) => {
        if $n >= 8 {
            $step!("u64", 0, u64, 8);
        }
        if $n >= 16 {
            $step!("u64", 8, u64, 8);
        }
        if $n >= 24 {
            $step!("u64", 16, u64, 8);
        }
        if $n >= 32 {
            $step!("u64", 24, u64, 8);
        }
        if $n >= 40 {
            $step!("u64", 32, u64, 8);
        }
        if $n & 4 != 0 {
            $step!("u32", $n & !7, u32, 4);
        }
        if $n & 2 != 0 {
            $step!("u16", $n & !3, u16, 2);
        }
        if $n & 1 != 0 {
            $step!("u8", $n & !1, u8, 1);
        }
    };
}

/// The most bytes that are moved at once.
const MOST: usize = 47;
/// The most words that [`load_each`] loads and [`store_each`] stores.
const MOST_WORDS: usize = 10;
/// The words of an IPv6 header.
const IPV6_HEADER: usize = 10;

/// Loads `N` bytes.
///
/// # Safety
/// All of them exist.
#[inline(always)]
pub(super) unsafe fn load<const N: usize>(pointer: *const u8) -> [u8; N] {
    const { assert!(N <= MOST, "more words than for_each_word lists") };
    let mut bytes = [0; N];
    macro_rules! step {
        ($type:literal, $offset:expr, $word:ty, $size:literal) => {
            // SAFETY: the caller's promise covers every word of the `N` bytes.
            let word = unsafe { load_word!(pointer, $type, $offset, $word) };
            if let Some(place) = bytes.get_mut($offset..).and_then(<[u8]>::first_chunk_mut::<$size>) {
                *place = word.to_ne_bytes();
            }
        };
    }
    for_each_word!(N, step);
    bytes
}

/// Loads `N` words of four bytes: what is used of them is then taken from registers. Each is loaded by itself, but for those
/// of an IPv6 header, two at once: the compiler keeps and compares addresses so as well.
///
/// # Safety
/// All of their bytes exist.
#[inline(always)]
pub(super) unsafe fn load_each<const N: usize>(pointer: *const u8) -> [u32; N] {
    const { assert!(N <= MOST_WORDS, "more words than are listed") };
    let mut words = [0; N];
    macro_rules! pair {
        ($($index:literal)*) => {$(
            if let Some([first, second]) = words.get_mut($index..).and_then(<[u32]>::first_chunk_mut) {
                // SAFETY: the caller's promise covers every one of the `N` words.
                let both = unsafe { load_word!(pointer, "u64", 4 * $index, u64) };
                let [a, b, c, d, e, f, g, h] = both.to_ne_bytes();
                *first = u32::from_ne_bytes([a, b, c, d]);
                *second = u32::from_ne_bytes([e, f, g, h]);
            }
        )*};
    }
    macro_rules! one {
        ($($index:literal)*) => {$(
            if let Some(place) = words.get_mut($index) {
                let word: u32;
                // SAFETY: the caller's promise covers every one of the `N` words. Into the lower half of a register,
                // which makes the upper one zero, as the compiler then knows.
                unsafe {
                    asm!(
                        "{word} = *(u32 *)({pointer} + {offset})",
                        pointer = in(reg) pointer,
                        offset = const 4 * $index,
                        word = lateout(wreg) word,
                        options(pure, readonly, nostack),
                    );
                }
                *place = word;
            }
        )*};
    }
    if N == IPV6_HEADER {
        pair!(0 2 4 6 8);
    } else {
        one!(0 1 2 3 4 5 6 7 8);
    }
    words
}

/// Stores `N` bytes.
///
/// # Safety
/// All of them exist and may be written.
#[inline(always)]
pub(super) unsafe fn store<const N: usize>(pointer: *mut u8, bytes: [u8; N]) {
    const { assert!(N <= MOST, "more words than for_each_word lists") };
    macro_rules! step {
        ($type:literal, $offset:expr, $word:ty, $size:literal) => {
            if let Some(&place) = bytes.get($offset..).and_then(<[u8]>::first_chunk::<$size>) {
                // SAFETY: the caller's promise covers every word of the `N` bytes.
                unsafe { store_word!(pointer, $type, $offset, <$word>::from_ne_bytes(place)) };
            }
        };
    }
    for_each_word!(N, step);
}

/// Stores `N` words of four bytes.
///
/// # Safety
/// All of their bytes exist and may be written.
#[inline(always)]
pub(super) unsafe fn store_each<const N: usize>(pointer: *mut u8, words: [u32; N]) {
    const { assert!(N <= MOST_WORDS, "more words than are listed") };
    macro_rules! step {
        ($($index:literal)*) => {$(
            if let Some(&word) = words.get($index) {
                // SAFETY: the caller's promise covers every one of the `N` words.
                unsafe { store_word!(pointer, "u32", 4 * $index, word) };
            }
        )*};
    }
    step!(0 1 2 3 4 5 6 7 8 9);
}
