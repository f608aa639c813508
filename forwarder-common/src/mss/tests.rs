#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{iter, vec, vec::Vec};

use super::*;
use crate::{
    abi::Direction,
    tables::{Hop, memory::HOP},
    test_packet::{Body, NETWORK, TestPacket, at, flags, wrongness},
    test_world::{Hook, Source, TestFamily, World, both_families},
    verdict::{Outcome, Verdict},
};

both_families!(
    the_option_is_lowered_wherever_it_stands,
    malformed_lists_stay_as_they_are,
    both_ways_and_the_rule_limit_it,
    only_what_announces_is_looked_at,
    xdp_keeps_only_what_fits,
    headers_that_end_after_the_packet_stay_as_they_are,
);

/// Padded to whole words.
fn options(list: &[u8]) -> Vec<u8> {
    let padded = list.len().next_multiple_of(4);
    list.iter().copied().chain(iter::repeat(0)).take(padded).collect()
}

fn mss(value: u16) -> Vec<u8> {
    let [high, low] = value.to_be_bytes();
    vec![2, 4, high, low]
}

fn syn<F: TestFamily>(flags: u8, list: &[u8]) -> TestPacket {
    TestPacket::new(at(F::CLIENT, 61_001), at(F::LISTEN, 80), Body::Tcp(flags)).with(|p| p.tcp_options = options(list))
}

/// A world in which the way to the backend takes this much.
fn narrow<F: TestFamily>(source: Source, out: u32) -> World<F> {
    let mut world = World::<F>::with_rule(source);
    world.tables.hops.insert(F::address(F::BACKEND), Hop { mtu: out, ..HOP });
    world
}

/// The packet is forwarded at TC, and the list of TCP's options is this one then.
#[track_caller]
fn becomes<F: TestFamily>(world: &World<F>, packet: &TestPacket, list: &[u8]) {
    let expected = packet.with(|p| p.tcp_options = options(list)).forwarded(packet.src, at(F::BACKEND, 8080));
    world.forwards(Hook::Tc, packet, Direction::Forward, &expected);
    assert_eq!(wrongness(&expected.frame()), (0, 0), "the test's own arithmetic");
}

fn headers<F: TestFamily>() -> u16 {
    if F::CLIENT.is_ipv4() { 40 } else { 60 }
}

fn the_option_is_lowered_wherever_it_stands<F: TestFamily>() {
    let world = narrow::<F>(Source::Preserved, 1300);
    let fits = 1300 - headers::<F>();
    // All that can stand before it and leaves room for it: odd offsets too.
    for nothings in 0..=36 {
        for options_before in [vec![], vec![4, 2], vec![3, 3, 7], vec![8, 10, 1, 2, 3, 4, 5, 6, 7, 8], vec![30, 3, 9]] {
            let before = [vec![1; nothings], options_before].concat();
            if before.len() > 36 {
                continue;
            }
            for (announced, left) in [(1460, fits), (fits + 1, fits), (fits, fits), (fits - 1, fits - 1), (0, 0)] {
                for after in [vec![], vec![1, 3, 3, 7], vec![0, 0xff]] {
                    let list = |value| [before.clone(), mss(value), after.clone()].concat();
                    if list(0).len() <= 40 {
                        becomes(&world, &syn::<F>(flags::SYN, &list(announced)), &list(left));
                    }
                }
            }
        }
    }
    // The list ends with the header, without an end of list.
    becomes(&world, &syn::<F>(flags::SYN, &mss(65_535)), &mss(fits));
    // The first counts, as with netfilter.
    let twice = |first| [mss(first), mss(9000)].concat();
    becomes(&world, &syn::<F>(flags::SYN, &twice(1460)), &twice(fits));
}

fn malformed_lists_stay_as_they_are<F: TestFamily>() {
    let world = narrow::<F>(Source::Preserved, 1300);
    let big = mss(1460);
    let lists: [Vec<u8>; 12] = [
        vec![],
        vec![1; 40],
        // After the end of the list there is nothing.
        [vec![0], big.clone()].concat(),
        [vec![1, 0], big.clone()].concat(),
        // An option shorter than its own length field, or longer than the header.
        [vec![3, 0], big.clone()].concat(),
        [vec![3, 1], big.clone()].concat(),
        [vec![8, 200], big.clone()].concat(),
        vec![1, 1, 1, 2],
        vec![1, 1, 2, 4],
        vec![1, 2, 4, 5],
        // An MSS of another length.
        vec![2, 3, 9, 0],
        vec![2, 6, 5, 180, 5, 180, 0, 0],
    ];
    for list in lists {
        becomes(&world, &syn::<F>(flags::SYN, &list), &list);
    }
}

