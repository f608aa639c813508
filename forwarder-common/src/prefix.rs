//! One prefix onto another of the same length, without state: what arrives for an address of the outer prefix (`listen`)
//! goes to its counterpart in the inner one (`to`), and what comes from there leaves with the outer address.
//!
//! IPv4 keeps the host bits (netfilter's NETMAP). IPv6 keeps them too, save for one 16-bit word that makes up for the
//! change of the prefix, so that no checksum changes, whatever the packet carries (RFC 6296, NPTv6).

use crate::{
    abi::{FlowKey, Rewrite, Rule},
    address::{Address, V4, V6},
    checksum::Delta,
};

/// Addresses that can be moved from one prefix to another.
pub trait Renumber: Sized {
    /// The address with the bits of `mask` replaced by those of `prefix`, which has no others. `change` is the delta of
    /// the old prefix to the new one.
    ///
    /// `None` where IPv6 has no word to make up for it.
    fn renumbered(self, prefix: Self, mask: Self, change: Delta) -> Option<Self>;

    /// What checksums change by when an address is moved, if its prefix changes by `change`.
    fn visible(change: Delta) -> Delta;
}

impl Renumber for V4 {
    #[inline(always)]
    fn renumbered(self, prefix: Self, mask: Self, _: Delta) -> Option<Self> {
        Some((self & !mask) | prefix)
    }

    #[inline(always)]
    fn visible(change: Delta) -> Delta {
        change
    }
}

/// The two 16-bit words of a 32-bit word, in their order on the wire.
const fn halves(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}

const fn joined(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// A word that is 0 in the sum, and whose counterpart 0 is too: it could not be told from 0 on the way back.
const ALL_ONES: u16 = 0xffff;

impl Renumber for V6 {
    /// For prefixes of up to 64 bits, as RFC 6296 section 3.1 has them.
    #[inline(always)]
    fn renumbered(self, prefix: Self, mask: Self, change: Delta) -> Option<Self> {
        let ([a, b, c, d], [k, l, _, _], [m, n, _, _]) = (self, prefix, mask);
        let (a, b) = ((a & !m) | k, (b & !n) | l);
        let (prefix_end, subnet) = halves(b);
        // Section 3.4: up to /48 the subnet makes up for it, and the interface identifier stays as it is.
        if halves(n).1 == 0 {
            return (subnet != ALL_ONES).then(|| [a, joined(prefix_end, change.compensated(subnet)), c, d]);
        }
        // Section 3.5: the first word of the interface identifier that is not all ones. Section 3.7 has packets whose
        // identifier is all zeros dropped; what is meant is all ones (erratum 8757), and so does Linux.
        let ((w4, w5), (w6, w7)) = (halves(c), halves(d));
        if w4 != ALL_ONES {
            Some([a, b, joined(change.compensated(w4), w5), d])
        } else if w5 != ALL_ONES {
            Some([a, b, joined(w4, change.compensated(w5)), d])
        } else if w6 != ALL_ONES {
            Some([a, b, c, joined(change.compensated(w6), w7)])
        } else if w7 != ALL_ONES {
            Some([a, b, c, joined(w6, change.compensated(w7))])
        } else {
            None
        }
    }

    #[inline(always)]
    fn visible(_: Delta) -> Delta {
        Delta::NONE
    }
}

/// The inner counterpart of an address of the outer prefix of a one-to-one rule.
#[inline(always)]
pub fn inside<A: Address>(rule: &Rule<A>, outer: A) -> Option<A> {
    outer.renumbered(rule.to, rule.mask, Delta(rule.to_delta))
}

/// The outer counterpart of an address of the inner prefix of a one-to-one rule.
#[inline(always)]
pub fn outside<A: Address>(rule: &Rule<A>, inner: A) -> Option<A> {
    inner.renumbered(rule.listen, rule.mask, Delta(rule.to_delta).undone())
}

/// The source that an inner host sees of a packet for it: one of its own network's is seen with its outer address, so
/// that the answer comes back here (RFC 4787 section 6).
#[inline(always)]
pub fn source<A: Address>(rule: &Rule<A>, client: A) -> A {
    if client.shares(rule.mask, rule.to) { outside(rule, client).unwrap_or(client) } else { client }
}

/// What becomes of a packet for an address of the outer prefix.
#[inline(always)]
pub fn forward<A: Address>(rule: &Rule<A>, key: &FlowKey<A>) -> Option<Rewrite<A>> {
    let dst = inside(rule, key.dst)?;
    // Where both ends are moved, one there and one back, the sums make up for each other.
    let (src, change) = if key.src.shares(rule.mask, rule.to) {
        (outside(rule, key.src)?, Delta::NONE)
    } else {
        (key.src, Delta(rule.to_delta))
    };
    Some(rewrite(src, dst, key, A::visible(change)))
}

/// What becomes of a packet from an address of the inner prefix.
#[inline(always)]
pub fn reply<A: Address>(rule: &Rule<A>, key: &FlowKey<A>) -> Option<Rewrite<A>> {
    let src = outside(rule, key.src)?;
    Some(rewrite(src, key.dst, key, A::visible(Delta(rule.to_delta).undone())))
}

/// Ports, and whatever else a protocol has, stay.
#[inline(always)]
const fn rewrite<A: Copy>(src: A, dst: A, key: &FlowKey<A>, change: Delta) -> Rewrite<A> {
    Rewrite {
        src,
        dst,
        src_port: key.src_port,
        dst_port: key.dst_port,
        address_delta: change.0,
        port_delta: Delta::NONE.0,
    }
}

#[cfg(test)]
mod tests;
