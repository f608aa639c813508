#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{net::SocketAddr, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::Flow,
    test_packet::{Body, NETWORK, TestPacket, at, flags, wrongness},
    test_world::{TestFamily, World, both_families},
};

both_families!(
    every_body_becomes_the_packet_built_with_the_other_ends,
    any_payload_and_ends,
    a_wrong_checksum_stays_exactly_as_wrong,
    a_checksum_of_zero,
    a_refused_checksum_change_leaves_the_packet_alone,
    the_peer_of_a_flow_undoes_it,
);

const BODIES: [Body; 8] = [
    Body::Tcp(flags::ACK),
    Body::Udp,
    Body::UdpUnsummed,
    Body::EchoRequest,
    Body::EchoReply,
    Body::Sctp,
    Body::Dccp,
    Body::Other(47),
];

/// What a flow of this packet towards these ends would say: deltas of each changed word, one by one.
fn rewrite<F: TestFamily>(packet: &TestPacket, src: SocketAddr, dst: SocketAddr) -> Rewrite<F::Address> {
    let old = World::<F>::key(packet);
    let new = World::<F>::key(&TestPacket { src, dst, ..packet.clone() });
    let addresses = Delta::address(old.src, new.src).and(Delta::address(old.dst, new.dst));
    let ports = Delta::word(old.src_port, new.src_port).and(Delta::word(old.dst_port, new.dst_port));
    Rewrite {
        src: new.src,
        dst: new.dst,
        src_port: new.src_port,
        dst_port: new.dst_port,
        address_delta: addresses.0,
        port_delta: ports.0,
    }
}

/// Protocols without changeable ports keep theirs.
fn ends<F: TestFamily>(packet: &TestPacket, src_port: u16, dst_port: u16) -> (SocketAddr, SocketAddr) {
    let fixed = matches!(packet.body, Body::Sctp | Body::Other(_));
    let port = |new, old: SocketAddr| if fixed { old.port() } else { new };
    (at(F::OURS, port(src_port, packet.src)), at(F::BACKEND, port(dst_port, packet.dst)))
}

fn applied<F: TestFamily>(mut frame: Vec<u8>, rewrite: &Rewrite<F::Address>) -> Vec<u8> {
    let mut packet = frame.as_mut_slice();
    let parsed = F::walk(&packet, NETWORK).unwrap();
    apply::<F>(&mut packet, (NETWORK, parsed.transport_at()), &parsed, rewrite).unwrap();
    frame
}

fn every_body_becomes_the_packet_built_with_the_other_ends<F: TestFamily>() {
    for body in BODIES {
        for hop_limit in [2, 64, 128, 255] {
            let packet = TestPacket::new(at(F::CLIENT, 40001), at(F::LISTEN, 80), body)
                .with(|p| p.hop_limit = hop_limit)
                .with(|p| p.trailer = vec![0xee; 9]);
            let (src, dst) = ends::<F>(&packet, 61234, 8080);
            let bytes = applied::<F>(packet.frame(), &rewrite::<F>(&packet, src, dst));
            assert_eq!(bytes, packet.forwarded(src, dst).frame(), "{packet:?}");
        }
    }
}

type AnyPacket = (usize, [u16; 4], Vec<u8>, u8);

/// Which body, four ports, payload, hop limit.
fn any_packet() -> impl Strategy<Value = AnyPacket> {
    (0..BODIES.len(), any::<[u16; 4]>(), proptest::collection::vec(any::<u8>(), 0..64usize), 2..=255u8)
}

fn any_payload_and_ends<F: TestFamily>() {
    let runner = &mut proptest::test_runner::TestRunner::default();
    let check = |(body, [a, b, c, d], payload, hop_limit): AnyPacket| {
        let packet = TestPacket::new(at(F::CLIENT, a), at(F::LISTEN, b), BODIES[body])
            .with(|p| (p.payload, p.hop_limit) = (payload, hop_limit));
        let (src, dst) = ends::<F>(&packet, c, d);
        let bytes = applied::<F>(packet.frame(), &rewrite::<F>(&packet, src, dst));
        prop_assert_eq!(bytes, packet.forwarded(src, dst).frame());
        Ok(())
    };
    runner.run(&any_packet(), check).unwrap();
}

