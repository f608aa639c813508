#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{net::SocketAddr, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{Direction, Flow, FlowKey},
    complete,
    flow_state::FlowState::{self, *},
    tables::{
        Event,
        memory::{HOP, TIMEOUTS},
    },
    test_packet::{Body, NETWORK, Segmented, TestPacket, at, flags},
    test_world::{Hook, Source, TestFamily, World, both_families},
};

both_families!(
    stateless_rules_forward_both_ways,
    a_whole_address_forwards_every_protocol,
    a_range_is_shifted,
    what_xdp_leaves_to_tc,
    every_next_hop,
    every_next_hop_at_tc,
    segments_have_to_fit_at_tc,
    what_may_be_of_a_new_flow_is_not_sent_at_once,
    clients_that_are_not_allowed,
    established_flows_are_forwarded_and_counted,
    only_plain_packets_of_living_established_flows,
    the_machine_without_flows_looks_none_up,
    what_is_not_forwarded_is_untouched_whatever_it_is,
    it_forwards_as_the_complete_path_does,
);

fn to<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, 40001), at(F::LISTEN, port), body)
}

fn from<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::BACKEND, port), at(F::CLIENT, 40001), body)
}

impl<F: TestFamily> World<F> {
    #[track_caller]
    fn xdp(&self, packet: &TestPacket, direction: Direction, src: SocketAddr, dst: SocketAddr) {
        self.forwards(Hook::Xdp, packet, direction, &packet.forwarded(src, dst));
    }
}

const PORTED: [Body; 7] = [
    Body::Tcp(flags::SYN),
    Body::Tcp(flags::SYN_ACK),
    Body::Tcp(flags::ACK),
    Body::Tcp(flags::FIN_ACK),
    Body::Tcp(flags::RST),
    Body::Udp,
    Body::UdpUnsummed,
];

fn stateless_rules_forward_both_ways<F: TestFamily>() {
    for (listen, backend) in [(80, 80), (80, 8080), (8080, 80), (65535, 1)] {
        let mut world = World::<F>::new();
        world.forward(at(F::LISTEN, listen), at(F::BACKEND, backend), Source::Preserved);
        for body in PORTED {
            let there = to::<F>(listen, body);
            world.xdp(&there, Direction::Forward, there.src, at(F::BACKEND, backend));
            let back = from::<F>(backend, body);
            world.xdp(&back, Direction::Reply, at(F::LISTEN, listen), back.dst);
        }
        assert_eq!(world.entries(), (0, 0), "a stateless rule keeps no flow");
        assert!(world.tables.counted(101).events.is_empty());
    }
}

fn a_whole_address_forwards_every_protocol<F: TestFamily>() {
    let mut world = World::<F>::new();
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved);
    let portless = [Body::EchoRequest, Body::EchoReply, Body::Sctp, Body::Other(47), Body::Other(50)];
    for body in PORTED.into_iter().chain(portless) {
        for port in [0, 1, 443, 65535] {
            let there = to::<F>(port, body);
            world.xdp(&there, Direction::Forward, there.src, at(F::BACKEND, port));
            let back = from::<F>(port, body);
            world.xdp(&back, Direction::Reply, at(F::LISTEN, port), back.dst);
        }
    }
    // Too short for XDP, and forwarded all the same.
    let short = to::<F>(0, Body::Other(47)).with(|p| p.payload = vec![7; 7]);
    world.leaves(Hook::Xdp, &short, Outcome::ToTc);
    world.out(&short, short.src, at(F::BACKEND, 0));
}

fn a_range_is_shifted<F: TestFamily>() {
    let mut world = World::<F>::new();
    world.forward_block((at(F::LISTEN, 20480), at(F::BACKEND, 4096)), (17, 8), Source::Preserved);
    for port in 20480..20480 + 256 {
        let there = to::<F>(port, Body::Udp);
        world.xdp(&there, Direction::Forward, there.src, at(F::BACKEND, port - 16384));
        let back = from::<F>(port - 16384, Body::Udp);
        world.xdp(&back, Direction::Reply, at(F::LISTEN, port), back.dst);
    }
    for port in [20479, 20480 + 256] {
        world.leaves(Hook::Xdp, &to::<F>(port, Body::Udp), Outcome::NotOurs);
        world.leaves(Hook::Xdp, &from::<F>(port - 16384, Body::Udp), Outcome::NotOurs);
    }
    world.leaves(Hook::Xdp, &to::<F>(20480, Body::Tcp(0)), Outcome::NotOurs);
}

