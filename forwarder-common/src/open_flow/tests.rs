#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{collections::BTreeSet, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    test_packet::{Body, NETWORK, TestPacket, at, flags},
    test_world::{Source, TestFamily, World, both_families},
};

both_families!(
    which_port_is_tried_when,
    what_cannot_begin_a_flow,
    a_refusing_table_enters_nothing,
    another_cpu_that_is_faster_wins,
    a_flow_being_protected_elsewhere_keeps_its_port,
    a_port_of_another_flow_is_passed_over,
    any_ports_that_are_chosen_are_in_range_and_nobody_elses,
);

fn to<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, port), at(F::LISTEN, 80), body)
}

fn open<F: TestFamily>(world: &World<F>, packet: &TestPacket) -> Result<u16, Outcome> {
    let parsed = F::walk(&packet.frame().as_mut_slice(), NETWORK).unwrap();
    open_flow(&world.tables, &parsed, world.tables.rule(1).unwrap(), &mut world.tables.draft().unwrap())?;
    let flow = world.tables.embryonic(&parsed.key).unwrap().get();
    let peer = world.tables.embryonic(&flow.peer_key(parsed.key.protocol)).unwrap().get();
    assert_eq!(peer.peer_key(parsed.key.protocol), parsed.key, "the reply leads back");
    Ok(u16::from_be(flow.rewrite.src_port))
}

const RANGES: [PortRange; 3] = [
    PortRange { first: 61_000, last: 65_535 },
    PortRange { first: 16_384, last: 32_767 },
    PortRange { first: 32_768, last: 60_999 },
];

/// Every range of up to nine ports, wherever it is: ports are of it and of the client's parity, save at its edges; and none of
/// that parity is never taken.
#[test]
fn random_ports_of_every_small_range() {
    for first in 0..=u16::MAX {
        for last in first..=first.saturating_add(8) {
            let (range, size) = (PortRange { first, last }, u32::from(last - first) + 1);
            for parity in [0, 1] {
                let mut taken = [false; 9];
                for random in 0..size {
                    let port = random_port(range, random, parity).unwrap();
                    assert!(within(range, port), "{port} of {first}-{last}");
                    assert!(port % 2 == parity || port == first || port == last, "{port} of {first}-{last}, {parity}");
                    taken[usize::from(port - first)] = true;
                }
                let missed = (first..=last).find(|port| port % 2 == parity && !taken[usize::from(port - first)]);
                assert_eq!(missed, None, "of {first}-{last}, {parity}");
            }
        }
    }
}

#[test]
fn random_ports_of_small_ranges() {
    // (first, last, parity of the client's port, every port that may come out)
    let table: [(u16, u16, u16, &[u16]); 9] = [
        (10, 15, 0, &[10, 12, 14]),
        (10, 15, 1, &[11, 13, 15]),
        (11, 14, 0, &[11, 12, 14]),
        (11, 14, 1, &[11, 13, 14]),
        (7, 7, 0, &[7]),
        (7, 7, 1, &[7]),
        (65_534, 65_535, 1, &[65_535]),
        (65_535, 65_535, 0, &[65_535]),
        (8, 7, 0, &[]),
    ];
    for (first, last, parity, expected) in table {
        let range = PortRange { first, last };
        let ports: BTreeSet<u16> = (0..1000).filter_map(|random| random_port(range, random, 40_000 + parity)).collect();
        assert_eq!(ports.into_iter().collect::<Vec<_>>(), expected, "{first}-{last} parity {parity}");
    }
}

proptest! {
    #[test]
    fn random_ports_stay_in_their_range(first in 1..=u16::MAX, size in 0..=u16::MAX, random: u32, wanted: u16) {
        let range = PortRange { first, last: first.saturating_add(size) };
        let port = random_port(range, random, wanted).unwrap();
        prop_assert!(within(range, port) && port != 0);
        // Parity is kept wherever the range leaves a choice.
        let other = port ^ 1;
        prop_assert!((port ^ wanted) & 1 == 0 || !within(range, other));
    }
}

