//! What a range would mean if it had no entry of its own.

use std::collections::BTreeMap;

use forwarder_common::abi::RangeKey;

use crate::config::Family;

/// `key` with only the first `tail` bits of its protocol and port left.
fn shortened<A: Family>(key: &RangeKey<A>, tail: u32) -> RangeKey<A> {
    let (protocol, port_bits) = match tail.checked_sub(RangeKey::<A>::PROTOCOL_BITS) {
        None => (0, 0),
        Some(port_bits) => (key.protocol, port_bits),
    };
    let mask = u16::MAX.checked_shl(u16::BITS - port_bits).unwrap_or(0);
    RangeKey {
        prefix_len: RangeKey::<A>::SIDE_BITS + u32::from(A::BITS) + tail,
        protocol,
        port: key.port & mask.to_be(),
        ..*key
    }
}

/// What the longest of the ranges around `key` says, its own entry aside: what packets would find if that were not there.
pub(super) fn around<A: Family, T: Copy>(ranges: &BTreeMap<RangeKey<A>, T>, key: &RangeKey<A>) -> Option<T> {
    let tail = key.prefix_len.saturating_sub(RangeKey::<A>::SIDE_BITS + u32::from(A::BITS));
    (0..tail)
        .rev()
        // Nothing names a part of the protocol.
        .filter(|tail| *tail == 0 || *tail >= RangeKey::<A>::PROTOCOL_BITS)
        .find_map(|tail| ranges.get(&shortened(key, tail)).copied())
}
