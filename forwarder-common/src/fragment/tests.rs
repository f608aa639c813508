#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{net::SocketAddr, vec::Vec};

use super::*;
use crate::{
    test_packet::{Body, Piece, TestPacket, at, pieces},
    test_world::{Hook, Source, TestFamily, World, both_families},
};

both_families!(
    in_order_every_fragment_goes_the_way_of_the_first,
    the_fragments_of_replies,
    datagrams_that_mix,
    without_their_first_they_pass,
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
        assert_eq!((verdict, bytes), (Verdict::of(outcome), frame), "{piece:?} of {packet:?}");
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
                all.iter().for_each(|piece| world.sends(identification, &packet, &becomes, piece));
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
        cut(&answer).iter().for_each(|piece| world.sends(7, &answer, &becomes, piece));
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

fn without_their_first_they_pass<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    let packet = datagram::<F>(61_001, Body::Udp);
    let all = cut(&packet);
    all[1..].iter().for_each(|piece| world.keeps(1, &packet, piece, Outcome::Fragment));
    // Of another datagram, another sender, to another address, of another protocol.
    let becomes = packet.forwarded(packet.src, at(F::BACKEND, 8080));
    world.sends(1, &packet, &becomes, &all[0]);
    world.keeps(2, &packet, &all[1], Outcome::Fragment);
    world.keeps(1, &packet.with(|p| p.src = at(F::OTHER_CLIENT, 61_001)), &all[1], Outcome::Fragment);
    world.keeps(1, &packet.with(|p| p.dst = at(F::OTHER_LISTEN, 80)), &all[1], Outcome::Fragment);
    if F::CLIENT.is_ipv4() {
        world.keeps(1, &packet.with(|p| p.body = Body::Tcp(0)), &all[1], Outcome::Fragment);
    } else {
        // RFC 8200 section 4.5: only what the first fragment says of the next header counts.
        let strange = packet.with(|p| p.body = Body::Other(47));
        let becomes = strange.forwarded(strange.src, at(F::BACKEND, 8080));
        world.sends(1, &strange, &becomes, &all[1]);
    }
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
                world.keeps(1, &packet, &first, Outcome::Fragment);
                world.keeps(1, &packet, &Piece { bytes: 24..48, more: true }, Outcome::Fragment);
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
    world.keeps(1, &packet, &all[2], Outcome::Fragment);
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
        cut(&packet).iter().for_each(|piece| world.sends(9, &packet, &becomes, piece));
    }
}