fn what_xdp_leaves_to_tc<F: TestFamily>() {
    let stateless = World::<F>::with_rule(Source::Preserved);
    let packet = to::<F>(80, Body::Udp);
    let optional = if F::CLIENT.is_ipv4() {
        packet.with(|p| p.options = vec![1; 4])
    } else {
        packet.with(|p| p.extensions = vec![(60, vec![1, 4, 0, 0, 0, 0])])
    };
    stateless.leaves(Hook::Xdp, &optional, Outcome::ToTc);
    // Shorter than what XDP looks for at once.
    for (length, outcome) in [(0, Outcome::ToTc), (7, Outcome::ToTc), (8, Outcome::NotOurs)] {
        let short = TestPacket { body: Body::Other(47), payload: vec![7; length], ..packet.clone() };
        stateless.leaves(Hook::Xdp, &short, outcome);
    }
    for hop_limit in [0, 1] {
        stateless.leaves(Hook::Xdp, &packet.with(|p| p.hop_limit = hop_limit), Outcome::ToTc);
    }
    stateless.leaves(Hook::Xdp, &to::<F>(80, Body::Icmp(3)), Outcome::IcmpOther);
    stateless.leaves(Hook::Xdp, &to::<F>(22, Body::Tcp(flags::SYN)), Outcome::NotOurs);
    for source in [Source::Address(F::OURS), Source::PreservedByFlow] {
        World::<F>::with_rule(source).leaves(Hook::Xdp, &packet, Outcome::ToTc);
        World::<F>::with_rule(source).leaves(Hook::Xdp, &from::<F>(8080, Body::Udp), Outcome::NotOurs);
    }
}

fn every_next_hop<F: TestFamily>() {
    use crate::abi::NextHopState::{Local, Resolved, Unknown, Unreachable, Unresolved};
    use next_hop_flags::{CONFIRM, NO_LINK_HEADER, XDP_OUT};
    let packet = to::<F>(80, Body::Udp);
    let length = packet.length();
    let table = [
        (Resolved, XDP_OUT, 1500, true),
        (Resolved, XDP_OUT, length, true),
        (Resolved, XDP_OUT, length - 1, false),
        (Resolved, XDP_OUT | NO_LINK_HEADER, 1500, true),
        (Resolved, XDP_OUT | CONFIRM, 1500, false),
        (Resolved, 0, 1500, false),
        (Unresolved, XDP_OUT, 1500, false),
        (Unknown, XDP_OUT, 1500, false),
        (Local, XDP_OUT, 1500, false),
        (Unreachable, XDP_OUT, 1500, false),
    ];
    for (state, hop_flags, mtu, forwarded) in table {
        let mut world = World::<F>::with_rule(Source::Preserved);
        let hop = Hop { state, flags: hop_flags, mtu, ..HOP };
        // Only towards the backend: a lookup for any other end would find the usual hop.
        world.tables.hops.insert(F::address(F::BACKEND), hop);
        if forwarded {
            world.xdp(&packet, Direction::Forward, packet.src, at(F::BACKEND, 8080));
            assert_eq!(world.process_bytes(Hook::Xdp, packet.frame()).0, Verdict::transmit(hop));
        } else {
            world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
        }
    }
}

impl<F: TestFamily> World<F> {
    /// What TC does with a frame before it tries the complete path.
    fn at_once(&self, frame: &mut Vec<u8>) -> Verdict {
        process::<F, _>(&mut frame.as_mut_slice(), &self.tables, NETWORK, At::Tc).verdict
    }
}

