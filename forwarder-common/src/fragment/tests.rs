#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{net::SocketAddr, vec, vec::Vec};

use super::*;
use crate::{
    test_packet::{Body, Piece, TestPacket, at, pieces},
    test_world::{Hook, Source, TestFamily, World, both_families},
};

both_families!(
    in_order_every_fragment_goes_the_way_of_the_first,
    the_fragments_of_replies,
    datagrams_that_mix,
    without_their_first_they_wait_or_pass,
    in_every_order_of_arrival,
    own_datagrams_pass_in_every_order,
    datagrams_that_mix_in_any_order,
    a_fragment_and_its_first_on_two_cpus_at_once,
    a_flood_of_fragments_without_first,
    a_first_fragment_that_passes_lets_the_others_pass,
    a_first_fragment_that_is_dropped_has_the_others_dropped,
    nothing_lies_over_a_forwarded_transport_header,
    a_first_fragment_without_its_ports_is_not_forwarded,
    a_datagram_is_forgotten_after_a_minute,
    what_stops_a_packet_stops_a_fragment,
);

const SOURCES: [fn(std::net::IpAddr) -> Source; 3] =
    [|_| Source::Preserved, |_| Source::PreservedByFlow, Source::Address];

/// A large datagram of a client for the usual rule.
fn datagram<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, port), at(F::LISTEN, 80), body).with(|p| p.payload = (0..100).collect())
}

/// The client's end as the backend sees it.
fn seen<F: TestFamily>(source: Source, packet: &TestPacket) -> SocketAddr {
    if source == Source::Address(F::OURS) { at(F::OURS, packet.src.port()) } else { packet.src }
}

fn cut(packet: &TestPacket) -> Vec<Piece> {
    pieces(packet.transport_length(), 24)
}

impl<F: TestFamily> World<F> {
    /// At TC this piece of a datagram is forwarded and becomes that piece of the other datagram.
    #[track_caller]
    fn sends(&self, identification: u32, packet: &TestPacket, becomes: &TestPacket, piece: &Piece) {
        let (verdict, bytes) = self.process_bytes(Hook::Tc, packet.fragment(identification, piece));
        assert_eq!(verdict.outcome, Outcome::Forwarded, "{piece:?} of {packet:?}");
        assert_eq!(bytes, becomes.fragment(identification, piece), "{piece:?} of {packet:?}");
    }

    /// At TC this piece of a datagram ends so, and is not changed.
    #[track_caller]
    fn keeps(&self, identification: u32, packet: &TestPacket, piece: &Piece, outcome: Outcome) {
        let frame = packet.fragment(identification, piece);
        let (verdict, bytes) = self.process_bytes(Hook::Tc, frame.clone());
        assert_eq!((verdict.outcome, bytes), (outcome, frame), "{piece:?} of {packet:?}");
    }
}

fn in_order_every_fragment_goes_the_way_of_the_first<F: TestFamily>() {
    for source in SOURCES.map(|source| source(F::OURS)) {
        for body in [Body::Udp, Body::UdpUnsummed, Body::Tcp(2)] {
            let world = World::<F>::with_rule(source);
            let packet = datagram::<F>(61_001, body);
            let becomes = packet.forwarded(seen::<F>(source, &packet), at(F::BACKEND, 8080));
            let all = cut(&packet);
            for identification in [1, 0xffff] {
                for piece in &all {
                    world.sends(identification, &packet, &becomes, piece);
                }
                // One that comes twice goes twice.
                world.sends(identification, &packet, &becomes, &all[2]);
                world.sends(identification, &packet, &becomes, &all[0]);
            }
            let header: usize = if F::CLIENT.is_ipv4() { 20 } else { 48 };
            let bytes: usize = all.iter().chain([&all[2], &all[0]]).map(|piece| header + piece.bytes.len()).sum();
            let counted = world.tables.counted(101).forward;
            assert_eq!((counted.packets, counted.bytes), (2 * all.len() as u64 + 4, 2 * bytes as u64));
        }
    }
}

fn the_fragments_of_replies<F: TestFamily>() {
    for source in SOURCES.map(|source| source(F::OURS)) {
        let world = World::<F>::with_rule(source);
        let request = datagram::<F>(61_001, Body::Udp);
        let seen = seen::<F>(source, &request);
        world.out(&request, seen, at(F::BACKEND, 8080));
        let answer = TestPacket { src: at(F::BACKEND, 8080), dst: seen, ..request.clone() };
        let becomes = answer.forwarded(request.dst, request.src);
        for piece in &cut(&answer) {
            world.sends(7, &answer, &becomes, piece);
        }
        assert_eq!(world.tables.counted(101).reply.packets, cut(&answer).len() as u64);
    }
}