/// What `candidate` says for every attempt, with a random number that points into the middle of each range.
fn which_port_is_tried_when<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let candidates = |body, port, ours| -> Vec<Option<u16>> {
        let packet = to::<F>(port, body);
        let parsed = F::walk(&packet.frame().as_mut_slice(), NETWORK).unwrap();
        (0..ALL_TRIES).map(|attempt| candidate(&world.tables, &parsed, attempt, ours).map(u16::from_be)).collect()
    };
    let in_order = |tried: &[Option<u16>], parity: u16| {
        let ranges = core::iter::repeat_n(RANGES[0], 24)
            .chain(core::iter::repeat_n(RANGES[1], 8))
            .chain(core::iter::repeat_n(RANGES[2], 8))
            .chain(core::iter::repeat_n([RANGES[2], RANGES[0], RANGES[1]], 4).flatten());
        assert_eq!(tried.len(), 53);
        for ((attempt, port), range) in tried.iter().enumerate().skip(1).zip(ranges) {
            let port = port.unwrap();
            // Every fourth has the other parity, or half of the ports would never be used.
            let parity = if attempt % 4 == 0 { 1 - parity } else { parity };
            assert!(within(range, port) && port % 2 == parity, "{port} of {range:?}");
        }
    };
    for body in [Body::Udp, Body::Tcp(flags::SYN)] {
        // (the client's port, whether it is tried first for an address of ours)
        for (port, kept) in [
            (0, false),
            (53, false),
            (1023, false),
            (16_383, false),
            (16_384, true),
            (32_767, true),
            (32_768, false),
            (60_999, false),
            (61_000, true),
            (65_535, true),
        ] {
            let masqueraded = candidates(body, port, true);
            assert_eq!(masqueraded[0], kept.then_some(port), "{port}");
            in_order(&masqueraded, port % 2);
            // Where the client's own address stays, so does its port if it can.
            let preserved = candidates(body, port, false);
            assert_eq!(preserved[0], Some(port));
            in_order(&preserved, port % 2);
        }
    }
    for port in [0, 53, 40_000, 65_535] {
        let echo = candidates(Body::EchoRequest, port, true);
        assert_eq!(echo[0], Some(port), "an identifier is any number");
        assert!(echo.iter().all(Option::is_some));
    }
}

fn what_cannot_begin_a_flow<F: TestFamily>() {
    for source in [Source::Address(F::OURS), Source::PreservedByFlow] {
        let world = World::<F>::with_rule(source);
        for tcp_flags in 0..=255u8 {
            let begins = tcp_flags & flags::RST == 0 && tcp_flags & flags::SYN_ACK != flags::SYN_ACK;
            let opened = open(&world, &to::<F>(61_000 + u16::from(tcp_flags), Body::Tcp(tcp_flags)));
            assert_eq!(opened.is_ok(), begins, "flags {tcp_flags:#04x}");
            assert!(begins || opened == Err(Outcome::Stray));
        }
        // Only a request begins a session (RFC 5508 section 3.1).
        assert_eq!(open(&world, &to::<F>(7, Body::EchoReply)), Err(Outcome::Stray));
        assert!(open(&world, &to::<F>(7, Body::EchoRequest)).is_ok());
    }
}

fn a_refusing_table_enters_nothing<F: TestFamily>() {
    for room in [0, 1] {
        let world = World::<F>::with_rule(Source::Address(F::OURS));
        world.tables.embryonic_capacity.set(room);
        assert_eq!(open(&world, &to::<F>(61_001, Body::Udp)), Err(Outcome::DropNoFlow));
        assert_eq!(world.entries(), (0, 0));
        assert!(world.tables.counted(101).events.is_empty());
    }
}

fn another_cpu_that_is_faster_wins<F: TestFamily>() {
    // Before our reply half is entered, and between our two halves; with the same port, and with another one.
    for insertion in [0, 1, 2] {
        for port in [61_001, 53] {
            let world = World::<F>::with_rule(Source::Address(F::OURS));
            let packet = to::<F>(port, Body::Udp);
            let parsed = F::walk(&packet.frame().as_mut_slice(), NETWORK).unwrap();
            let rule = *world.tables.rule(1).unwrap();
            let other = std::boxed::Box::new(move |tables: &crate::tables::memory::Memory<F::Address>| {
                open_flow(tables, &parsed, &rule, &mut tables.draft().unwrap()).unwrap();
            });
            *world.tables.other_cpu.borrow_mut() = Some((insertion, other));
            open(&world, &packet).unwrap();
            assert_eq!(world.entries(), (0, 2), "one flow with both halves: before insertion {insertion}, port {port}");
            assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 1);
        }
    }
}

