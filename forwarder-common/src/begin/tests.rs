#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{boxed::Box, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{Direction, Flow, FlowKey, next_hop_flags},
    complete,
    tables::{
        Event,
        memory::{Counted, HOP, Memory},
    },
    test_packet::{Body, NETWORK, TestPacket, at, flags},
    test_world::{Hook, Source, TestFamily, World, both_families},
};

both_families!(
    a_flow_begins_and_its_packet_goes_on,
    what_cannot_or_may_not_begin_a_flow,
    the_second_packet_is_for_tc,
    every_next_hop,
    segment_sizes,
    a_port_of_a_socket_is_left_to_tc_uncounted,
    a_taken_port_is_not_given_twice,
    without_room_nothing_stays,
    another_cpu_that_is_faster_decides,
    a_flow_that_is_protected_meanwhile_stays_alone,
    a_rule_that_keeps_no_flows_any_more_begins_none,
    it_begins_as_the_complete_path_does,
);

const SOURCES: fn(core::net::IpAddr) -> [Source; 2] = |ours| [Source::Address(ours), Source::PreservedByFlow];

fn to<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, 61_001), at(F::LISTEN, port), body)
}

fn seen_from<F: TestFamily>(source: Source) -> core::net::SocketAddr {
    at(if source == Source::PreservedByFlow { F::CLIENT } else { F::OURS }, 61_001)
}

type Held<A> = (Vec<(FlowKey<A>, Flow<A>)>, Vec<(FlowKey<A>, Flow<A>)>, Vec<(u32, Counted)>);

impl<F: TestFamily> World<F> {
    /// Everything that a packet may change.
    fn held(&self) -> Held<F::Address> {
        let list = |flows: &std::collections::BTreeMap<_, &core::cell::Cell<Flow<F::Address>>>| {
            flows.iter().map(|(key, flow)| (*key, flow.get())).collect()
        };
        let counted = self.tables.counted.borrow();
        let counted = counted.iter().map(|(counter, counted)| (*counter, counted.clone())).collect();
        (list(&self.tables.established.borrow()), list(&self.tables.embryonic.borrow()), counted)
    }

    /// The packet is TC's, and nothing has changed.
    #[track_caller]
    fn left_to_tc(&self, packet: &TestPacket) {
        let before = self.held();
        self.leaves(Hook::XdpBegins, packet, Outcome::ToTc);
        assert_eq!(self.held(), before, "{packet:?}");
    }
}

fn a_flow_begins_and_its_packet_goes_on<F: TestFamily>() {
    for source in SOURCES(F::OURS) {
        for body in [Body::Tcp(flags::SYN), Body::Udp, Body::UdpUnsummed] {
            let world = World::<F>::with_rule(source);
            let packet = to::<F>(80, body);
            let seen = seen_from::<F>(source);
            let sent = packet.forwarded(seen, at(F::BACKEND, 8080));
            world.forwards(Hook::XdpBegins, &packet, Direction::Forward, &sent);
            assert_eq!(world.entries(), (0, 2));
            assert_eq!(world.tables.counted(101).events, [Event::FlowBegun]);
            let flow = world.flow(&packet).unwrap();
            assert_eq!((flow.packets, flow.bytes), (1, packet.length().into()));
            // TC takes it from there.
            let answer = if body == Body::Tcp(flags::SYN) { Body::Tcp(flags::SYN_ACK) } else { Body::Udp };
            let answer = TestPacket::new(at(F::BACKEND, 8080), seen, answer);
            world.back(&answer, packet.dst, packet.src);
        }
    }
}