/// Two clients with the same identification, and two datagrams of one client.
fn datagrams_that_mix<F: TestFamily>() {
    for source in SOURCES.map(|source| source(F::OURS)) {
        let mut world = World::<F>::with_rule(source);
        world.forward(at(F::OTHER_LISTEN, 53), at(F::OTHER_CLIENT, 5353), source);
        let one = datagram::<F>(61_001, Body::Udp);
        let other_client = one.with(|p| p.src = at(F::OTHER_CLIENT, 61_002));
        let other_rule = one.with(|p| p.dst = at(F::OTHER_LISTEN, 53));
        let to = |packet: &TestPacket, backend| packet.forwarded(seen::<F>(source, packet), backend);
        let datagrams = [
            (5, &one, to(&one, at(F::BACKEND, 8080))),
            (6, &one, to(&one, at(F::BACKEND, 8080))),
            (5, &other_client, to(&other_client, at(F::BACKEND, 8080))),
            (5, &other_rule, to(&other_rule, at(F::OTHER_CLIENT, 5353))),
        ];
        for piece in cut(&one) {
            for (identification, packet, becomes) in &datagrams {
                world.sends(*identification, packet, becomes, &piece);
            }
        }
    }
}

fn without_their_first_they_wait_or_pass<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    let packet = datagram::<F>(61_001, Body::Udp);
    let all = cut(&packet);
    // To the listen, and from the backend.
    let answer = packet.with(|p| (p.src, p.dst) = (at(F::BACKEND, 8080), p.src));
    for packet in [&packet, &answer] {
        all[1..].iter().for_each(|piece| world.keeps(1, packet, piece, Outcome::HeldForFirst));
    }
    assert_eq!(world.tables.held.borrow().len(), 2 * (all.len() - 1));
    // Between others.
    let others = packet.with(|p| p.dst = at(F::OTHER_LISTEN, 80));
    all[1..].iter().for_each(|piece| world.keeps(1, &others, piece, Outcome::Fragment));
    // Of another datagram, another sender, to another address, of another protocol.
    let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
    world.tables.held.borrow_mut().clear();
    world.sends(1, &packet, &becomes, &all[0]);
    world.keeps(2, &packet, &all[1], Outcome::HeldForFirst);
    world.keeps(1, &packet.with(|p| p.src = at(F::OTHER_CLIENT, 61_001)), &all[1], Outcome::HeldForFirst);
    world.keeps(1, &packet.with(|p| p.dst = at(F::OTHER_LISTEN, 80)), &all[1], Outcome::Fragment);
    if F::CLIENT.is_ipv4() {
        world.keeps(1, &packet.with(|p| p.body = Body::Tcp(0)), &cut(&packet)[2], Outcome::HeldForFirst);
    } else {
        // RFC 8200 section 4.5: only what the first fragment says of the next header counts.
        let strange = packet.with(|p| p.body = Body::Other(47));
        let becomes = strange.forwarded(strange.src, at(F::BACKEND, 8080));
        world.sends(1, &strange, &becomes, &all[1]);
    }
}

/// All orders of these numbers.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let shorter = orders(count - 1);
    shorter
        .iter()
        .flat_map(|order| (0..count).map(|place| [&order[..place], &[count - 1], &order[place..]].concat()))
        .collect()
}

/// Whatever the order, every fragment leaves exactly once, and the first of them is the first.
fn in_every_order_of_arrival<F: TestFamily>() {
    for source in SOURCES.map(|source| source(F::OURS)) {
        let packet = datagram::<F>(61_001, Body::Udp);
        let all = pieces(packet.transport_length(), 24);
        let becomes = packet.forwarded(seen::<F>(source, &packet), at(F::BACKEND, 8080));
        for order in orders(all.len()) {
            let world = World::<F>::with_rule(source);
            let mut left = vec![];
            for piece in &order {
                left.extend(world.arrives(packet.fragment(1, &all[*piece])));
            }
            assert!(left.iter().all(|(verdict, _)| verdict.outcome == Outcome::Forwarded), "{order:?}: {left:?}");
            let frames: Vec<_> = left.into_iter().map(|(_, frame)| frame).collect();
            let mut wanted: Vec<_> = all.iter().map(|piece| becomes.fragment(1, piece)).collect();
            assert_eq!(frames[0], wanted[0], "{order:?}");
            let mut frames = frames;
            frames.sort();
            wanted.sort();
            assert_eq!(frames, wanted, "{order:?}");
            assert!(world.tables.held.borrow().is_empty());
            assert_eq!(world.tables.counted(101).forward.packets, all.len() as u64);
        }
    }
}

