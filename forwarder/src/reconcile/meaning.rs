//! What a range would mean if it had no entry of its own.

use std::collections::{BTreeMap, BTreeSet};

use forwarder_common::abi::RangeKey;
use ipnet::IpNet;

use crate::config::Family;

/// The prefix lengths of these ranges.
pub(super) fn lengths<A, T>(ranges: &BTreeMap<RangeKey<A>, T>) -> BTreeSet<u32> {
    ranges.keys().map(|key| key.prefix_len).collect()
}

/// `key` with only its first `length` bits left.
fn shortened<A: Family>(key: &RangeKey<A>, length: u32) -> Option<RangeKey<A>> {
    let whole = u32::from(A::BITS);
    let bits = length.checked_sub(RangeKey::<A>::SIDE_BITS)?;
    let Some(tail) = bits.checked_sub(whole) else {
        let prefix = IpNet::new(key.address.ip(), u8::try_from(bits).ok()?).ok()?.trunc();
        return Some(RangeKey { prefix_len: length, address: A::of(prefix.addr())?, protocol: 0, port: 0, ..*key });
    };
    let (protocol, port_bits) = match tail.checked_sub(RangeKey::<A>::PROTOCOL_BITS) {
        None => (0, 0),
        Some(port_bits) => (key.protocol, port_bits),
    };
    let mask = u16::MAX.checked_shl(u16::BITS - port_bits).unwrap_or(0);
    Some(RangeKey { prefix_len: length, protocol, port: key.port & mask.to_be(), ..*key })
}

/// What the longest of the ranges around `key` says, its own entry aside: what packets would find if that were not there.
/// `lengths` are those of `ranges`.
pub(super) fn around<A: Family, T: Copy>(
    ranges: &BTreeMap<RangeKey<A>, T>,
    lengths: &BTreeSet<u32>,
    key: &RangeKey<A>,
) -> Option<T> {
    lengths.range(..key.prefix_len).rev().find_map(|length| ranges.get(&shortened(key, *length)?).copied())
}