fn both_ways_and_the_rule_limit_it<F: TestFamily>() {
    let less = |mtu: u16| mtu - headers::<F>();
    // (out, back, rule, announced, left)
    let table = [
        (1300, 1500, BY_MTU, 1460, less(1300)),
        (1500, 1300, BY_MTU, 1460, less(1300)),
        (1400, 1300, BY_MTU, 1460, less(1300)),
        (9000, 9000, BY_MTU, 8940, 8940),
        (9000, 9000, BY_MTU, 1460, 1460),
        (70_000, 70_000, BY_MTU, 65_535, 65_535),
        (1300, 1500, UNCHANGED, 1460, 1460),
        (1500, 1500, 1000, 1460, 1000),
        (1500, 1500, 1000, 900, 900),
        (1300, 1500, 1400, 1460, less(1300)),
        // No room for anything: that is no MTU to go by.
        (u32::from(headers::<F>()), 1500, BY_MTU, 1460, 1460),
    ];
    for (out, back, most, announced, left) in table {
        for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
            let mut world = narrow::<F>(source, out);
            world.tables.hops.insert(F::address(F::CLIENT), Hop { mtu: back, ..HOP });
            world.tables.rules.get_mut(&1).unwrap().mss = most;
            let ours = source == Source::Address(F::OURS);
            let src = if ours { at(F::OURS, 61_001) } else { at(F::CLIENT, 61_001) };
            let there = syn::<F>(flags::SYN, &mss(announced));
            if there.length() > out {
                continue;
            }
            let expected = syn::<F>(flags::SYN, &mss(left)).forwarded(src, at(F::BACKEND, 8080));
            world.forwards(Hook::Tc, &there, Direction::Forward, &expected);
            // And what the backend announces, by the same two ways.
            let back = TestPacket { src: at(F::BACKEND, 8080), dst: src, ..syn::<F>(flags::SYN_ACK, &mss(announced)) };
            let expected = TestPacket { src: there.dst, dst: there.src, ..syn::<F>(flags::SYN_ACK, &mss(left)) };
            let expected = expected.with(|p| p.hop_limit = 63);
            world.forwards(Hook::Tc, &back, Direction::Reply, &expected);
        }
    }
}

fn only_what_announces_is_looked_at<F: TestFamily>() {
    let world = narrow::<F>(Source::Preserved, 1300);
    for other in [0, flags::ACK, flags::FIN_ACK, flags::RST] {
        becomes(&world, &syn::<F>(other, &mss(1460)), &mss(1460));
    }
    for announcing in [flags::SYN, flags::SYN_ACK, flags::SYN | 0xc0, flags::SYN | flags::FIN] {
        becomes(&world, &syn::<F>(announcing, &mss(1460)), &mss(1300 - headers::<F>()));
    }
    // Bytes that look the same in a datagram.
    let datagram = TestPacket::new(at(F::CLIENT, 61_001), at(F::LISTEN, 80), Body::Udp);
    let datagram = datagram.with(|p| p.payload = [vec![0x60; 12], mss(1460)].concat());
    world.out(&datagram, datagram.src, at(F::BACKEND, 8080));
}

fn xdp_keeps_only_what_fits<F: TestFamily>() {
    let fits = 1300 - headers::<F>();
    let table = [
        (flags::SYN, mss(fits), true),
        (flags::SYN, mss(fits + 1), false),
        (flags::SYN_ACK, mss(fits + 1), false),
        (flags::SYN, [mss(fits), vec![1, 3, 3, 7]].concat(), true),
        (flags::SYN, vec![], true),
        // It would fit, but only TC looks further.
        (flags::SYN, [vec![1], mss(fits)].concat(), false),
        (flags::SYN, vec![4, 2], false),
        (flags::ACK, mss(fits + 1), true),
    ];
    for (flags, list, kept) in table {
        let world = narrow::<F>(Source::Preserved, 1300);
        let packet = syn::<F>(flags, &list);
        if kept {
            let expected = packet.forwarded(packet.src, at(F::BACKEND, 8080));
            world.forwards(Hook::Xdp, &packet, Direction::Forward, &expected);
        } else {
            world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
        }
        // Where the rule does not want it, XDP does not care.
        let mut world = world;
        world.tables.rules.get_mut(&1).unwrap().mss = UNCHANGED;
        world.forwards(Hook::Xdp, &packet, Direction::Forward, &packet.forwarded(packet.src, at(F::BACKEND, 8080)));
    }
}

fn headers_that_end_after_the_packet_stay_as_they_are<F: TestFamily>() {
    let world = narrow::<F>(Source::Preserved, 1300);
    let packet = syn::<F>(flags::SYN, &mss(1460)).with(|p| p.payload.clear());
    let data_offset = NETWORK + F::HEADER + tcp::DATA_OFFSET;
    for (words, trailer) in [(4, 0), (0, 0), (7, 0), (15, 0), (7, 64)] {
        let mut frame = packet.with(|p| p.trailer = vec![1; trailer]).frame();
        frame[data_offset] = words << 4;
        let (verdict, bytes) = world.process_bytes(Hook::Tc, frame.clone());
        assert_eq!(verdict, Verdict::transmit(Hop { mtu: 1300, ..HOP }));
        assert_eq!(bytes[NETWORK + F::HEADER + 20..], frame[NETWORK + F::HEADER + 20..], "{words} words");
    }
}
