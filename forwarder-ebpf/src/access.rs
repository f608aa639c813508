//! The only unsafe packet access. Every read and write checks the packet's end right there, from the context
//! itself: the verifier follows that, and a helper that moved the packet in between does no harm. Only of the headers that
//! nearly every packet has, XDP finds once that they exist ([`Bounds::HEAD`]); it calls no such helper.

use core::arch::asm;

/// What of [`forwarder_common::packet::Packet`] goes straight to the packet's bytes: the same on every hook.
macro_rules! direct_access {
    () => {
        #[inline(always)]
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            $crate::access::read(self, offset)
        }

        #[inline(always)]
        fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
            $crate::access::words(self, offset)
        }

        #[inline(always)]
        fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
            $crate::access::write(self, offset, bytes)
        }

        #[inline(always)]
        fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()> {
            $crate::access::set_words(self, offset, words)
        }

        #[inline(always)]
        fn change<const N: usize>(&mut self, offset: usize, with: impl FnOnce([u8; N]) -> [u8; N]) -> Option<()> {
            $crate::access::change(self, offset, with)
        }

        #[inline(always)]
        fn change_words<const N: usize>(
            &mut self,
            offset: usize,
            with: impl FnOnce([u32; N]) -> [u32; N],
        ) -> Option<()> {
            $crate::access::change_words(self, offset, with)
        }
    };
}

mod sum;
pub(crate) mod tc;
pub(crate) mod words;
pub(crate) mod xdp;

/// Larger offsets are out of reach: the verifier wants a bound, and no header this far in is forwarded.
const LARGEST_OFFSET: usize = 0x3fff;

/// A hook's context: where the packet begins and ends now.
pub(crate) trait Bounds {
    /// So many of the first bytes were found to exist once, and need not be looked for again.
    const HEAD: usize = 0;

    /// Address of the first byte, and of the first byte after the part that can be read directly.
    fn bounds(&self) -> (usize, usize);

    /// Address of the first byte, while all of [`Self::HEAD`] exist.
    fn head(&self) -> usize {
        0
    }
}

/// A pointer to `N` units of `UNIT` bytes of the packet that exist.
#[inline(always)]
fn at<const UNIT: usize, const N: usize, C: Bounds>(context: &C, offset: usize) -> Option<*mut u8> {
    if offset > LARGEST_OFFSET {
        return None;
    }
    // Decided by the compiler, for such an offset is a constant.
    if offset + UNIT * N <= C::HEAD {
        return Some((context.head() + offset) as *mut u8);
    }
    let (start, end) = context.bounds();
    let first = start + offset;
    // The verifier learns from "first + N > end". The compiler would turn N = 1 into "first >= end", which teaches it
    // nothing, so it must not see the addition.
    let mut after = first;
    // SAFETY: an addition in registers.
    unsafe {
        asm!("{after} += {length}", after = inlateout(reg) after, length = const UNIT * N, options(pure, nomem, nostack));
    };
    if after > end {
        return None;
    }
    Some(first as *mut u8)
}

#[inline(always)]
fn read<const N: usize>(context: &impl Bounds, offset: usize) -> Option<[u8; N]> {
    let pointer = at::<1, N, _>(context, offset)?;
    // SAFETY: `at` has compared the last of the `N` bytes with the packet's end, just now or as one of the head's; nothing else
    // runs on this packet meanwhile.
    Some(unsafe { words::load(pointer) })
}

#[inline(always)]
fn words<const N: usize>(context: &impl Bounds, offset: usize) -> Option<[u32; N]> {
    let pointer = at::<4, N, _>(context, offset)?;
    // SAFETY: as for `read`.
    Some(unsafe { words::load_each(pointer) })
}

#[inline(always)]
fn write<const N: usize>(context: &impl Bounds, offset: usize, bytes: [u8; N]) -> Option<()> {
    let pointer = at::<1, N, _>(context, offset)?;
    // SAFETY: as for `read`; the kernel has made this part of the packet private to the program (XDP) or does so
    // before the program starts when it writes directly (TC).
    unsafe { words::store(pointer, bytes) };
    Some(())
}

#[inline(always)]
fn change<const N: usize>(context: &impl Bounds, offset: usize, change: impl FnOnce([u8; N]) -> [u8; N]) -> Option<()> {
    let pointer = at::<1, N, _>(context, offset)?;
    // SAFETY: as for `read`, and for `write`.
    unsafe { words::store(pointer, change(words::load(pointer))) };
    Some(())
}

#[inline(always)]
fn change_words<const N: usize>(
    context: &impl Bounds,
    offset: usize,
    change: impl FnOnce([u32; N]) -> [u32; N],
) -> Option<()> {
    let pointer = at::<4, N, _>(context, offset)?;
    // SAFETY: as for `change`.
    unsafe { words::store_each(pointer, change(words::load_each(pointer))) };
    Some(())
}

#[inline(always)]
fn set_words<const N: usize>(context: &impl Bounds, offset: usize, words: [u32; N]) -> Option<()> {
    let pointer = at::<4, N, _>(context, offset)?;
    // SAFETY: as for `write`.
    unsafe { words::store_each(pointer, words) };
    Some(())
}