fn a_wrong_checksum_stays_exactly_as_wrong<F: TestFamily>() {
    let runner = &mut proptest::test_runner::TestRunner::default();
    let check = |((body, [a, b, c, d], payload, hop_limit), place, noise): (AnyPacket, usize, u8)| {
        let packet: TestPacket = TestPacket::new(at(F::CLIENT, a), at(F::LISTEN, b), BODIES[body])
            .with(|p| (p.payload, p.hop_limit) = (payload, hop_limit));
        let mut frame = packet.frame();
        // Bytes that a rewrite does not set, after the ports: the parser has checked IPv4's header.
        let header = if F::CLIENT.is_ipv4() { 20 } else { 40 };
        let places: Vec<usize> = (header + 8..frame.len() - NETWORK).collect();
        prop_assume!(!places.is_empty());
        let damaged = NETWORK + places[place % places.len()];
        frame[damaged] ^= noise;
        let before = wrongness(&frame);
        let (src, dst) = ends::<F>(&packet, c, d);
        let after = wrongness(&applied::<F>(frame, &rewrite::<F>(&packet, src, dst)));
        prop_assume!(packet.body != Body::UdpUnsummed);
        prop_assert_eq!(after, before);
        Ok(())
    };
    runner.run(&(any_packet(), any::<usize>(), any::<u8>()), check).unwrap();
}

/// It says nothing but that the sum is so, apart from UDP, where it is sent as all ones.
fn a_checksum_of_zero<F: TestFamily>() {
    for body in [Body::Tcp(flags::ACK), Body::Udp, Body::EchoRequest, Body::EchoReply, Body::Dccp] {
        let packet = TestPacket::new(at(F::CLIENT, 40001), at(F::LISTEN, 80), body).with(|p| p.payload = vec![7; 8]);
        let (src, dst) = ends::<F>(&packet, 61234, 8080);
        let before = packet.summing_to_zero();
        let after = TestPacket { src, dst, ..packet }.summing_to_zero();
        let after = TestPacket { src: before.src, dst: before.dst, ..after };
        for packet in [before, after] {
            let bytes = applied::<F>(packet.frame(), &rewrite::<F>(&packet, src, dst));
            assert_eq!(bytes, packet.forwarded(src, dst).frame(), "{packet:?}");
        }
    }
}

/// A hook that cannot change the checksum.
struct Refusing<'a>(&'a mut [u8]);

impl Packet for Refusing<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.0.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }
    fn length(&self) -> usize {
        self.0.len()
    }
    fn change_checksum(&mut self, _: ChecksumChange) -> Option<()> {
        None
    }
}

fn a_refused_checksum_change_leaves_the_packet_alone<F: TestFamily>() {
    for body in &BODIES[..5] {
        let packet = TestPacket::new(at(F::CLIENT, 40001), at(F::LISTEN, 80), *body);
        let (src, dst) = ends::<F>(&packet, 61234, 8080);
        let mut frame = packet.frame();
        let mut refusing = Refusing(&mut frame);
        let parsed = F::walk(&refusing, NETWORK).unwrap();
        assert_eq!(
            apply::<F>(&mut refusing, (NETWORK, parsed.transport_at()), &parsed, &rewrite::<F>(&packet, src, dst)),
            None
        );
        assert_eq!(frame, packet.frame());
    }
}

fn the_peer_of_a_flow_undoes_it<F: TestFamily>() {
    let answers = [
        (Body::Tcp(flags::ACK), Body::Tcp(flags::ACK)),
        (Body::Udp, Body::Udp),
        (Body::EchoRequest, Body::EchoReply),
        (Body::Other(47), Body::Other(47)),
    ];
    for (body, answer) in answers {
        let port = |port| if matches!(body, Body::Other(_)) { 0 } else { port };
        let packet = TestPacket::new(at(F::CLIENT, port(40001)), at(F::LISTEN, port(80)), body);
        // An echo has one identifier, which both directions carry.
        let (src, dst) = (at(F::OURS, port(61234)), at(F::BACKEND, port(8080)));
        let key = World::<F>::key(&packet);
        let flow = Flow { rewrite: rewrite::<F>(&packet, src, dst), ..Flow::default() };
        let peer = flow.peer(&key);
        let reply = packet.forwarded(src, dst).answer(answer).with(|p| p.hop_limit = 64);
        assert_eq!(World::<F>::key(&reply), flow.peer_key(key.protocol));
        let bytes = applied::<F>(reply.frame(), &peer.rewrite);
        assert_eq!(bytes, reply.forwarded(packet.dst, packet.src).frame());
        assert_eq!(peer.peer_key(key.protocol), key);
        let again = peer.peer(&flow.peer_key(key.protocol));
        assert_eq!((again.rewrite, again.direction()), (flow.rewrite, flow.direction()));
    }
}