/// Another CPU begins and protects a flow with our reply key, between our looks among the new flows and among the protected ones.
fn a_flow_being_protected_elsewhere_keeps_its_port<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let first = to::<F>(61_001, Body::Udp);
    let parsed = F::walk(&first.frame().as_mut_slice(), NETWORK).unwrap();
    let rule = *world.tables.rule(1).unwrap();
    let act = std::boxed::Box::new(move |tables: &crate::tables::memory::Memory<F::Address>| {
        let key = parsed.key;
        open_flow(tables, &parsed, &rule, &mut tables.draft().unwrap()).unwrap();
        let mut flow = tables.embryonic(&key).unwrap().get();
        assert_eq!(u16::from_be(flow.rewrite.src_port), 61_001);
        let peer_key = flow.peer_key(key.protocol);
        let mut peer = tables.embryonic(&peer_key).unwrap().get();
        tables.protect((&key, &mut flow), (&peer_key, &mut peer)).unwrap();
        tables.remove_embryonic(&key);
        tables.remove_embryonic(&peer_key);
    });
    *world.tables.other_cpu.borrow_mut() = Some((0, act));
    let second = first.with(|p| p.src = at(F::OTHER_CLIENT, 61_001));
    assert_ne!(open(&world, &second), Ok(61_001));
    assert_eq!(world.entries(), (2, 2));
}

/// For a port that another flow has, nobody asks whether a socket has it too, until that flow has expired.
fn a_port_of_another_flow_is_passed_over<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Address(F::OURS));
    let first = to::<F>(61_001, Body::Udp);
    assert_eq!(open(&world, &first), Ok(61_001));
    let key = World::<F>::key(&first);
    world.tables.sockets.insert((17, F::address(F::OURS), 61_001u16.to_be()));
    let second = first.with(|p| p.src = at(F::OTHER_CLIENT, 61_001));
    assert_ne!(open(&world, &second).unwrap(), 61_001);
    assert_eq!(world.tables.counted(101).times(Event::PortClash), 0);
    // What is left of the client's own flow is no obstacle.
    world.tables.remove_embryonic(&key);
    assert_ne!(open(&world, &first).unwrap(), 61_001, "the socket has it");
    assert_eq!(world.tables.counted(101).times(Event::PortClash), 1);
    world.tables.sockets.clear();
    world.tables.wait(1_000_000);
    let third = first.with(|p| p.src = at(F::OTHER_CLIENT, 61_001));
    world.tables.remove_embryonic(&World::<F>::key(&third));
    assert_eq!(open(&world, &third), Ok(61_001), "it has expired");
}

fn any_ports_that_are_chosen_are_in_range_and_nobody_elses<F: TestFamily>() {
    let runner = &mut proptest::test_runner::TestRunner::default();
    let clients = proptest::collection::vec((any::<bool>(), any::<u16>()), 1..200usize);
    let check = |(clients, sizes): (Vec<(bool, u16)>, [u8; 3])| {
        let mut world = World::<F>::with_rule(Source::Address(F::OURS));
        for (range, size) in world.tables.settings.ports.iter_mut().zip(sizes) {
            // Size 0 makes an empty range.
            range.last = (range.first - 1).saturating_add(size.into());
        }
        let ranges = world.tables.settings.ports;
        let mut taken = BTreeSet::new();
        for (other, port) in clients.into_iter().collect::<BTreeSet<_>>() {
            let packet =
                to::<F>(port, Body::Udp).with(|p| p.src = at(if other { F::OTHER_CLIENT } else { F::CLIENT }, port));
            match open(&world, &packet) {
                Ok(port) => {
                    prop_assert!(ranges.iter().any(|range| within(*range, port)), "{}", port);
                    prop_assert!(taken.insert(port), "{} twice", port);
                }
                Err(outcome) => prop_assert_eq!(outcome, Outcome::DropNoPort),
            }
        }
        prop_assert_eq!(world.entries(), (0, 2 * taken.len()));
        Ok(())
    };
    runner.run(&(clients, any::<[u8; 3]>()), check).unwrap();
}