fn what_cannot_or_may_not_begin_a_flow<F: TestFamily>() {
    for source in SOURCES(F::OURS) {
        let mut world = World::<F>::with_rule(source);
        let udp = to::<F>(80, Body::Udp);
        for tcp_flags in 0..=255u8 {
            if tcp_flags & (flags::SYN_ACK | flags::FIN_ACK | flags::RST) != flags::SYN {
                world.left_to_tc(&to::<F>(80, Body::Tcp(tcp_flags)));
            }
        }
        for hop_limit in [0, 1] {
            world.left_to_tc(&udp.with(|p| p.hop_limit = hop_limit));
        }
        let optional = if F::CLIENT.is_ipv4() {
            udp.with(|p| p.options = vec![1; 4])
        } else {
            udp.with(|p| p.extensions = vec![(60, vec![1, 4, 0, 0, 0, 0])])
        };
        world.left_to_tc(&optional);
        let rule = world.tables.rules[&1];
        let mut with = |change: fn(&mut Rule<F::Address>)| {
            world.tables.rules.insert(1, rule);
            change(world.tables.rules.get_mut(&1).unwrap());
            world.left_to_tc(&udp);
        };
        // A client that is not on the list: TC counts it.
        with(|rule| (rule.flags, rule.allow) = (rule.flags | rule_flags::ALLOW, 5));
        with(|rule| rule.flags |= rule_flags::SPARES_SOCKETS);
        with(|rule| rule.flags |= rule_flags::HAIRPIN);
        // One that is on the list.
        let rule = Rule { flags: rule.flags | rule_flags::ALLOW, allow: 5, ..rule };
        world.tables.rules.insert(1, rule);
        world.tables.allowed.insert((5, F::address(F::CLIENT)));
        let sent = udp.forwarded(seen_from::<F>(source), at(F::BACKEND, 8080));
        world.forwards(Hook::XdpBegins, &udp, Direction::Forward, &sent);
    }
    let echo = World::<F>::new();
    echo.leaves(Hook::XdpBegins, &to::<F>(80, Body::Udp), Outcome::NotOurs);
    let mut echo = World::<F>::new();
    echo.forward_address(F::LISTEN, F::BACKEND, Source::PreservedByFlow);
    echo.tables.rules.get_mut(&1).unwrap().flags = 0;
    echo.left_to_tc(&to::<F>(0, Body::EchoReply));
    let query = to::<F>(0, Body::EchoRequest);
    echo.forwards(Hook::XdpBegins, &query, Direction::Forward, &query.forwarded(query.src, at(F::BACKEND, 0)));
}

fn the_second_packet_is_for_tc<F: TestFamily>() {
    for source in SOURCES(F::OURS) {
        let world = World::<F>::with_rule(source);
        let packet = to::<F>(80, Body::Udp);
        let sent = packet.forwarded(seen_from::<F>(source), at(F::BACKEND, 8080));
        world.forwards(Hook::XdpBegins, &packet, Direction::Forward, &sent);
        world.left_to_tc(&packet);
        world.forwards(Hook::Tc, &packet, Direction::Forward, &sent);
        assert_eq!(world.flow(&packet).unwrap().packets, 2);
    }
}

fn every_next_hop<F: TestFamily>() {
    use NextHopState::{Local, Resolved, Unknown, Unreachable, Unresolved};
    use next_hop_flags::{CONFIRM, NO_LINK_HEADER, XDP_OUT};
    let packet = to::<F>(80, Body::Udp);
    let length = packet.length();
    let table = [
        (Resolved, XDP_OUT, 0, length, true),
        (Resolved, XDP_OUT | NO_LINK_HEADER, 0, 1500, true),
        (Resolved, XDP_OUT, 0, length - 1, false),
        (Resolved, XDP_OUT, 3, 1500, false),
        (Resolved, XDP_OUT | CONFIRM, 0, 1500, false),
        (Resolved, 0, 0, 1500, false),
        (Unresolved, XDP_OUT, 0, 1500, false),
        (Unknown, XDP_OUT, 0, 1500, false),
        (Local, XDP_OUT, 0, 1500, false),
        (Unreachable, XDP_OUT, 0, 1500, false),
    ];
    for (state, hop_flags, line, mtu, begins) in table {
        let mut world = World::<F>::with_rule(Source::Address(F::OURS));
        let hop = Hop { state, flags: hop_flags, line, mtu, ..HOP };
        world.tables.hops.insert(F::address(F::BACKEND), hop);
        if begins {
            assert_eq!(world.process_bytes(Hook::XdpBegins, packet.frame()).0, Verdict::transmit(hop));
            assert_eq!(world.entries(), (0, 2));
        } else {
            world.left_to_tc(&packet);
        }
    }
}

