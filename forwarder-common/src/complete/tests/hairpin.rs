//! Clients in the backend's own network: it would answer them directly, so it sees an address of ours.

use core::net::IpAddr;

use super::*;
use crate::{
    abi::setting_flags,
    test_world::{flipped, mask},
};

both_families!(
    clients_of_the_backends_network_are_masqueraded,
    the_network_ends_where_its_mask_ends,
    both_sides_with_the_same_port_of_one_address,
    protocols_without_ports,
    only_with_its_flag,
);

/// An address near the backend's.
fn neighbour<F: TestFamily>() -> IpAddr {
    flipped(F::BACKEND, 5)
}

/// One further away.
fn stranger<F: TestFamily>() -> IpAddr {
    flipped(F::BACKEND, 10)
}

/// The usual rule, with a network of 2^`bits` addresses around its backend; stateless or not.
fn world<F: TestFamily>(bits: u32, source: Source) -> World<F> {
    let mut world = World::<F>::with_rule(source);
    make_hairpin::<F>(&mut world, bits);
    world.tables.settings.flags &= !setting_flags::FLOWS;
    world
}

fn make_hairpin<F: TestFamily>(world: &mut World<F>, bits: u32) {
    for rule in world.tables.rules.values_mut() {
        rule.flags |= rule_flags::HAIRPIN;
        rule.source = F::address(F::OURS);
        rule.mask = mask::<F>(if F::BACKEND.is_ipv4() { 32 } else { 128 } - bits);
    }
    world.tables.settings.flags |= setting_flags::HAIRPIN;
}

fn clients_of_the_backends_network_are_masqueraded<F: TestFamily>() {
    let bodies = [
        (Body::Tcp(flags::SYN), Body::Tcp(flags::SYN_ACK), Body::Tcp(flags::ACK)),
        (Body::Udp, Body::Udp, Body::Udp),
        (Body::UdpUnsummed, Body::UdpUnsummed, Body::UdpUnsummed),
    ];
    for (request, reply, again) in bodies {
        for client in [neighbour::<F>(), F::BACKEND] {
            let world = world::<F>(10, Source::Preserved);
            let packet = TestPacket::new(at(client, 61_001), at(F::LISTEN, 80), request);
            world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
            let answer = opens(&world, &packet, reply);
            assert_eq!(answer.dst, at(F::OURS, 61_001));
            world.back(&answer, packet.dst, packet.src);
            let packet = packet.with(|p| p.body = again);
            world.out(&packet, at(F::OURS, 61_001), at(F::BACKEND, 8080));
            world.back(&answer.with(|p| p.body = again), packet.dst, packet.src);
            assert_eq!(world.entries(), (2, 0));
            // Whoever is not of that network is seen as ever, and answered without a flow.
            let other = TestPacket::new(at(F::CLIENT, 61_001), at(F::LISTEN, 80), again);
            for hook in [Hook::Xdp, Hook::Tc] {
                world.forwards(hook, &other, Direction::Forward, &other.forwarded(other.src, at(F::BACKEND, 8080)));
                let back = other.with(|p| (p.src, p.dst) = (at(F::BACKEND, 8080), other.src));
                world.forwards(hook, &back, Direction::Reply, &back.forwarded(other.dst, other.src));
            }
            assert_eq!(world.entries(), (2, 0));
        }
    }
}

fn the_network_ends_where_its_mask_ends<F: TestFamily>() {
    // bits of the network, whether the neighbour (bit 5) and the stranger (bit 10) are in it
    for (bits, near, far) in
        [(0, false, false), (5, false, false), (6, true, false), (10, true, false), (11, true, true)]
    {
        for source in [Source::Preserved, Source::PreservedByFlow] {
            let mut all = world::<F>(bits, source);
            all.tables.settings.flags |= setting_flags::FLOWS;
            for (client, hidden) in [(F::BACKEND, true), (neighbour::<F>(), near), (stranger::<F>(), far)] {
                let packet = TestPacket::new(at(client, 61_001), at(F::LISTEN, 80), Body::Udp);
                let (verdict, bytes) = all.process_bytes(Hook::Tc, packet.frame());
                assert_eq!(verdict.outcome, Outcome::Forwarded);
                if !hidden {
                    assert_eq!(bytes, packet.forwarded(packet.src, at(F::BACKEND, 8080)).frame(), "{bits} {client}");
                }
                assert_eq!(all.flow(&packet).is_some(), hidden || source != Source::Preserved, "{bits} {client}");
                let src = all.flow(&packet).map_or(F::address(client), |flow| flow.rewrite.src);
                assert_eq!(src, F::address(if hidden { F::OURS } else { client }), "{bits} {client}");
            }
        }
    }
}

/// The backend asks its own service from the port that the service has, and the address it sees is the listen's own:
/// both directions look alike, and one entry serves both.
fn both_sides_with_the_same_port_of_one_address<F: TestFamily>() {
    let mut world = World::<F>::new();
    world.forward(at(F::LISTEN, 61_001), at(F::BACKEND, 61_001), Source::Preserved);
    make_hairpin::<F>(&mut world, 0);
    for rule in world.tables.rules.values_mut() {
        rule.source = F::address(F::LISTEN);
    }
    let packet = TestPacket::new(at(F::BACKEND, 61_001), at(F::LISTEN, 61_001), Body::Udp);
    for _ in 0..3 {
        let (verdict, bytes) = world.process_bytes(Hook::Tc, packet.frame());
        assert_eq!(verdict, Verdict::transmit(HOP));
        assert_eq!(bytes, packet.forwarded(packet.dst, packet.src).frame());
    }
}

fn protocols_without_ports<F: TestFamily>() {
    let mut world = World::<F>::new();
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved);
    make_hairpin::<F>(&mut world, 10);
    for (body, port) in [(Body::EchoRequest, 7), (Body::Sctp, 9), (Body::Other(47), 0), (Body::Other(50), 0)] {
        let packet = TestPacket::new(at(neighbour::<F>(), port), at(F::LISTEN, port), body);
        world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
        world.out(&packet, at(F::OURS, port), at(F::BACKEND, port));
        let reply = if body == Body::EchoRequest { Body::EchoReply } else { body };
        let back = TestPacket::new(at(F::BACKEND, port), at(F::OURS, port), reply);
        world.back(&back, packet.dst, packet.src);
    }
}

fn only_with_its_flag<F: TestFamily>() {
    let mut world = world::<F>(10, Source::Preserved);
    for rule in world.tables.rules.values_mut() {
        rule.flags &= !rule_flags::HAIRPIN;
    }
    let packet = TestPacket::new(at(neighbour::<F>(), 61_001), at(F::LISTEN, 80), Body::Udp);
    for hook in [Hook::Xdp, Hook::Tc] {
        world.forwards(hook, &packet, Direction::Forward, &packet.forwarded(packet.src, at(F::BACKEND, 8080)));
    }
    assert_eq!(world.entries(), (0, 0));
}