/// The machine's own datagrams are only put in order.
fn own_datagrams_pass_in_every_order<F: TestFamily>() {
    let own = datagram::<F>(61_001, Body::Udp).with(|p| p.dst = at(F::LISTEN, 22));
    let icmp = own.with(|p| p.body = Body::Icmp(3));
    for packet in [own, icmp] {
        let all = pieces(packet.transport_length(), 40);
        for order in orders(all.len()) {
            let world = World::<F>::with_rule(Source::Preserved);
            let mut passed = vec![];
            for piece in &order {
                for (verdict, frame) in world.arrives(packet.fragment(1, &all[*piece])) {
                    assert!(verdict.outcome.kind() == Kind::Pass, "{verdict:?}");
                    passed.push(frame);
                }
            }
            let mut wanted: Vec<_> = all.iter().map(|piece| packet.fragment(1, piece)).collect();
            passed.sort();
            wanted.sort();
            assert_eq!(passed, wanted, "{order:?}");
        }
    }
}

/// Datagrams that arrive all mixed up: each fragment leaves with its own.
fn datagrams_that_mix_in_any_order<F: TestFamily>() {
    use proptest::prelude::*;
    let packets = [
        (1, datagram::<F>(61_001, Body::Udp)),
        (2, datagram::<F>(61_003, Body::Udp)),
        (1, datagram::<F>(61_005, Body::Tcp(2)).with(|p| p.src = at(F::OTHER_CLIENT, 61_005))),
    ];
    let mut frames = vec![];
    let mut wanted = vec![];
    for (identification, packet) in &packets {
        let becomes = packet.forwarded(at(F::OURS, packet.src.port()), at(F::BACKEND, 8080));
        for piece in cut(packet) {
            frames.push(packet.fragment(*identification, &piece));
            wanted.push(becomes.fragment(*identification, &piece));
        }
    }
    wanted.sort();
    let runner = &mut proptest::test_runner::TestRunner::default();
    runner
        .run(&Just(frames).prop_shuffle(), |frames| {
            let world = World::<F>::with_rule(Source::Address(F::OURS));
            let mut left: Vec<_> =
                frames.into_iter().flat_map(|frame| world.arrives(frame)).map(|(_, bytes)| bytes).collect();
            left.sort();
            prop_assert_eq!(&left, &wanted);
            Ok(())
        })
        .unwrap();
}

/// The first is noted by another CPU after this one has looked for the note: then this one looks again.
fn a_fragment_and_its_first_on_two_cpus_at_once<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    let packet = datagram::<F>(61_001, Body::Udp);
    let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
    let all = cut(&packet);
    let rewrite = world.process_bytes(Hook::Tc, packet.frame());
    assert_eq!(rewrite.0.outcome, Outcome::Forwarded);
    let key = F::fragment(&packet.fragment(1, &all[0]).as_mut_slice(), crate::test_packet::NETWORK).unwrap().datagram;
    // What a first fragment leaves.
    world.sends(1, &packet, &becomes, &all[0]);
    let noted = world.tables.datagrams.borrow_mut().remove(&key).unwrap();
    *world.tables.while_holding.borrow_mut() =
        Some(std::boxed::Box::new(move |tables| tables.note_datagram(&key, &noted)));
    let left = world.arrives(packet.fragment(1, &all[1]));
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].0.outcome, &left[0].1), (Outcome::Forwarded, &becomes.fragment(1, &all[1])));
    assert!(world.tables.held.borrow().is_empty());
}

/// A flood of fragments without first takes no more memory than there is, and what comes in order does not notice.
fn a_flood_of_fragments_without_first<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let packet = datagram::<F>(61_001, Body::Udp);
    let becomes = packet.forwarded(at(F::OURS, 61_001), at(F::BACKEND, 8080));
    let all = cut(&packet);
    for n in 0..1000 {
        world.keeps(1000 + n, &packet, &all[1], Outcome::HeldForFirst);
        let piece = n as usize % all.len();
        world.sends(1, &packet, &becomes, &all[0]);
        world.sends(1, &packet, &becomes, &all[piece]);
    }
    assert_eq!(world.tables.held.borrow().len(), 64);
    assert_eq!(world.tables.datagrams.borrow().len(), 1);
}

fn a_first_fragment_that_passes_lets_the_others_pass<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    let own = datagram::<F>(61_001, Body::Udp).with(|p| p.dst = at(F::LISTEN, 22));
    let all = cut(&own);
    world.keeps(1, &own, &all[0], Outcome::NotOurs);
    all[1..].iter().for_each(|piece| world.keeps(1, &own, piece, Outcome::Fragment));
    // The identification comes round again: the latest first fragment counts.
    let packet = datagram::<F>(61_001, Body::Udp);
    let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
    all[..2].iter().for_each(|piece| world.sends(1, &packet, &becomes, piece));
    world.keeps(1, &own, &all[0], Outcome::NotOurs);
    all[1..].iter().for_each(|piece| world.keeps(1, &own, piece, Outcome::Fragment));
    all[..2].iter().for_each(|piece| world.sends(1, &packet, &becomes, piece));
}