fn segment_sizes<F: TestFamily>() {
    let headers = if F::CLIENT.is_ipv4() { 40 } else { 60 };
    for (announced, fits) in [(1400 - headers, true), (1400 - headers + 1, false)] {
        let mut world = World::<F>::with_rule(Source::Address(F::OURS));
        world.tables.hops.insert(F::address(F::BACKEND), Hop { mtu: 1400, ..HOP });
        let [high, low] = u16::to_be_bytes(announced);
        let packet = to::<F>(80, Body::Tcp(flags::SYN)).with(|p| p.tcp_options = vec![2, 4, high, low]);
        if fits {
            let sent = packet.forwarded(at(F::OURS, 61_001), at(F::BACKEND, 8080));
            world.forwards(Hook::XdpBegins, &packet, Direction::Forward, &sent);
        } else {
            world.left_to_tc(&packet);
        }
    }
}

fn a_port_of_a_socket_is_left_to_tc_uncounted<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Address(F::OURS));
    world.tables.sockets.insert((17, F::address(F::OURS), 61_001u16.to_be()));
    let packet = to::<F>(80, Body::Udp);
    world.left_to_tc(&packet);
    let (verdict, _) = world.process_bytes(Hook::Tc, packet.frame());
    assert_eq!(verdict.outcome, Outcome::Forwarded);
    assert_eq!(world.tables.counted(101).events, [Event::PortClash, Event::FlowBegun]);
}

fn a_taken_port_is_not_given_twice<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let first = to::<F>(80, Body::Udp);
    let second = first.with(|p| p.src = at(F::OTHER_CLIENT, 61_001));
    for packet in [&first, &second] {
        let (verdict, _) = world.process_bytes(Hook::XdpBegins, packet.frame());
        assert_eq!(verdict.outcome, Outcome::Forwarded);
    }
    let [one, other] = [&first, &second].map(|packet| world.flow(packet).unwrap().rewrite.src_port);
    assert_ne!(one, other);
    assert_eq!(world.entries(), (0, 4));
}

fn without_room_nothing_stays<F: TestFamily>() {
    for room in [0, 1] {
        let world = World::<F>::with_rule(Source::Address(F::OURS));
        world.tables.embryonic_capacity.set(room);
        world.left_to_tc(&to::<F>(80, Body::Udp));
    }
}

type OtherCpu<F> = Box<dyn FnOnce(&Memory<<F as Family>::Address>)>;

/// Begins the flow of a packet elsewhere.
fn elsewhere<F: TestFamily>(packet: &TestPacket) -> OtherCpu<F> {
    let mut frame = packet.frame();
    Box::new(move |tables| {
        let verdict = complete::process::<F, _>(&mut frame.as_mut_slice(), tables, NETWORK);
        assert_eq!(verdict.outcome, Outcome::Forwarded);
    })
}

fn another_cpu_that_is_faster_decides<F: TestFamily>() {
    for insertion in [0, 1] {
        let world = World::<F>::with_rule(Source::Address(F::OURS));
        // A port that is not kept: each CPU draws its own.
        let packet = to::<F>(80, Body::Udp).with(|p| p.src = at(F::CLIENT, 53));
        *world.tables.other_cpu.borrow_mut() = Some((insertion, elsewhere::<F>(&packet)));
        let (verdict, bytes) = world.process_bytes(Hook::XdpBegins, packet.frame());
        assert_eq!(verdict.outcome, Outcome::Forwarded);
        let port = u16::from_be(world.flow(&packet).unwrap().rewrite.src_port);
        assert_eq!(bytes, packet.forwarded(at(F::OURS, port), at(F::BACKEND, 8080)).frame());
        assert_eq!(world.entries(), (0, 2), "one flow with both halves");
        assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 1);
    }
}