fn every_next_hop_at_tc<F: TestFamily>() {
    use crate::abi::NextHopState::{Local, Resolved, Unknown, Unreachable, Unresolved};
    use next_hop_flags::{CONFIRM, NO_LINK_HEADER, XDP_OUT};
    let packet = to::<F>(80, Body::Udp);
    let length = packet.length();
    let table = [
        (Resolved, 0, 1500, true),
        (Resolved, XDP_OUT, length, true),
        (Resolved, 0, length - 1, false),
        (Resolved, NO_LINK_HEADER, 1500, true),
        // Its packet has to go by the kernel's neighbour code.
        (Resolved, CONFIRM, 1500, false),
        (Unresolved, 0, 1500, false),
        (Unknown, 0, 1500, false),
        (Local, 0, 1500, false),
        (Unreachable, 0, 1500, false),
    ];
    for (state, hop_flags, mtu, forwarded) in table {
        let mut world = World::<F>::with_rule(Source::Preserved);
        let hop = Hop { state, flags: hop_flags, mtu, ..HOP };
        world.tables.hops.insert(F::address(F::BACKEND), hop);
        let mut frame = packet.frame();
        let verdict = world.at_once(&mut frame);
        if forwarded {
            assert_eq!(verdict, Verdict::transmit(hop));
            assert_eq!(frame, packet.forwarded(packet.src, at(F::BACKEND, 8080)).frame());
        } else {
            assert_eq!((verdict, frame), (Verdict::of(Outcome::ToTc), packet.frame()), "{state:?} {hop_flags} {mtu}");
        }
    }
}

fn segments_have_to_fit_at_tc<F: TestFamily>() {
    let headers = if F::CLIENT.is_ipv4() { 20 } else { 40 };
    for (body, transport) in [(Body::Tcp(flags::ACK), 20), (Body::Udp, 8)] {
        let most = 1500 - headers - transport;
        for (payload, fits) in [(most, true), (most + 1, false)] {
            let world = World::<F>::with_rule(Source::Preserved);
            let mut frame = to::<F>(80, body).frame();
            let mut segmented = Segmented { bytes: &mut frame, payload };
            let verdict = process::<F, _>(&mut segmented, &world.tables, NETWORK, At::Tc).verdict;
            let expected = if fits { Verdict::transmit(HOP) } else { Verdict::of(Outcome::ToTc) };
            assert_eq!(verdict, expected, "{body:?} with {payload} bytes in each segment");
        }
    }
}

/// The answers of a hairpin look like those of the rule's backend to a client, and their flow may be a new one.
fn what_may_be_of_a_new_flow_is_not_sent_at_once<F: TestFamily>() {
    let packet = from::<F>(8080, Body::Udp);
    for (keeps, sent) in [(0, true), (setting_flags::HAIRPIN, false), (setting_flags::FLOWS, false)] {
        let mut world = World::<F>::with_rule(Source::Preserved);
        world.tables.settings.flags = world.tables.settings.flags & !setting_flags::FLOWS | keeps;
        let key = F::plain(&packet.frame().as_mut_slice(), NETWORK).unwrap().key;
        let flow = Flow { last_seen: world.tables.now(), ..Flow::default() };
        world.tables.insert_embryonic(&key, &flow).unwrap();
        let mut frame = packet.frame();
        let outcome = world.at_once(&mut frame).outcome;
        assert_eq!(outcome, if sent { Outcome::Forwarded } else { Outcome::ToTc });
        assert_eq!(frame == packet.frame(), !sent);
    }
}

fn clients_that_are_not_allowed<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    world.tables.rules.get_mut(&1).unwrap().flags |= rule_flags::ALLOW;
    let packet = to::<F>(80, Body::Udp);
    world.leaves(Hook::Xdp, &packet, Outcome::DropNotAllowed);
    assert_eq!(world.tables.counted(101).events, [Event::Denied]);
    world.tables.allowed.insert((0, F::address(F::CLIENT)));
    world.xdp(&packet, Direction::Forward, packet.src, at(F::BACKEND, 8080));
    assert_eq!(world.tables.counted(101).events, [Event::Denied]);
    // Where TC decides, TC counts.
    world.tables.allowed.clear();
    world.tables.rules.get_mut(&1).unwrap().flags &= !rule_flags::STATELESS;
    world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
    assert_eq!(world.tables.counted(101).events, [Event::Denied]);
}