fn a_first_fragment_that_is_dropped_has_the_others_dropped<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    world.tables.rules.get_mut(&1).unwrap().flags |= crate::abi::rule_flags::ALLOW;
    let packet = datagram::<F>(61_001, Body::Udp);
    let all = cut(&packet);
    world.keeps(1, &packet, &all[0], Outcome::DropNotAllowed);
    all[1..].iter().for_each(|piece| world.keeps(1, &packet, piece, Outcome::DropFragment));
}

/// RFC 1858 section 4.2, RFC 3128: the second fragment would change the ports or flags that let the first in.
fn nothing_lies_over_a_forwarded_transport_header<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    for (body, header) in [(Body::Tcp(2), 20), (Body::Udp, 8)] {
        let packet = datagram::<F>(61_001, body);
        let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
        let length = packet.transport_length();
        world.sends(1, &packet, &becomes, &Piece { bytes: 0..48, more: true });
        for start in [8, 16, 24] {
            let piece = Piece { bytes: start..length, more: false };
            if start < header {
                world.keeps(1, &packet, &piece, Outcome::DropFragment);
            } else {
                // What else lies over another is the receiver's business.
                world.sends(1, &packet, &becomes, &piece);
            }
        }
    }
}

/// RFC 1858 section 3, RFC 7112 section 5.
fn a_first_fragment_without_its_ports_is_not_forwarded<F: TestFamily>() {
    for (body, header) in [(Body::Tcp(2), 20), (Body::Sctp, 12), (Body::Udp, 8)] {
        let world = World::<F>::with_rule(Source::Preserved);
        let packet = datagram::<F>(61_001, body);
        let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
        for size in [8, 16, 24] {
            let first = Piece { bytes: 0..size, more: true };
            if size < header {
                world.keeps(1, &packet, &first, Outcome::DropFragment);
                world.keeps(1, &packet, &Piece { bytes: 24..48, more: true }, Outcome::DropFragment);
            } else if body != Body::Sctp {
                world.sends(2, &packet, &becomes, &first);
                // The datagram is known now: a second beginning of it, without ports, changes nothing.
                if header > 8 {
                    world.keeps(2, &packet, &Piece { bytes: 0..8, more: true }, Outcome::DropFragment);
                }
                world.sends(2, &packet, &becomes, &Piece { bytes: 24..48, more: true });
            }
        }
    }
}

fn a_datagram_is_forgotten_after_a_minute<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    let packet = datagram::<F>(61_001, Body::Udp);
    let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
    let all = cut(&packet);
    world.sends(1, &packet, &becomes, &all[0]);
    world.tables.wait(LIFETIME);
    world.sends(1, &packet, &becomes, &all[1]);
    world.tables.wait(1);
    world.keeps(1, &packet, &all[2], Outcome::HeldForFirst);
}

fn what_stops_a_packet_stops_a_fragment<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    let packet = datagram::<F>(61_001, Body::Udp);
    let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
    let all = cut(&packet);
    world.sends(1, &packet, &becomes, &all[0]);
    world.keeps(1, &packet.with(|p| p.hop_limit = 1), &all[1], Outcome::DropTtl);
    let header = if F::CLIENT.is_ipv4() { 20 } else { 48 };
    world.tables.default_hop.mtu = header + 24;
    world.sends(1, &packet, &becomes, &all[1]);
    world.tables.default_hop.mtu = header + 23;
    world.keeps(1, &packet, &all[1], Outcome::DropTooBig);
    for state in [NextHopState::Unreachable, NextHopState::Local, NextHopState::Unknown] {
        world.tables.default_hop.state = state;
        world.keeps(1, &packet, &all[1], Outcome::DropNoRoute);
    }
    // The neighbour has to be resolved, or asked again.
    world.tables.default_hop = Hop { state: NextHopState::Unresolved, ..crate::tables::memory::HOP };
    let (verdict, bytes) = world.process_bytes(Hook::Tc, packet.fragment(1, &all[1]));
    assert_eq!((verdict.outcome, bytes), (Outcome::ForwardedByNeighbour, becomes.fragment(1, &all[1])));
    // A whole address has rules for what has no ports.
    let mut world = World::<F>::new();
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved);
    for body in [Body::EchoRequest, Body::Sctp, Body::Other(47)] {
        let packet = datagram::<F>(61_001, body);
        let becomes = packet.forwarded(packet.src, at(F::BACKEND, packet.dst.port()));
        for piece in &cut(&packet) {
            world.sends(9, &packet, &becomes, piece);
        }
    }
}
