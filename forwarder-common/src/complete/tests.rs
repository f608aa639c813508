#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod hairpin;
mod life;
mod prefix;
mod queries;
mod sharing;

use std::vec;

use super::*;
use crate::abi::rule_flags;
use crate::{
    abi::{Direction, FlowKey},
    tables::{
        Hop,
        memory::{HOP, TIMEOUTS},
    },
    test_packet::{Body, NETWORK, Segmented, TestPacket, at, flags},
    test_world::{Hook, Source, TestFamily, World, both_families},
};

both_families!(
    stateless_rules_forward_both_ways_and_keep_nothing,
    options_and_extension_headers_are_forwarded,
    what_no_rule_names_is_untouched,
    the_last_hop,
    every_next_hop,
    what_is_too_big,
    segments_are_measured_not_the_packet_they_are_cut_from,
    clients_that_are_not_allowed,
    replies_to_the_machine_itself_are_its_own,
    nothing_from_outside_is_from_ourselves,
    a_packet_that_cannot_be_changed_is_dropped,
);

/// A client's packet to the usual rule's listen.
fn to<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, port), at(F::LISTEN, 80), body)
}

/// What the backend answers to a packet whose flow is there.
fn answer<F: TestFamily>(world: &World<F>, packet: &TestPacket, body: Body) -> TestPacket {
    let rewrite = world.flow(packet).unwrap().rewrite;
    let src = if rewrite.src == F::address(F::OURS) { F::OURS } else { packet.src.ip() };
    let [src_port, dst_port] = [rewrite.src_port, rewrite.dst_port].map(u16::from_be);
    TestPacket { src: at(F::BACKEND, dst_port), dst: at(src, src_port), body, ..packet.clone() }
}

/// The first packet of a flow goes through; returns the backend's answer to it.
#[track_caller]
fn opens<F: TestFamily>(world: &World<F>, packet: &TestPacket, answer_body: Body) -> TestPacket {
    let (verdict, bytes) = world.process_bytes(Hook::Tc, packet.frame());
    assert_eq!(verdict, Verdict::transmit(HOP), "{packet:?}");
    let answer = answer(world, packet, answer_body);
    assert_eq!(bytes, packet.forwarded(answer.dst, answer.src).frame());
    answer
}

fn stateless_rules_forward_both_ways_and_keep_nothing<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    world.forward_address(F::OTHER_LISTEN, F::OTHER_CLIENT, Source::Preserved);
    for body in [Body::Tcp(flags::SYN), Body::Tcp(flags::RST), Body::Udp, Body::UdpUnsummed] {
        let there = to::<F>(40001, body);
        world.out(&there, there.src, at(F::BACKEND, 8080));
        let back = TestPacket::new(at(F::BACKEND, 8080), at(F::CLIENT, 40001), body);
        world.back(&back, there.dst, there.src);
    }
    for body in [Body::EchoRequest, Body::EchoReply, Body::Sctp, Body::Other(47)] {
        let there = to::<F>(40001, body).with(|p| p.dst = at(F::OTHER_LISTEN, 9));
        world.out(&there, there.src, at(F::OTHER_CLIENT, 9));
        let back = TestPacket::new(at(F::OTHER_CLIENT, 9), at(F::CLIENT, 40001), body);
        world.back(&back, there.dst, there.src);
    }
    assert_eq!(world.entries(), (0, 0));
    assert!(world.tables.counted.borrow().values().all(|counted| counted.events.is_empty()));
}

fn options_and_extension_headers_are_forwarded<F: TestFamily>() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        for body in [Body::Tcp(flags::SYN), Body::Udp] {
            let world = World::<F>::with_rule(source);
            let packet = to::<F>(61_001, body)
                .with(|p| p.options = vec![1; 12])
                .with(|p| p.extensions = vec![(0, vec![0; 6]), (60, vec![1; 14])]);
            let src = if source == Source::Address(F::OURS) { at(F::OURS, 61_001) } else { packet.src };
            world.out(&packet, src, at(F::BACKEND, 8080));
        }
    }
}