/// Between the two programs another CPU takes the flow as far as the protected table.
fn a_flow_that_is_protected_meanwhile_stays_alone<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let packet = to::<F>(80, Body::Udp);
    world.process_bytes(Hook::Tc, packet.frame());
    let answer = TestPacket::new(at(F::BACKEND, 8080), at(F::OURS, 61_001), Body::Udp);
    for packet in [&answer, &packet] {
        world.process_bytes(Hook::Tc, packet.frame());
    }
    assert_eq!(world.entries(), (2, 0));
    let before = world.held();
    let mut frame = packet.frame();
    let verdict = process::<F, _>(&mut frame.as_mut_slice(), &world.tables, NETWORK);
    assert_eq!((verdict, frame), (Verdict::of(Outcome::ToTc), packet.frame()));
    assert_eq!(world.held(), before);
}

/// Between the two programs the rules change.
fn a_rule_that_keeps_no_flows_any_more_begins_none<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    let packet = to::<F>(80, Body::Udp);
    let mut frame = packet.frame();
    let verdict = process::<F, _>(&mut frame.as_mut_slice(), &world.tables, NETWORK);
    assert_eq!((verdict, frame), (Verdict::of(Outcome::ToTc), packet.frame()));
    assert_eq!(world.entries(), (0, 0));
}

/// Some packets begin a flow here, all others leave no trace. With TC after it everything is as with TC alone.
fn it_begins_as_the_complete_path_does<F: TestFamily>() {
    let runner = &mut proptest::test_runner::TestRunner::default();
    let bodies = prop_oneof![
        2 => any::<u8>().prop_map(Body::Tcp),
        2 => Just(Body::Tcp(flags::SYN)),
        4 => Just(Body::Udp),
        1 => Just(Body::UdpUnsummed),
        1 => Just(Body::EchoRequest),
        1 => Just(Body::EchoReply),
        1 => Just(Body::Sctp),
        1 => Just(Body::Other(47)),
    ];
    let clients = prop_oneof![Just(F::CLIENT), Just(F::OTHER_CLIENT), Just(F::LISTEN), Just(F::BACKEND)];
    let listens = prop_oneof![Just(at(F::LISTEN, 80)), Just(at(F::LISTEN, 25)), Just(at(F::OTHER_LISTEN, 443))];
    let one = (clients, 61_000..61_004u16, listens, bodies, 0..4u8);
    let check = |packets: Vec<_>| {
        let worlds = [(); 2].map(|()| {
            let mut world = World::<F>::with_rule(Source::Address(F::OURS));
            world.forward(at(F::LISTEN, 25), at(F::BACKEND, 2525), Source::PreservedByFlow);
            world.forward_address(F::OTHER_LISTEN, F::BACKEND, Source::Address(F::OURS));
            world
        });
        for (client, port, listen, body, hop_limit) in packets {
            let packet = TestPacket::new(at(client, port), listen, body).with(|p| p.hop_limit = hop_limit);
            let before = worlds[0].held();
            let (mut verdict, mut bytes) = worlds[0].process_bytes(Hook::XdpBegins, packet.frame());
            if verdict.outcome != Outcome::Forwarded {
                prop_assert_eq!(&bytes, &packet.frame());
                prop_assert_eq!(worlds[0].held(), before);
                (verdict, bytes) = worlds[0].process_bytes(Hook::Tc, packet.frame());
            }
            prop_assert_eq!((verdict, bytes), worlds[1].process_bytes(Hook::Tc, packet.frame()));
            prop_assert_eq!(worlds[0].held(), worlds[1].held());
        }
        Ok(())
    };
    runner.run(&proptest::collection::vec(one, 1..12usize), check).unwrap();
}
