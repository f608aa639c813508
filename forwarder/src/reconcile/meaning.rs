//! What the tables say about an endpoint or a range: its own entry, or that of the shortest range around it.

use std::collections::BTreeMap;

use forwarder_common::abi::{Endpoint, RangeKey};

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

/// The entry of the longest range around `key`, itself included where `tails` says so.
fn longest<A: Family, T: Copy>(
    ranges: &BTreeMap<RangeKey<A>, T>,
    key: &RangeKey<A>,
    tails: impl Iterator<Item = u32>,
) -> Option<T> {
    tails
        // Nothing names a part of the protocol.
        .filter(|tail| *tail == 0 || *tail >= RangeKey::<A>::PROTOCOL_BITS)
        .find_map(|tail| ranges.get(&shortened(key, tail)).copied())
}

/// What ranges say about a packet's endpoint.
pub(super) fn of_endpoint<A: Family, T: Copy>(
    ranges: &BTreeMap<RangeKey<A>, T>,
    endpoint: &Endpoint<A>,
) -> Option<T> {
    longest(
        ranges,
        &RangeKey::exact(*endpoint),
        (0..=RangeKey::<A>::TAIL_BITS).rev(),
    )
}

/// What the ranges around `key` say, its own entry aside: what packets would find if it were not there.
pub(super) fn around<A: Family, T: Copy>(
    ranges: &BTreeMap<RangeKey<A>, T>,
    key: &RangeKey<A>,
) -> Option<T> {
    let tail = key
        .prefix_len
        .saturating_sub(RangeKey::<A>::SIDE_BITS + u32::from(A::BITS));
    longest(ranges, key, (0..tail).rev())
}
