#![allow(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use core::net::Ipv6Addr;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn v6(text: &str) -> V6 {
    words(text.parse::<Ipv6Addr>().unwrap().segments())
}

/// From segments in host order.
fn words(segments: [u16; 8]) -> V6 {
    let [a, b, c, d, e, f, g, h] = segments.map(u16::to_be);
    [joined(a, b), joined(c, d), joined(e, f), joined(g, h)]
}

fn segments(address: V6) -> [u16; 8] {
    let halves: Vec<u16> = address.into_iter().flat_map(|word| <[u16; 2]>::from(halves(word))).collect();
    <[u16; 8]>::try_from(halves).unwrap().map(u16::from_be)
}

fn mask6(bits: u32) -> V6 {
    words(Ipv6Addr::from(u128::MAX.checked_shl(128 - bits).unwrap_or(0)).segments())
}

fn and(a: V6, b: V6) -> V6 {
    [0, 1, 2, 3].map(|index: usize| a.get(index).unwrap() & b.get(index).unwrap())
}

/// A rule between the prefixes of these two addresses.
fn rule6(listen: V6, to: V6, bits: u32) -> Rule<V6> {
    let mask = mask6(bits);
    let (listen, to) = (and(listen, mask), and(to, mask));
    Rule { listen, to, mask, to_delta: Delta::address(listen, to).0, ..Rule::default() }
}

/// The sum of an address as RFC 1071 has it, in the one form that 0 has.
fn sum(address: V6) -> u64 {
    segments(address).into_iter().map(u64::from).sum::<u64>() % 0xffff
}

/// Section 3.6 of RFC 6296, with erratum 3033.
#[test]
fn the_example_of_the_rfc() {
    let rule = rule6(v6("2001:db8:1::"), v6("fd01:203:405::"), 48);
    let (inner, outer) = (v6("fd01:203:405:1::1234"), v6("2001:db8:1:d550::1234"));
    assert_eq!(outside(&rule, inner), Some(outer));
    assert_eq!(inside(&rule, outer), Some(inner));
}

/// Which word makes up for the prefix, and when there is none.
#[test]
fn the_word_that_changes() {
    let ones = 0xffff;
    // bits of the prefix, segments 3 to 7 of the inner address, which of them changes
    let table: [(u32, [u16; 5], Option<usize>); 15] = [
        (32, [7, 1, 2, 3, 4], Some(0)),
        (48, [7, 1, 2, 3, 4], Some(0)),
        (48, [0, 0, 0, 0, 0], Some(0)),
        (48, [7, ones, ones, ones, ones], Some(0)),
        (48, [ones, 1, 2, 3, 4], None),
        (49, [0, 1, 2, 3, 4], Some(1)),
        (56, [ones, 1, 2, 3, 4], Some(1)),
        (56, [7, ones, 2, 3, 4], Some(2)),
        (60, [7, ones, ones, 3, 4], Some(3)),
        (64, [7, ones, ones, ones, 4], Some(4)),
        (64, [7, ones, ones, ones, ones], None),
        (64, [7, 0, 0, 0, 0], Some(1)),
        (64, [7, 0, ones, 0, ones], Some(1)),
        (64, [7, ones, 0, 0, 0], Some(2)),
        (64, [7, ones, ones, ones, 0], Some(4)),
    ];
    for (bits, tail, changes) in table {
        let rule = rule6(v6("2001:db8:1:8000::"), v6("fd01:203:405:8000::"), bits);
        let [d, e, f, g, h] = tail;
        let inner = and(words([0, 0, 0, d, e, f, g, h]), mask6(bits).map(|word| !word));
        let inner = [inner, rule.to].into_iter().reduce(or).unwrap();
        let outer = outside(&rule, inner);
        let Some(changed) = changes else {
            assert_eq!(outer, None, "{bits} {tail:x?}");
            assert_eq!(inside(&rule, and_or(inner, rule.mask, rule.listen)), None, "{bits} {tail:x?}");
            continue;
        };
        let outer = outer.unwrap();
        let (inner_segments, outer_segments) = (segments(inner), segments(outer));
        for index in 0..5 {
            // The fourth segment belongs to the prefix in part.
            let (before, after) = (inner_segments.get(3 + index).unwrap(), outer_segments.get(3 + index).unwrap());
            let part = segments(mask6(bits)).get(3 + index).copied().unwrap();
            if index == changed {
                assert_ne!(before & !part, after & !part, "{bits} {tail:x?}");
            } else {
                assert_eq!(before & !part, after & !part, "{bits} {tail:x?}");
            }
        }
        assert_eq!(sum(inner), sum(outer), "{bits} {tail:x?}");
        assert_eq!(inside(&rule, outer), Some(inner), "{bits} {tail:x?}");
    }
}

fn or(a: V6, b: V6) -> V6 {
    [0, 1, 2, 3].map(|index: usize| a.get(index).unwrap() | b.get(index).unwrap())
}

fn and_or(address: V6, mask: V6, prefix: V6) -> V6 {
    or(and(address, mask.map(|word| !word)), prefix)
}