/// A world with one protected flow of each kind of packet, and the packets of it: client's, backend's.
fn established<F: TestFamily>(bodies: [Body; 2]) -> (World<F>, TestPacket, TestPacket) {
    let world = World::<F>::new();
    let packet = to::<F>(80, bodies[0]);
    // An echo has no port but one identifier.
    let port = |port| if bodies[0] == Body::EchoRequest { 0 } else { port };
    let (src, dst) = (at(F::OURS, 61_001), at(F::BACKEND, port(8080)));
    let key: FlowKey<F::Address> = World::<F>::key(&packet);
    let seen = World::<F>::key(&TestPacket { src, dst, ..packet.clone() });
    let mut flow = Flow {
        rewrite: crate::abi::Rewrite {
            src: seen.src,
            dst: seen.dst,
            src_port: seen.src_port,
            dst_port: seen.dst_port,
            address_delta: crate::checksum::Delta::address(key.src, seen.src)
                .and(crate::checksum::Delta::address(key.dst, seen.dst))
                .0,
            port_delta: crate::checksum::Delta::word(key.src_port, seen.src_port)
                .and(crate::checksum::Delta::word(key.dst_port, seen.dst_port))
                .0,
        },
        last_seen: world.tables.now(),
        counter: 77,
        state: Established as u8,
        ..Flow::default()
    };
    let peer_key = flow.peer_key(key.protocol);
    let mut peer = flow.peer(&key);
    world.tables.protect((&key, &mut flow), (&peer_key, &mut peer)).unwrap();
    let back = TestPacket { src: dst, dst: src, body: bodies[1], ..packet.clone() };
    (world, packet, back)
}

const KINDS: [[Body; 2]; 4] = [
    [Body::Tcp(flags::ACK), Body::Tcp(flags::ACK)],
    [Body::Udp, Body::Udp],
    [Body::UdpUnsummed, Body::Udp],
    [Body::EchoRequest, Body::EchoReply],
];

fn established_flows_are_forwarded_and_counted<F: TestFamily>() {
    for bodies in KINDS {
        let (world, there, back) = established::<F>(bodies);
        for round in 1..=3u32 {
            world.tables.wait(10);
            world.xdp(&there, Direction::Forward, back.dst, back.src);
            let flow = world.flow(&there).unwrap();
            assert_eq!((flow.packets, flow.bytes), (round.into(), u64::from(round * there.length())));
            assert_eq!(flow.last_seen, world.tables.now());
            world.tables.wait(10);
            world.xdp(&back, Direction::Reply, there.dst, there.src);
            let flow = world.flow(&back).unwrap();
            assert_eq!((flow.packets, flow.bytes), (round.into(), u64::from(round * back.length())));
        }
        assert_eq!(world.tables.counted(77).forward.packets, 3);
        assert_eq!(world.entries(), (2, 0));
    }
}

fn only_plain_packets_of_living_established_flows<F: TestFamily>() {
    let (world, there, back) = established::<F>(KINDS[0]);
    for tcp_flags in 0..=255u8 {
        for packet in [&there, &back] {
            let packet = packet.with(|p| p.body = Body::Tcp(tcp_flags));
            if tcp_flags & (flags::SYN | flags::FIN | flags::RST) == 0 {
                let (direction, src, dst) = if packet.src == there.src {
                    (Direction::Forward, back.dst, back.src)
                } else {
                    (Direction::Reply, there.dst, there.src)
                };
                world.xdp(&packet, direction, src, dst);
            } else {
                world.leaves(Hook::Xdp, &packet, Outcome::ToTc);
            }
        }
    }
    for state in FlowState::ALL {
        world.tables.established.borrow().values().for_each(|entry| entry.set_state(state));
        let before = world.flow(&there);
        if state != Established {
            world.leaves(Hook::Xdp, &there, Outcome::ToTc);
            assert_eq!(world.flow(&there), before, "a packet that XDP leaves does not refresh the flow");
        }
    }
    world.tables.established.borrow().values().for_each(|entry| entry.set_state(Established));
    let since = world.flow(&there).unwrap().last_seen;
    world.tables.now.set(since + TIMEOUTS.tcp_established + 1);
    world.leaves(Hook::Xdp, &there, Outcome::ToTc);
    world.tables.now.set(since + TIMEOUTS.tcp_established);
    world.xdp(&there, Direction::Forward, back.dst, back.src);
    for packet in [&there, &back] {
        world.leaves(Hook::Xdp, &packet.with(|p| p.hop_limit = 1), Outcome::ToTc);
    }
}