fn what_no_rule_names_is_untouched<F: TestFamily>() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        let world = World::<F>::with_rule(source);
        for body in [Body::Tcp(flags::SYN), Body::Tcp(flags::ACK), Body::Udp, Body::Sctp] {
            let ssh = to::<F>(40001, body).with(|p| p.dst = at(F::LISTEN, 22));
            world.leaves(Hook::Tc, &ssh, Outcome::NotOurs);
            // A reply that no flow knows, also one of a backend.
            let stray = TestPacket::new(at(F::BACKEND, 8080), at(F::OURS, 61_001), body);
            if source != Source::Preserved {
                world.leaves(Hook::Tc, &stray, Outcome::NotOurs);
            }
        }
        world.leaves(Hook::Tc, &to::<F>(0, Body::EchoRequest), Outcome::NotOurs);
        world.leaves(Hook::Tc, &to::<F>(0, Body::EchoReply), Outcome::NotOurs);
        world.leaves(Hook::Tc, &to::<F>(0, Body::Other(47)), Outcome::NotOurs);
        world.leaves(Hook::Tc, &to::<F>(0, Body::Icmp(135)), Outcome::IcmpOther);
        let fragment = to::<F>(40001, Body::Udp)
            .with(|p| p.dst = at(F::OTHER_LISTEN, 80))
            .with(|p| p.fragment = 0x2001)
            .with(|p| p.extensions = vec![(44, vec![0, 9, 0, 0, 0, 1])]);
        world.leaves(Hook::Tc, &fragment, Outcome::Fragment);
        assert_eq!(world.entries(), (0, 0));
    }
}

fn the_last_hop<F: TestFamily>() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        for (hop_limit, forwarded) in [(0, false), (1, false), (2, true), (255, true)] {
            let world = World::<F>::with_rule(source);
            let packet = to::<F>(61_001, Body::Udp).with(|p| p.hop_limit = hop_limit);
            if forwarded {
                let src = if source == Source::Address(F::OURS) { at(F::OURS, 61_001) } else { packet.src };
                world.out(&packet, src, at(F::BACKEND, 8080));
            } else {
                world.leaves(Hook::Tc, &packet, Outcome::DropTtl);
                assert_eq!(world.entries(), (0, 0), "a packet that is dropped begins no flow");
            }
        }
    }
}

fn every_next_hop<F: TestFamily>() {
    use crate::abi::NextHopState::{Local, Resolved, Unknown, Unreachable, Unresolved};
    use crate::abi::next_hop_flags::{CONFIRM, NO_LINK_HEADER};
    let table = [
        (Resolved, 0, Outcome::Forwarded),
        (Resolved, CONFIRM, Outcome::ForwardedByNeighbour),
        (Resolved, NO_LINK_HEADER, Outcome::Forwarded),
        (Resolved, NO_LINK_HEADER | CONFIRM, Outcome::Forwarded),
        (Unresolved, 0, Outcome::ForwardedByNeighbour),
        (Unresolved, CONFIRM, Outcome::ForwardedByNeighbour),
        (Unresolved, NO_LINK_HEADER, Outcome::Forwarded),
        (Unknown, 0, Outcome::DropNoRoute),
        (Unreachable, 0, Outcome::DropNoRoute),
        (Local, 0, Outcome::DropNoRoute),
    ];
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        for (state, hop_flags, outcome) in table {
            let mut world = World::<F>::with_rule(source);
            let hop = Hop { state, flags: hop_flags, ..HOP };
            world.tables.hops.insert(F::address(F::BACKEND), hop);
            let packet = to::<F>(61_001, Body::Udp);
            let (verdict, bytes) = world.process_bytes(Hook::Tc, packet.frame());
            let expected = match outcome {
                Outcome::Forwarded => Verdict::transmit(hop),
                Outcome::ForwardedByNeighbour => Verdict::neighbour(hop),
                other => Verdict::refused(other, hop),
            };
            assert_eq!(verdict, expected, "{source:?} {state:?} {hop_flags}");
            let dropped = verdict.outcome.kind() == Kind::Drop;
            assert_eq!(bytes == packet.frame(), dropped);
            let flows = if dropped || source == Source::Preserved { 0 } else { 2 };
            assert_eq!(world.entries(), (0, flows));
        }
    }
}

fn what_is_too_big<F: TestFamily>() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        let mut world = World::<F>::with_rule(source);
        let packet = to::<F>(61_001, Body::Udp);
        let hop = |mtu| Hop { mtu, ..HOP };
        world.tables.hops.insert(F::address(F::BACKEND), hop(packet.length() - 1));
        world.leaves(Hook::Tc, &packet, Outcome::DropTooBig);
        assert_eq!(world.entries(), (0, 0));
        // Padding does not count.
        world.tables.hops.insert(F::address(F::BACKEND), hop(packet.length()));
        let (verdict, _) = world.process_bytes(Hook::Tc, packet.with(|p| p.trailer = vec![0; 40]).frame());
        assert_eq!(verdict, Verdict::transmit(hop(packet.length())));
    }
}

