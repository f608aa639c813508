//! One prefix onto another, on both hooks.
#![allow(clippy::panic, reason = "a panic in a test is a failed test")]

use core::net::IpAddr;
use std::vec::Vec;

use super::*;
use crate::{
    prefix,
    test_world::{flipped, ip, mappable},
};

both_families!(
    every_protocol_both_ways,
    two_hosts_inside,
    what_is_mapped_onto_this_machine_is_its_own,
    a_more_specific_rule_that_keeps_flows,
);

const BODIES: [Body; 9] = [
    Body::Tcp(flags::SYN),
    Body::Tcp(flags::RST),
    Body::Udp,
    Body::UdpUnsummed,
    Body::EchoRequest,
    Body::EchoReply,
    Body::Sctp,
    Body::Other(47),
    Body::Other(50),
];

/// Bits of the prefixes: for IPv6 the subnet changes, or the interface identifier.
fn lengths<F: TestFamily>() -> Vec<u32> {
    if F::LISTEN.is_ipv4() { vec![8, 24, 29] } else { vec![48, 64] }
}

/// The rule, and three of its outer addresses with their inner counterparts.
fn world<F: TestFamily>(bits: u32) -> (World<F>, Vec<(IpAddr, IpAddr)>) {
    let mut world = World::<F>::new();
    let [listen, backend] = [F::LISTEN, F::BACKEND].map(mappable);
    let slot = world.forward_prefix(listen, backend, bits);
    let rule = world.tables.rules[&slot];
    let outer = [listen, flipped(listen, 1), flipped(listen, 2)];
    let pairs = outer.map(|outer| (outer, ip::<F>(prefix::inside(&rule, F::address(outer)).unwrap())));
    (world, pairs.to_vec())
}

fn every_protocol_both_ways<F: TestFamily>() {
    for bits in lengths::<F>() {
        let (world, pairs) = world::<F>(bits);
        for (outer, inner) in pairs {
            for body in BODIES {
                let port = if matches!(body, Body::Other(_)) { 0 } else { 9 };
                let there = TestPacket::new(at(F::CLIENT, port), at(outer, port), body);
                let back = TestPacket::new(at(inner, port), at(F::CLIENT, port), body);
                for hook in [Hook::Xdp, Hook::Tc] {
                    let arrives = there.forwarded(there.src, at(inner, port));
                    world.forwards(hook, &there, Direction::Forward, &arrives);
                    world.forwards(hook, &back, Direction::Reply, &back.forwarded(at(outer, port), back.dst));
                }
                // With options, past XDP.
                let options = there.with(|p| p.options = vec![1; 4]).with(|p| p.extensions = vec![(60, vec![1; 6])]);
                world.out(&options, there.src, at(inner, port));
            }
        }
        assert_eq!(world.entries(), (0, 0));
    }
}

fn two_hosts_inside<F: TestFamily>() {
    for bits in lengths::<F>() {
        let (world, pairs) = world::<F>(bits);
        let [(outer, inner), (other_outer, other_inner), _] = pairs[..] else { panic!("three") };
        for body in [Body::Tcp(flags::SYN), Body::Udp, Body::UdpUnsummed, Body::Other(47)] {
            let port = if matches!(body, Body::Other(_)) { 0 } else { 9 };
            let there = TestPacket::new(at(inner, port), at(other_outer, port), body);
            let back = TestPacket::new(at(other_inner, port), at(outer, port), body);
            for hook in [Hook::Xdp, Hook::Tc] {
                let arrives = there.forwarded(at(outer, port), at(other_inner, port));
                world.forwards(hook, &there, Direction::Forward, &arrives);
                let answers = back.forwarded(at(other_outer, port), at(inner, port));
                world.forwards(hook, &back, Direction::Forward, &answers);
            }
        }
    }
}

fn what_is_mapped_onto_this_machine_is_its_own<F: TestFamily>() {
    for bits in lengths::<F>() {
        let (mut world, pairs) = world::<F>(bits);
        let (outer, inner) = pairs[1];
        world.tables.hops.insert(F::address(inner), Hop { state: NextHopState::Local, ..HOP });
        let packet = TestPacket::new(at(F::CLIENT, 9), at(outer, 22), Body::Tcp(flags::SYN));
        world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
        world.leaves(Hook::Tc, &packet, Outcome::ToSelf);
        let own = world.tables.hops.clone();
        world.tables.hops =
            own.into_iter().chain([(F::address(F::CLIENT), Hop { state: NextHopState::Local, ..HOP })]).collect();
        let (_, inner) = pairs[2];
        let to_us = TestPacket::new(at(inner, 9), at(F::CLIENT, 22), Body::Tcp(flags::SYN));
        world.leaves(Hook::Tc, &to_us, Outcome::ToSelf);
    }
}

/// Its backend is one of the inner hosts, and it shows it the clients: the first answer must not take the prefix's way.
fn a_more_specific_rule_that_keeps_flows<F: TestFamily>() {
    let bits = lengths::<F>()[0];
    let (mut world, pairs) = world::<F>(bits);
    let (_, inner) = pairs[1];
    world.forward(at(F::OTHER_CLIENT, 80), at(inner, 8080), Source::PreservedByFlow);
    let request = TestPacket::new(at(F::CLIENT, 9), at(F::OTHER_CLIENT, 80), Body::Udp);
    let answer = TestPacket::new(at(inner, 8080), request.src, Body::Udp);
    world.out(&request, request.src, answer.src);
    world.leaves(Hook::Xdp, &answer, Outcome::ToTc);
    world.back(&answer, request.dst, request.src);
    world.out(&request, request.src, answer.src);
    world.forwards(Hook::Xdp, &answer, Direction::Reply, &answer.forwarded(request.dst, request.src));
    // What answers nothing of that rule takes the prefix's way.
    let own = answer.with(|p| p.dst.set_port(10));
    world.forwards(Hook::Xdp, &own, Direction::Reply, &own.forwarded(at(pairs[1].0, 8080), own.dst));
}

/// An IPv6 address that cannot be mapped.
#[test]
fn a_host_without_counterpart() {
    use crate::parse::Ipv6;
    let mut world = World::<Ipv6>::new();
    world.forward_prefix(Ipv6::LISTEN, Ipv6::BACKEND, 64);
    let ones = |prefix: IpAddr| match prefix {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) | u128::from(u64::MAX)).into()),
        IpAddr::V4(_) => prefix,
    };
    let there = TestPacket::new(at(Ipv6::CLIENT, 9), at(ones(Ipv6::LISTEN), 9), Body::Udp);
    let back = TestPacket::new(at(ones(Ipv6::BACKEND), 9), at(Ipv6::CLIENT, 9), Body::Udp);
    let between = TestPacket::new(at(ones(Ipv6::BACKEND), 9), at(Ipv6::LISTEN, 9), Body::Udp);
    for packet in [there, back, between] {
        world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
        world.leaves(Hook::Tc, &packet, Outcome::DropNoMapping);
    }
}