fn the_machine_without_flows_looks_none_up<F: TestFamily>() {
    let (mut world, there, _) = established::<F>(KINDS[1]);
    world.tables.settings.flags &= !setting_flags::FLOWS;
    world.leaves(Hook::Xdp, &there, Outcome::NotOurs);
}

/// A world with something for every packet of the property tests.
fn crowded<F: TestFamily>() -> World<F> {
    let (mut world, _, _) = established::<F>(KINDS[1]);
    world.forward(at(F::LISTEN, 443), at(F::BACKEND, 8443), Source::Preserved);
    world.forward(at(F::LISTEN, 25), at(F::BACKEND, 2525), Source::Address(F::OURS));
    world.forward_address(F::OTHER_LISTEN, F::BACKEND, Source::Preserved);
    world
}

fn any_packet<F: TestFamily>() -> impl Strategy<Value = TestPacket> {
    let bodies = prop_oneof![
        any::<u8>().prop_map(Body::Tcp),
        Just(Body::Udp),
        Just(Body::UdpUnsummed),
        Just(Body::EchoRequest),
        Just(Body::EchoReply),
        Just(Body::Sctp),
        Just(Body::Other(47)),
    ];
    let end = prop_oneof![
        Just(at(F::CLIENT, 40001)),
        Just(at(F::LISTEN, 80)),
        Just(at(F::LISTEN, 443)),
        Just(at(F::LISTEN, 25)),
        Just(at(F::OTHER_LISTEN, 443)),
        Just(at(F::BACKEND, 8080)),
        Just(at(F::BACKEND, 8443)),
        Just(at(F::OURS, 61_001)),
        any::<u16>().prop_map(|port| at(F::OTHER_CLIENT, port)),
    ];
    let payload = proptest::collection::vec(any::<u8>(), 0..40usize);
    (end.clone(), end, bodies, payload, 0..4u8).prop_map(|(src, dst, body, payload, hop_limit)| {
        TestPacket::new(src, dst, body).with(|p| (p.payload, p.hop_limit) = (payload, hop_limit))
    })
}

fn what_is_not_forwarded_is_untouched_whatever_it_is<F: TestFamily>() {
    let world = crowded::<F>();
    let runner = &mut proptest::test_runner::TestRunner::default();
    let frames = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..120usize),
        (any_packet::<F>(), proptest::collection::vec((0..80usize, any::<u8>()), 0..4usize)).prop_map(
            |(packet, mutations)| {
                let mut frame = packet.frame();
                for (place, value) in mutations {
                    let place = place % frame.len();
                    frame[place] = value;
                }
                frame
            }
        ),
    ];
    let check = |frame: Vec<u8>| {
        for hook in [Hook::Xdp, Hook::Tc] {
            let (verdict, bytes) = world.process_bytes(hook, frame.clone());
            let forwarded = verdict.outcome.kind() == crate::verdict::Kind::Forward;
            prop_assert_eq!(bytes == frame, !forwarded);
            prop_assert_eq!(bytes.len(), frame.len());
        }
        Ok(())
    };
    runner.run(&frames, check).unwrap();
}

/// Whatever XDP forwards, TC would have forwarded to the same bytes, with the same counters, over the same hop.
fn it_forwards_as_the_complete_path_does<F: TestFamily>() {
    let runner = &mut proptest::test_runner::TestRunner::default();
    let check = |packet: TestPacket| {
        let ways = [Some(At::Xdp), Some(At::Tc), None];
        let [xdp, tc, complete] = ways.map(|at| {
            let world = crowded::<F>();
            let mut frame = packet.frame();
            let mut bytes = frame.as_mut_slice();
            let verdict = match at {
                Some(at) => process::<F, _>(&mut bytes, &world.tables, NETWORK, at).verdict,
                None => complete::process::<F, _>(&mut bytes, &world.tables, NETWORK),
            };
            let flows: Vec<_> =
                world.tables.established.borrow().iter().map(|(key, flow)| (*key, flow.get())).collect();
            (verdict, frame, flows, world.tables.counted.take())
        });
        for fast in [xdp, tc] {
            if fast.0.outcome == Outcome::Forwarded {
                prop_assert_eq!(&fast, &complete);
            }
        }
        Ok(())
    };
    runner.run(&any_packet::<F>(), check).unwrap();
}