/// Every value of the word that changes: no two inner addresses share an outer one, and none is lost.
#[test]
fn every_word_has_its_own_counterpart() {
    let prefixes = [
        ("2001:db8:1::", "fd01:203:405::"),
        ("fd01:203:405::", "2001:db8:1::"),
        // The prefixes' sums are equal, or one of them is zero in the sum.
        ("2001:db8:1::", "2001:1:db8::"),
        ("ffff::", "fd00::"),
        ("fd00::", "ffff::"),
        ("2001::", "2002:fffe::"),
    ];
    for (listen, to) in prefixes {
        for bits in [48, 64] {
            let rule = rule6(v6(listen), v6(to), bits);
            let mut taken = std::vec![false; 0x10000];
            for word in 0..=0xffff_u16 {
                let at = if bits == 48 { 3 } else { 4 };
                // With prefixes beyond /48 the word after a word of ones is not looked at: its turn comes later.
                let mut inner = segments(rule.to);
                *inner.get_mut(at).unwrap() = word;
                let outer = outside(&rule, words(inner));
                if word == 0xffff && bits == 48 {
                    assert_eq!(outer, None);
                    continue;
                }
                let outer = outer.unwrap();
                assert_eq!(sum(outer), sum(words(inner)), "{listen} {to} {word:x}");
                assert_eq!(inside(&rule, outer), Some(words(inner)), "{listen} {to} {word:x}");
                let changed = *segments(outer).get(at).unwrap();
                assert!(!std::mem::replace(taken.get_mut(usize::from(changed)).unwrap(), true));
            }
            assert_eq!(taken.iter().filter(|taken| !**taken).count(), usize::from(bits == 48));
        }
    }
}

#[test]
fn ipv4_keeps_the_host_bits() {
    let address = |text: &str| u32::from_ne_bytes(text.parse::<core::net::Ipv4Addr>().unwrap().octets());
    let table = [
        (24, "198.51.100.0", "10.1.0.0", "198.51.100.200", "10.1.0.200"),
        (31, "198.51.100.6", "10.1.0.2", "198.51.100.7", "10.1.0.3"),
        (20, "198.51.96.0", "10.1.16.0", "198.51.111.255", "10.1.31.255"),
        (8, "11.0.0.0", "10.0.0.0", "11.0.0.0", "10.0.0.0"),
        (1, "128.0.0.0", "0.0.0.0", "200.1.2.3", "72.1.2.3"),
    ];
    for (bits, listen, to, outer, inner) in table {
        let mask = (u32::MAX << (32 - bits)).to_be();
        let [listen, to, outer, inner] = [listen, to, outer, inner].map(address);
        let rule = Rule { listen, to, mask, to_delta: Delta::address(listen, to).0, ..Rule::<V4>::default() };
        assert_eq!(inside(&rule, outer), Some(inner));
        assert_eq!(outside(&rule, inner), Some(outer));
        // The rule's delta is that of any of its addresses.
        assert_eq!(Delta::address(outer, inner).0 % 0xffff, rule.to_delta % 0xffff);
    }
}

/// Segments with many of the values that ones' complement treats specially.
fn any_segments() -> impl Strategy<Value = [u16; 8]> {
    prop::array::uniform8(prop_oneof![Just(0), Just(0xffff), Just(1), Just(0xfffe), any::<u16>()])
}

proptest! {
    #[test]
    fn there_and_back_is_the_identity_and_no_sum_changes(
        listen in any_segments(),
        to in any_segments(),
        host in any_segments(),
        bits in 1_u32..=64,
    ) {
        let rule = rule6(words(listen), words(to), bits);
        let inner = and_or(words(host), rule.mask, rule.to);
        if let Some(outer) = outside(&rule, inner) {
            prop_assert!(outer.shares(rule.mask, rule.listen));
            prop_assert_eq!(sum(outer), sum(inner));
            prop_assert_eq!(inside(&rule, outer), Some(inner));
        } else {
            let segments = segments(inner);
            let stuck = if bits <= 48 { &segments[3..4] } else { &segments[4..] };
            prop_assert!(stuck.iter().all(|segment| *segment == 0xffff));
        }
    }

    #[test]
    fn a_packet_there_and_back_and_between_two_inner_hosts(
        listen: u32, to: u32, host: u32, other: u32, client: u32, bits in 1_u32..=31,
    ) {
        let mask = (u32::MAX << (32 - bits)).to_be();
        let (listen, to) = (listen & mask, to & mask);
        prop_assume!(listen != to);
        let rule = Rule { listen, to, mask, to_delta: Delta::address(listen, to).0, ..Rule::<V4>::default() };
        let (host, other) = (to | (host & !mask), to | (other & !mask));
        let outer = |inner| listen | (inner & !mask);
        // From outside, or from another inner host, which is seen with its outer address.
        for (src, seen) in [(client, client), (other, outer(other))] {
            prop_assume!(src == other || (client ^ to) & mask != 0);
            let key = FlowKey { src, dst: outer(host), src_port: 1, dst_port: 2, protocol: 17 };
            let there = forward(&rule, &key).unwrap();
            prop_assert_eq!((there.src, there.dst, there.src_port, there.dst_port), (seen, host, 1, 2));
            let change = Delta::address(key.src, there.src).and(Delta::address(key.dst, there.dst));
            prop_assert_eq!(change.0 % 0xffff, there.address_delta % 0xffff);
            // The answer: to an outer address if the client is inside, so that it is forwarded, else a reply.
            let answer = FlowKey { src: host, dst: seen, src_port: 2, dst_port: 1, protocol: 17 };
            let back = if src == other { forward(&rule, &answer) } else { reply(&rule, &answer) }.unwrap();
            prop_assert_eq!((back.src, back.dst), (outer(host), src));
            let change = Delta::address(answer.src, back.src).and(Delta::address(answer.dst, back.dst));
            prop_assert_eq!(change.0 % 0xffff, back.address_delta % 0xffff);
        }
    }
}
