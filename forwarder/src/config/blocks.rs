//! Ranges of ports as longest-prefix-match keys.

use forwarder_common::abi::{RangeKey, Side};

use super::{family::Family, rule::Ports};

/// What a range key says beside its address and side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Every protocol and port of a prefix of so many bits.
    Prefix(u8),
    /// Every protocol and port.
    Everything,
    /// Every port of a protocol.
    Protocol(u8),
    /// 2^`bits` ports of a protocol, the first of which is a multiple of that.
    Block { protocol: u8, first: u16, bits: u32 },
}

/// The key for an extent; what lies beyond its prefix is zero.
pub(super) fn key<A: Family>(side: Side, address: A, extent: Extent) -> RangeKey<A> {
    let whole = u32::from(A::BITS);
    let (protocol, port, bits) = match extent {
        Extent::Prefix(bits) => (0, 0, bits.into()),
        Extent::Everything => (0, 0, whole),
        Extent::Protocol(protocol) => (protocol, 0, whole + RangeKey::<A>::PROTOCOL_BITS),
        Extent::Block { protocol, first, bits } => (protocol, first, whole + RangeKey::<A>::TAIL_BITS - bits),
    };
    RangeKey {
        prefix_len: RangeKey::<A>::SIDE_BITS + bits,
        side: side as u32,
        address,
        protocol: u16::from(protocol).to_be(),
        port: port.to_be(),
    }
}

/// The fewest aligned blocks, as (first port, bits), that together are exactly these ports.
pub(super) fn aligned(ports: Ports) -> Vec<(u16, u32)> {
    let (mut next, last) = (u32::from(ports.first), u32::from(ports.last));
    let mut blocks = Vec::new();
    while next <= last {
        // The largest block that starts here: no larger than its alignment, no longer than what is left.
        let bits = next.trailing_zeros().min((last - next + 1).ilog2()).min(16);
        blocks.push((next as u16, bits));
        next += 1 << bits;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Blocks = &'static [(u16, u32)];

    #[test]
    fn blocks_of_known_ranges() {
        let table: [(u16, u16, Blocks); 6] = [
            (80, 80, &[(80, 0)]),
            (8000, 8001, &[(8000, 1)]),
            (1, 2, &[(1, 0), (2, 0)]),
            (
                1000,
                2999,
                &[(1000, 3), (1008, 4), (1024, 10), (2048, 9), (2560, 8), (2816, 7), (2944, 5), (2976, 4), (2992, 3)],
            ),
            (65535, 65535, &[(65535, 0)]),
            (0, 65535, &[(0, 16)]),
        ];
        for (first, last, blocks) in table {
            assert_eq!(aligned(Ports { first, last }), blocks, "{first}-{last}");
        }
        assert_eq!(aligned(Ports { first: 1, last: 65535 }).len(), 16);
    }

    proptest! {
        #[test]
        fn blocks_are_the_range_and_nothing_else(a: u16, b: u16) {
            let ports = Ports { first: a.min(b), last: a.max(b) };
            let mut next = u32::from(ports.first);
            for (first, bits) in aligned(ports) {
                prop_assert_eq!(u32::from(first), next);
                prop_assert_eq!(next % (1 << bits), 0);
                next += 1 << bits;
            }
            prop_assert_eq!(next, u32::from(ports.last) + 1);
            prop_assert!(aligned(ports).len() <= 30);
        }
    }
}