fn segments_are_measured_not_the_packet_they_are_cut_from<F: TestFamily>() {
    let ip = if F::CLIENT.is_ipv4() { 20 } else { 40 };
    // (what, payload of each segment, header words of TCP, most payload of an MTU of 1500)
    for (body, words, header) in [(Body::Tcp(flags::ACK), 5, 20), (Body::Tcp(flags::ACK), 8, 32), (Body::Udp, 0, 8)] {
        let world = World::<F>::with_rule(Source::Preserved);
        let packet = to::<F>(40001, body).with(|p| p.payload = vec![9; 20_000]);
        for (payload, fits) in [(1500 - ip - header, true), (1500 - ip - header + 1, false)] {
            let mut frame = packet.frame();
            if words != 0 {
                frame[NETWORK + usize::try_from(ip).unwrap() + 12] = words << 4;
            }
            let mut segmented = Segmented { bytes: &mut frame, payload };
            let verdict = process::<F, _>(&mut segmented, &world.tables, NETWORK);
            let expected = if fits { Verdict::transmit(HOP) } else { Verdict::refused(Outcome::DropTooBig, HOP) };
            assert_eq!(verdict, expected, "{body:?} with {payload} bytes in each segment");
        }
    }
}

fn clients_that_are_not_allowed<F: TestFamily>() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        let mut world = World::<F>::with_rule(source);
        world.tables.rules.get_mut(&1).unwrap().flags |= rule_flags::ALLOW;
        world.leaves(Hook::Tc, &to::<F>(61_001, Body::Udp), Outcome::DropNotAllowed);
        assert_eq!(world.tables.counted(101).events, [Event::Denied]);
        assert_eq!(world.entries(), (0, 0));
        world.tables.allowed.insert((0, F::address(F::CLIENT)));
        let (verdict, _) = world.process_bytes(Hook::Tc, to::<F>(61_001, Body::Udp).frame());
        assert_eq!(verdict, Verdict::transmit(HOP));
        assert_eq!(world.tables.counted(101).times(Event::Denied), 1);
    }
}

fn replies_to_the_machine_itself_are_its_own<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    let local = Hop { state: NextHopState::Local, ..HOP };
    world.tables.hops.insert(F::address(F::OURS), local);
    let reply = TestPacket::new(at(F::BACKEND, 8080), at(F::OURS, 45678), Body::Tcp(flags::SYN_ACK));
    world.leaves(Hook::Xdp, &reply, Outcome::ToTc);
    world.leaves(Hook::Tc, &reply, Outcome::ToSelf);
    // It has arrived: its hop limit is not looked at.
    world.leaves(Hook::Tc, &reply.with(|p| p.hop_limit = 1), Outcome::ToSelf);
}

fn nothing_from_outside_is_from_ourselves<F: TestFamily>() {
    for source in [Source::PreservedByFlow, Source::Address(F::OURS)] {
        let mut world = World::<F>::with_rule(source);
        let packet = to::<F>(61_001, Body::Tcp(flags::SYN));
        world.tables.hops.insert(F::address(F::CLIENT), Hop { state: NextHopState::Local, ..HOP });
        if F::CLIENT.is_ipv4() {
            world.leaves(Hook::Tc, &packet, Outcome::Martian);
            assert_eq!(world.entries(), (0, 0));
        } else {
            let (verdict, _) = world.process_bytes(Hook::Tc, packet.frame());
            assert_eq!(verdict.outcome, Outcome::Forwarded);
        }
    }
}

fn a_packet_that_cannot_be_changed_is_dropped<F: TestFamily>() {
    struct ReadOnly<'a>(&'a mut [u8]);
    impl Packet for ReadOnly<'_> {
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.get(offset..)?.first_chunk().copied()
        }
        fn write<const N: usize>(&mut self, _: usize, _: [u8; N]) -> Option<()> {
            None
        }
        fn length(&self) -> usize {
            self.0.len()
        }
    }
    let world = World::<F>::with_rule(Source::Preserved);
    let mut frame = to::<F>(40001, Body::Udp).frame();
    let verdict = process::<F, _>(&mut ReadOnly(&mut frame), &world.tables, NETWORK);
    assert_eq!(verdict, Verdict::of(Outcome::DropError));
    assert!(world.tables.counted.borrow().is_empty(), "nothing was forwarded");
}
