//! IPv4 and IPv6 addresses as map keys hold them.

use crate::{checksum::halves, prefix::Renumber};

/// A network address as loaded from the wire: bytes in network order, seen as native 32-bit words.
///
/// Words rather than bytes because the BPF target loads and compares a word in one instruction.
pub trait Address: Copy + Eq + Default + Renumber + crate::abi::Slotted {
    /// The ones' complement sum of the address as 16-bit words, not folded; at most 16 bits of carry.
    fn word_sum(self) -> u32;
    /// A cheap, well-mixed 32-bit hash for direct-mapped tables; not for adversarial keys.
    fn mix(self) -> u32;
    /// Whether no packet from this source may be forwarded (RFC 1812 section 5.3.7, RFC 4291 section 2.5.6).
    fn is_martian_source(self) -> bool;
    /// The address with every bit outside `mask` cleared; `mask` is applied to each 32-bit word.
    #[must_use]
    fn masked(self, mask: u32) -> Self;
    /// Whether both addresses have the same bits wherever `mask` has ones.
    fn shares(self, mask: Self, other: Self) -> bool;
}

/// An IPv4 address: four bytes in network order as one native word.
pub type V4 = u32;
/// An IPv6 address: sixteen bytes in network order as four native words.
pub type V6 = [u32; 4];

/// An IPv6 address as it stands on the wire.
#[inline(always)]
pub const fn wire_bytes(words: V6) -> [u8; 16] {
    let [a, b, c, d] = words;
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
    let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
    [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]
}

/// 2^32 divided by the golden ratio: multiplying by it spreads neighbouring addresses over the high bits.
const SPREAD: u32 = 0x9e37_79b9;

impl Address for V4 {
    #[inline(always)]
    fn word_sum(self) -> u32 {
        halves(self)
    }
    #[inline(always)]
    fn mix(self) -> u32 {
        let spread = self.wrapping_mul(SPREAD);
        spread ^ (spread >> 16)
    }
    #[inline(always)]
    fn is_martian_source(self) -> bool {
        let [first, second, ..] = self.to_ne_bytes();
        // 0/8, 127/8, link-local 169.254/16 (RFC 3927 section 2.7), multicast 224/4, reserved 240/4 with the broadcast
        // address.
        first == 0 || first == 127 || first >= 224 || (first == 169 && second == 254)
    }
    #[inline(always)]
    fn masked(self, mask: u32) -> Self {
        self & mask
    }
    #[inline(always)]
    fn shares(self, mask: Self, other: Self) -> bool {
        (self ^ other) & mask == 0
    }
}

impl Address for V6 {
    #[inline(always)]
    fn word_sum(self) -> u32 {
        let [a, b, c, d] = self;
        halves(a) + halves(b) + halves(c) + halves(d)
    }
    #[inline(always)]
    fn mix(self) -> u32 {
        let [a, b, c, d] = self;
        let ab = a.wrapping_mul(SPREAD) ^ b;
        let abc = ab.wrapping_mul(SPREAD) ^ c;
        (abc.wrapping_mul(SPREAD) ^ d).mix()
    }
    #[inline(always)]
    fn is_martian_source(self) -> bool {
        let [a, b, c, d] = self;
        let [first, second, ..] = a.to_ne_bytes();
        let unspecified_or_loopback = a == 0 && b == 0 && c == 0 && (d == 0 || d == 1u32.to_be());
        // fe80::/10 and multicast ff00::/8.
        first == 0xff || (first == 0xfe && second & 0xc0 == 0x80) || unspecified_or_loopback
    }
    #[inline(always)]
    fn masked(self, mask: u32) -> Self {
        let [a, b, c, d] = self;
        [a & mask, b & mask, c & mask, d & mask]
    }
    #[inline(always)]
    fn shares(self, mask: Self, other: Self) -> bool {
        let ([a, b, c, d], [e, f, g, h], [k, l, m, n]) = (self, other, mask);
        ((a ^ e) & k) | ((b ^ f) & l) | ((c ^ g) & m) | ((d ^ h) & n) == 0
    }
}
