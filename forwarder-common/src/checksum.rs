//! The Internet checksum as something that changes by a difference (RFC 1071, RFC 1624).
//!
//! The one confusing thing: a checksum field holds the *complement* of the ones' complement sum of the data.
//! Changing a word `m` to `m'` changes the sum by `~m + m'`, whatever else the packet holds, so the packet is
//! never summed again and a checksum that was wrong stays exactly as wrong (RFC 1624 section 3, equation 3:
//! `HC' = ~(~HC + ~m + m')`; equation 4 gets `HC' = 0xffff` wrong).
//!
//! The sum does not care about byte order as long as everything is swapped alike (RFC 1071 section 2B), so all
//! of this works on native words loaded straight from the wire.

use crate::address::Address;

/// What a checksum's data changes by: the folded ones' complement sum of `~old + new` over the changed words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(pub u16);

/// Folds carries back in (RFC 1071 section 1) until 16 bits are left.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Folds a sum of two 16-bit words. Once is enough: with a carry, what is left of 2 * 0xffff is 0xfffe at most.
#[inline(always)]
const fn fold_pair(sum: u32) -> u16 {
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The two 16-bit words of a 32-bit one, added.
#[inline(always)]
pub(crate) const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The sum of the 16-bit words in a few of 32 bits, each as loaded from the wire. Added up whole, with the carries kept above
/// (RFC 1071 section 2C), and then halved once.
#[inline(always)]
pub(crate) fn sum_of_words<const N: usize>(words: [u32; N]) -> u32 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(word);
    }
    // Both halves are less than 2^32 each, and the upper is only the number of carries.
    halves(sum as u32) + halves((sum >> 32) as u32)
}

/// Whether the words of which this is the sum, their checksum among them, are as they were sent (RFC 1071 section 1). Of a
/// sum of fewer than 2^16 words one folding tells: more than 0xffff never folds to that.
#[inline(always)]
pub(crate) const fn is_intact(sum: u32) -> bool {
    halves(sum) == 0xffff
}

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// One 16-bit word becomes another; both as loaded from the wire.
    #[inline(always)]
    pub const fn word(old: u16, new: u16) -> Self {
        Self(fold_pair(!old as u32 + new as u32))
    }

    /// The sum of an address.
    #[inline(always)]
    pub fn sum<A: Address>(address: A) -> Self {
        Self(fold(address.word_sum()))
    }

    /// The sum of a few words of 32 bits, each as loaded from the wire.
    #[inline(always)]
    pub fn of_words<const N: usize>(words: [u32; N]) -> Self {
        Self(fold(sum_of_words(words)))
    }

    /// One address becomes another. Folded on its own, so that the result fits 16 bits for every family.
    #[inline(always)]
    pub fn address<A: Address>(old: A, new: A) -> Self {
        Self::word(fold(old.word_sum()), fold(new.word_sum()))
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(fold_pair(self.0 as u32 + other.0 as u32))
    }

    /// Half of this sum: what, added to itself, comes to it. Always there, for 2 has an inverse modulo 2^16 - 1.
    #[inline(always)]
    #[must_use]
    pub const fn halved(self) -> Self {
        Self(self.0.rotate_right(1))
    }

    /// The checksum of data with this sum.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.0
    }

    /// The change that undoes this one.
    #[inline(always)]
    #[must_use]
    pub const fn undone(self) -> Self {
        Self(!self.0)
    }

    /// A checksum field after the change (RFC 1624 equation 3).
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, field: u16) -> u16 {
        self.apply_with(Self::NONE, field)
    }

    /// A checksum field after this change and another one: as [`Self::and`] and then [`Self::apply`], folded once.
    #[inline(always)]
    #[must_use]
    pub const fn apply_with(self, other: Self, field: u16) -> u16 {
        !fold(!field as u32 + self.0 as u32 + other.0 as u32)
    }

    /// The one word that has to change by as much to make up for this change, so that the sum stays the same (RFC 6296
    /// section 3.6). For a `word` that is not 0xffff; neither is the result, though it is as good as 0 in the sum.
    #[inline(always)]
    #[must_use]
    pub const fn compensated(self, word: u16) -> u16 {
        match fold_pair(word as u32 + !self.0 as u32) {
            0xffff => 0,
            other => other,
        }
    }

    /// A UDP checksum field after the change, as [`Self::apply_udp_with`].
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp(self, field: u16) -> u16 {
        self.apply_udp_with(Self::NONE, field)
    }

    /// A UDP checksum field after this change and another one: absent (0) stays absent, and one that computes to 0 is sent as all
    /// ones (RFC 768; RFC 8200 section 8.1 and, for zero over IPv6, RFC 6935).
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp_with(self, other: Self, field: u16) -> u16 {
        if field == 0 {
            return 0;
        }
        match self.apply_with(other, field) {
            0 => 0xffff,
            other => other,
        }
    }
}

/// The sum over a pseudo-header (RFC 8200 section 8.1; for IPv4, RFC 9293 section 3.1). `length` in bytes.
#[inline(always)]
pub fn pseudo_header<A: Address>(src: A, dst: A, length: u32, protocol: u8) -> Delta {
    let [high, low] = [(length >> 16) as u16, length as u16].map(u16::to_be);
    let ends = Delta(fold(src.word_sum())).and(Delta(fold(dst.word_sum())));
    ends.and(Delta(fold(u32::from(high) + u32::from(low) + u32::from(u16::from(protocol).to_be()))))
}

/// Whether a sum over everything that a checksum covers, and the checksum itself, says that all of it is right
/// (RFC 1071 section 1).
#[inline(always)]
pub const fn is_complete(sum: Delta) -> bool {
    sum.0 == 0xffff
}

#[cfg(test)]
mod tests;
