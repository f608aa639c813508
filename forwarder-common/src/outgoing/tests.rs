#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{collections::BTreeSet, net::SocketAddr, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{Direction, rule_flags},
    flow_state::FlowState,
    tables::{
        Event, Hop,
        memory::{HOP, TIMEOUTS},
    },
    test_packet::{Body, TestPacket, at, flags},
    test_world::{Hook, Source, TestFamily, World, both_families},
};

mod fragments;

both_families!(
    whose_packets_go_out_and_how,
    one_mapping_for_every_remote_end,
    what_comes_in_by_filtering,
    a_connection_goes_on_at_xdp,
    both_sides_may_begin_at_once,
    hairpin_shows_the_outer_address_and_filters,
    what_cannot_begin_goes_nowhere,
    ports_keep_range_and_parity,
    ports_that_are_somebodys_are_not_taken,
    a_published_port_is_its_hosts_own_outside,
    ports_run_out_and_come_back,
    a_mapping_lives_while_packets_go_out,
    a_flood_of_new_flows_leaves_the_mappings_of_established_ones,
    another_cpu_that_is_faster_wins,
    forged_sources_are_not_ours,
    protocols_without_ports_have_one_host_for_each_remote_end,
);

const ENDPOINT: u16 = rule_flags::ENDPOINT_FILTERING;
const ADDRESS: u16 = rule_flags::ADDRESS_FILTERING;
const ADDRESS_AND_PORT: u16 = 0;

/// The interface out; the inside is at another.
pub(crate) const OUTSIDE: u32 = 7;
pub(crate) const INSIDE: u32 = 8;

/// Inside are the networks of `BACKEND` and of nobody else; our outer address is `LISTEN`.
pub(crate) fn gateway<F: TestFamily>(filtering: u16) -> World<F> {
    let mut world = World::<F>::new();
    let bits = if F::LISTEN.is_ipv4() { 24 } else { 64 };
    let network = match F::BACKEND {
        std::net::IpAddr::V4(ip) => std::net::IpAddr::V4(std::net::Ipv4Addr::from(u32::from(ip) & !0xff)),
        std::net::IpAddr::V6(ip) => {
            std::net::IpAddr::V6(std::net::Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)))
        }
    };
    world.masquerade(network, bits, OUTSIDE, F::LISTEN, filtering);
    for host in [host::<F>(0), host::<F>(1)] {
        world.tables.hops.insert(F::address(host), Hop { interface: INSIDE, ..HOP });
    }
    for ours in [F::LISTEN, F::OURS] {
        world.tables.hops.insert(F::address(ours), Hop { state: NextHopState::Local, ..HOP });
    }
    from_inside(&world);
    world
}

/// A host behind us.
pub(crate) fn host<F: TestFamily>(number: u8) -> std::net::IpAddr {
    match F::BACKEND {
        std::net::IpAddr::V4(ip) => std::net::IpAddr::V4((u32::from(ip) + u32::from(number)).into()),
        std::net::IpAddr::V6(ip) => std::net::IpAddr::V6((u128::from(ip) + u128::from(number)).into()),
    }
}

fn from_inside<F: TestFamily>(world: &World<F>) {
    world.tables.ingress.set(INSIDE);
}

fn from_outside<F: TestFamily>(world: &World<F>) {
    world.tables.ingress.set(OUTSIDE);
}

/// From a host behind us to somebody outside.
fn going_out<F: TestFamily>(port: u16, to: SocketAddr, body: Body) -> TestPacket {
    TestPacket::new(at(host::<F>(0), port), to, body)
}

/// Sends a packet from inside, and says by what outer port it leaves.
#[track_caller]
fn goes_out<F: TestFamily>(world: &World<F>, packet: &TestPacket) -> u16 {
    from_inside(world);
    let (verdict, frame) = world.process_bytes(Hook::Tc, packet.frame());
    assert_eq!(verdict.outcome, Outcome::Forwarded, "{packet:?}");
    let port = world.flow(packet).map(|flow| u16::from_be(flow.rewrite.src_port)).unwrap();
    let expected = packet.forwarded(at(F::LISTEN, port), packet.dst);
    assert_eq!(frame, expected.frame(), "{packet:?}");
    port
}

/// A packet comes from outside and reaches the host that it belongs to.
#[track_caller]
fn comes_in<F: TestFamily>(world: &World<F>, packet: &TestPacket, to: SocketAddr) {
    from_outside(world);
    let (verdict, frame) = world.process_bytes(Hook::Tc, packet.frame());
    assert_eq!(verdict.outcome, Outcome::Forwarded, "{packet:?}");
    assert_eq!(frame, packet.forwarded(packet.src, to).frame(), "{packet:?}");
}

#[track_caller]
fn stays_out<F: TestFamily>(world: &World<F>, packet: &TestPacket, outcome: Outcome) {
    from_outside(world);
    world.leaves(Hook::Tc, packet, outcome);
}

fn whose_packets_go_out_and_how<F: TestFamily>() {
    for body in [Body::Udp, Body::UdpUnsummed, Body::Tcp(flags::SYN), Body::EchoRequest, Body::Sctp, Body::Other(47)] {
        let world = gateway::<F>(ADDRESS);
        let outside = at(F::CLIENT, if matches!(body, Body::EchoRequest | Body::Other(_)) { 0 } else { 443 });
        let port = if matches!(body, Body::Other(_)) { 0 } else { 61_001 };
        let packet = going_out::<F>(port, outside, body);
        assert_eq!(goes_out(&world, &packet), port, "the port is kept where it is free");
        assert_eq!(world.tables.counted(101).forward.packets, 1);
        // To other networks behind us, to this machine, and without a way: as without the rule.
        let elsewhere = packet.with(|p| p.dst = at(F::OTHER_CLIENT, outside.port()));
        for hop in [
            Hop { interface: 9, ..HOP },
            Hop { interface: 9, state: NextHopState::Unresolved, ..HOP },
            Hop { state: NextHopState::Local, ..HOP },
            Hop { state: NextHopState::Unreachable, ..HOP },
        ] {
            let mut world = gateway::<F>(ADDRESS);
            world.tables.hops.insert(F::address(F::OTHER_CLIENT), hop);
            world.leaves(Hook::Tc, &elsewhere, Outcome::NotOurs);
            world.leaves(Hook::Xdp, &elsewhere, Outcome::NotOurs);
            assert_eq!(world.entries(), (0, 0));
        }
        // Whoever is not behind us.
        let foreign = packet.with(|p| p.src.set_ip(F::OTHER_CLIENT));
        stays_out(&world, &foreign, Outcome::NotOurs);
    }
}

fn one_mapping_for_every_remote_end<F: TestFamily>() {
    for (body, reply) in [
        (Body::Udp, Body::Udp),
        (Body::Tcp(flags::SYN), Body::Tcp(flags::SYN_ACK)),
        (Body::EchoRequest, Body::EchoReply),
        (Body::Sctp, Body::Sctp),
    ] {
        let world = gateway::<F>(ADDRESS_AND_PORT);
        let remotes = [at(F::CLIENT, 443), at(F::CLIENT, 444), at(F::OTHER_CLIENT, 443)];
        let remote = |end: SocketAddr| if body == Body::EchoRequest { at(end.ip(), 0) } else { end };
        // A port that is not kept, so that only a mapping can make them agree (RFC 4787 REQ-1, RFC 5382 REQ-1).
        let port = if body == Body::Sctp { 61_001 } else { 40_001 };
        let outer: BTreeSet<u16> =
            remotes.iter().map(|end| goes_out(&world, &going_out::<F>(port, remote(*end), body))).collect();
        assert_eq!(outer.len(), 1, "{body:?}: {outer:?}");
        let outer = *outer.first().unwrap();
        for end in remotes {
            let answer = match body {
                Body::EchoRequest => TestPacket::new(at(end.ip(), 0), at(F::LISTEN, outer), reply),
                _ => TestPacket::new(end, at(F::LISTEN, outer), reply),
            };
            comes_in(&world, &answer, at(host::<F>(0), port));
        }
        // Another host has another, and another protocol is another mapping.
        let other = going_out::<F>(port, remote(remotes[0]), body).with(|p| p.src.set_ip(host::<F>(1)));
        if body == Body::Sctp {
            world.leaves(Hook::Tc, &other, Outcome::NotOurs);
            from_inside(&world);
            world.leaves(Hook::Tc, &other, Outcome::DropNoPort);
        } else {
            assert_ne!(goes_out(&world, &other), outer);
        }
    }
}

fn what_comes_in_by_filtering<F: TestFamily>() {
    // What is let in: from the address and port sent to, from another port there, from elsewhere.
    let table =
        [(ENDPOINT, [true, true, true]), (ADDRESS, [true, true, false]), (ADDRESS_AND_PORT, [true, false, false])];
    for (filtering, expected) in table {
        for body in [Body::Udp, Body::Tcp(flags::SYN), Body::Sctp] {
            let world = gateway::<F>(filtering);
            let packet = going_out::<F>(61_001, at(F::CLIENT, 443), body);
            let outer = goes_out(&world, &packet);
            let ends = [at(F::CLIENT, 443), at(F::CLIENT, 999), at(F::OTHER_CLIENT, 443)];
            for (end, comes) in ends.into_iter().zip(expected) {
                let packet = TestPacket::new(end, at(F::LISTEN, outer), body);
                if comes {
                    comes_in(&world, &packet, at(host::<F>(0), 61_001));
                    // And what answers it goes out by the same mapping.
                    let answer = TestPacket::new(at(host::<F>(0), 61_001), end, body);
                    assert_eq!(goes_out(&world, &answer.with(|p| p.body = tcp_answer(body))), outer);
                } else {
                    stays_out(&world, &packet, Outcome::DropFiltered);
                }
            }
            // A port that nobody has is this machine's business.
            stays_out(&world, &TestPacket::new(at(F::CLIENT, 443), at(F::LISTEN, outer - 1), body), Outcome::NotOurs);
        }
    }
}

fn tcp_answer(body: Body) -> Body {
    if matches!(body, Body::Tcp(_)) { Body::Tcp(flags::SYN_ACK) } else { body }
}

fn a_connection_goes_on_at_xdp<F: TestFamily>() {
    for filtering in [ENDPOINT, ADDRESS, ADDRESS_AND_PORT] {
        let world = gateway::<F>(filtering);
        let (inner, remote) = (at(host::<F>(0), 40_001), at(F::CLIENT, 443));
        let packet = |flags| TestPacket::new(inner, remote, Body::Tcp(flags));
        let outer = at(F::LISTEN, goes_out(&world, &packet(flags::SYN)));
        let answer = |flags| TestPacket::new(remote, outer, Body::Tcp(flags));
        comes_in(&world, &answer(flags::SYN_ACK), inner);
        assert_eq!(goes_out(&world, &packet(flags::ACK)), outer.port());
        assert_eq!(world.state(&packet(0)), Some(FlowState::Established));
        // The flow and its mapping.
        assert_eq!(world.entries().0, 4);
        for _ in 0..3 {
            let data = packet(flags::ACK);
            world.forwards(Hook::Xdp, &data, Direction::Forward, &data.forwarded(outer, remote));
            let data = answer(flags::ACK);
            world.forwards(Hook::Xdp, &data, Direction::Reply, &data.forwarded(remote, inner));
        }
        assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 1);
    }
}

/// Simultaneous open (RFC 5382 REQ-2): the SYNs cross.
fn both_sides_may_begin_at_once<F: TestFamily>() {
    for filtering in [ENDPOINT, ADDRESS, ADDRESS_AND_PORT] {
        let world = gateway::<F>(filtering);
        let (inner, remote) = (at(host::<F>(0), 61_001), at(F::CLIENT, 443));
        let out = |flags| TestPacket::new(inner, remote, Body::Tcp(flags));
        let back = |flags| TestPacket::new(remote, at(F::LISTEN, 61_001), Body::Tcp(flags));
        assert_eq!(goes_out(&world, &out(flags::SYN)), 61_001);
        comes_in(&world, &back(flags::SYN), inner);
        assert_eq!(goes_out(&world, &out(flags::SYN_ACK)), 61_001);
        comes_in(&world, &back(flags::SYN_ACK), inner);
        assert_eq!(goes_out(&world, &out(flags::ACK)), 61_001);
        comes_in(&world, &back(flags::ACK), inner);
        assert_eq!(world.state(&out(0)), Some(FlowState::Established), "filtering {filtering:#x}");
    }
}

/// RFC 4787 REQ-9: the other host sees the sender as the world does, and its filtering is that of a mapping.
fn hairpin_shows_the_outer_address_and_filters<F: TestFamily>() {
    for body in [Body::Udp, Body::Tcp(flags::SYN)] {
        for filtering in [ENDPOINT, ADDRESS, ADDRESS_AND_PORT] {
            let world = gateway::<F>(filtering);
            let (one, two) = (at(host::<F>(0), 61_001), at(host::<F>(1), 61_003));
            for inner in [one, two] {
                goes_out(&world, &TestPacket::new(inner, at(F::CLIENT, 443), body));
            }
            let (outer_one, outer_two) = (at(F::LISTEN, 61_001), at(F::LISTEN, 61_003));
            let first = TestPacket::new(one, outer_two, body);
            from_inside(&world);
            if filtering == ENDPOINT {
                world.out(&first, outer_one, two);
            } else {
                world.leaves(Hook::Tc, &first, Outcome::DropFiltered);
                // The first has sent, so the second gets through, and opens its own side by that.
                let second = TestPacket::new(two, outer_one, body);
                world.out(&second, outer_two, one);
            }
            let answers = TestPacket::new(one, outer_two, tcp_answer(body));
            let expected = answers.forwarded(outer_one, two);
            let (verdict, bytes) = world.process_bytes(Hook::Tc, answers.frame());
            assert_eq!((verdict.outcome, bytes), (Outcome::Forwarded, expected.frame()), "filtering {filtering:#x}");
            // Nobody is at another port of ours.
            world.leaves(Hook::Tc, &first.with(|p| p.dst.set_port(61_005)), Outcome::NotOurs);
        }
    }
    // Pings to our own address are for this machine.
    let world = gateway::<F>(ENDPOINT);
    from_inside(&world);
    world.leaves(Hook::Tc, &going_out::<F>(0, at(F::LISTEN, 0), Body::EchoRequest), Outcome::NotOurs);
}

fn what_cannot_begin_goes_nowhere<F: TestFamily>() {
    let world = gateway::<F>(ENDPOINT);
    from_inside(&world);
    let remote = at(F::CLIENT, 443);
    for body in [Body::Tcp(flags::RST), Body::Tcp(flags::SYN_ACK), Body::EchoReply] {
        world.leaves(Hook::Tc, &going_out::<F>(61_001, remote, body), Outcome::DropStray);
    }
    assert_eq!(world.entries(), (0, 0));
    assert_eq!(goes_out(&world, &going_out::<F>(61_001, remote, Body::Tcp(flags::SYN))), 61_001);
    let other = at(F::OTHER_CLIENT, 443);
    for flags in [flags::ACK, flags::RST, flags::SYN_ACK, flags::FIN_ACK] {
        stays_out(&world, &TestPacket::new(other, at(F::LISTEN, 61_001), Body::Tcp(flags)), Outcome::Stray);
    }
    // An echo request has no port to find a mapping by, not even where one has the identifier 0.
    assert_eq!(goes_out(&world, &going_out::<F>(0, at(F::CLIENT, 0), Body::EchoRequest)), 0);
    for body in [Body::EchoRequest, Body::EchoReply] {
        stays_out(&world, &TestPacket::new(at(F::OTHER_CLIENT, 0), at(F::LISTEN, 0), body), Outcome::NotOurs);
    }
}

/// RFC 4787 REQ-3 b and REQ-4.
fn ports_keep_range_and_parity<F: TestFamily>() {
    for port in [1, 53, 123, 500, 1023] {
        let world = gateway::<F>(ADDRESS);
        assert_eq!(goes_out(&world, &going_out::<F>(port, at(F::CLIENT, 123), Body::Udp)), port);
    }
    for port in [40_000, 40_001, 1024, 1025] {
        let world = gateway::<F>(ADDRESS);
        let outer = goes_out(&world, &going_out::<F>(port, at(F::CLIENT, 123), Body::Udp));
        assert!(outer >= 1024 && outer % 2 == port % 2, "{port} became {outer}");
    }
}

/// A port in the range of local programs, a port of services, another one; named alone and in a range.
fn a_published_port_is_its_hosts_own_outside<F: TestFamily>() {
    let remote = at(F::CLIENT, 443);
    for port in [51_820, 500, 61_001] {
        for (to, is_its_own) in
            [(at(host::<F>(0), port), true), (at(host::<F>(0), port + 1), false), (at(host::<F>(1), port), false)]
        {
            for in_a_range in [false, true] {
                let mut world = gateway::<F>(ADDRESS);
                if in_a_range {
                    let first = |of: SocketAddr, by: u16| at(of.ip(), of.port() - by);
                    let ends = (at(F::LISTEN, port & !3), first(to, port & 3));
                    world.forward_block(ends, (17, 4), Source::Address(F::OURS));
                } else {
                    world.forward(at(F::LISTEN, port), to, Source::Address(F::OURS));
                }
                let outer = goes_out(&world, &going_out::<F>(port, remote, Body::Udp));
                assert_eq!(outer == port, is_its_own, "{port} {to} {in_a_range}");
                // Who comes by the listen meets the same host, as the rule says.
                from_outside(&world);
                let client = TestPacket::new(at(F::CLIENT, 444), at(F::LISTEN, port), Body::Udp);
                assert_eq!(world.process_bytes(Hook::Tc, client.frame()).0.outcome, Outcome::Forwarded);
                assert_eq!(world.flow(&client).unwrap().rewrite.src, F::address(F::OURS));
            }
        }
        // A client has come from the very port that the host sends to: its packets could not be told from answers.
        let mut world = gateway::<F>(ADDRESS);
        world.forward(at(F::LISTEN, port), at(host::<F>(0), port), Source::Address(F::OURS));
        from_outside(&world);
        let client = TestPacket::new(remote, at(F::LISTEN, port), Body::Udp);
        assert_eq!(world.process_bytes(Hook::Tc, client.frame()).0.outcome, Outcome::Forwarded);
        assert_ne!(goes_out(&world, &going_out::<F>(port, remote, Body::Udp)), port);
    }
}

fn ports_that_are_somebodys_are_not_taken<F: TestFamily>() {
    let remote = at(F::CLIENT, 443);
    let listens = |world: &mut World<F>, kind: u8| match kind {
        0 => {
            world.tables.sockets.insert((17, F::address(F::LISTEN), 61_001_u16.to_be()));
        }
        1 => {
            world.forward(at(F::LISTEN, 61_001), at(F::OTHER_CLIENT, 80), Source::Preserved);
        }
        2 => {
            let ends = (at(F::LISTEN, 60_992), at(F::OTHER_CLIENT, 60_992));
            world.forward_block(ends, (17, 4), Source::Preserved);
        }
        _ => {
            world.forward_address(F::LISTEN, F::OTHER_CLIENT, Source::Address(F::OURS));
        }
    };
    for kind in 0..4 {
        let mut world = gateway::<F>(ADDRESS);
        listens(&mut world, kind);
        let outer = goes_out(&world, &going_out::<F>(61_001, remote, Body::Udp));
        // A whole address leaves its ports to whoever has them, or nobody could go out with it.
        assert_eq!(outer == 61_001, kind == 3, "{kind}");
        assert_eq!(world.tables.counted(101).times(Event::PortClash), usize::from(kind != 3));
    }
    // A mapping's port is not for a [[forward]] that masquerades with the same address.
    let mut world = gateway::<F>(ADDRESS);
    assert_eq!(goes_out(&world, &going_out::<F>(61_001, remote, Body::Udp)), 61_001);
    world.forward(at(F::OURS, 80), at(F::OTHER_CLIENT, 8080), Source::Address(F::LISTEN));
    from_outside(&world);
    let client = TestPacket::new(at(F::CLIENT, 61_001), at(F::OURS, 80), Body::Udp);
    world.process_bytes(Hook::Tc, client.frame());
    let port = u16::from_be(world.flow(&client).unwrap().rewrite.src_port);
    assert_ne!(port, 61_001);
    // What this machine has opened meanwhile goes to it.
    world.tables.sockets.insert((17, F::address(F::LISTEN), 61_001_u16.to_be()));
    stays_out(&world, &TestPacket::new(at(F::CLIENT, 5), at(F::LISTEN, 61_001), Body::Udp), Outcome::ToSelf);
}

fn ports_run_out_and_come_back<F: TestFamily>() {
    let mut world = gateway::<F>(ADDRESS);
    for (range, port) in world.tables.settings.ports.iter_mut().zip([2000, 3000, 4000]) {
        (range.first, range.last) = (port, port);
    }
    let packet = |number: u16| going_out::<F>(20_000 + number, at(F::CLIENT, 443), Body::Udp);
    let ports: Vec<u16> = (0..3).map(|number| goes_out(&world, &packet(number))).collect();
    assert_eq!(ports, [2000, 3000, 4000]);
    from_inside(&world);
    world.leaves(Hook::Tc, &packet(3), Outcome::DropNoPort);
    // Who has a port keeps it towards everybody.
    assert_eq!(goes_out(&world, &packet(1).with(|p| p.dst = at(F::OTHER_CLIENT, 1))), 3000);
    world.tables.wait(TIMEOUTS.udp_opening + 1);
    assert_eq!(goes_out(&world, &packet(3)), 2000, "what has expired makes room");
}

fn a_mapping_lives_while_packets_go_out<F: TestFamily>() {
    let world = gateway::<F>(ADDRESS);
    let packet = going_out::<F>(40_001, at(F::CLIENT, 443), Body::Udp);
    let outer = goes_out(&world, &packet);
    let from_another_port = TestPacket::new(at(F::CLIENT, 999), at(F::LISTEN, outer), Body::Udp);
    // Nobody answers, but the host keeps sending (RFC 4787 REQ-6).
    for _ in 0..5 {
        world.tables.wait(TIMEOUTS.udp_opening - 1);
        assert_eq!(goes_out(&world, &packet), outer);
    }
    world.tables.wait(TIMEOUTS.udp_opening - 1);
    assert_eq!(goes_out(&world, &packet.with(|p| p.dst = at(F::OTHER_CLIENT, 1))), outer);
    comes_in(&world, &from_another_port, at(host::<F>(0), 40_001));
    // What comes in does not keep it (RFC 4787 section 4.3).
    world.tables.wait(TIMEOUTS.udp_opening + 1);
    stays_out(&world, &from_another_port, Outcome::NotOurs);
}

fn a_flood_of_new_flows_leaves_the_mappings_of_established_ones<F: TestFamily>() {
    let world = gateway::<F>(ADDRESS);
    let (inner, remote) = (at(host::<F>(0), 40_001), at(F::CLIENT, 443));
    let packet = TestPacket::new(inner, remote, Body::Udp);
    let outer = goes_out(&world, &packet);
    comes_in(&world, &TestPacket::new(remote, at(F::LISTEN, outer), Body::Udp), inner);
    // The mapping of the flow may have been pushed out just before the flow is established: it is made anew.
    for pushed_out in [false, true] {
        if pushed_out {
            world.tables.embryonic.borrow_mut().retain(|key, _| !key.is_of_no_packet());
        }
    }
    assert_eq!(goes_out(&world, &packet), outer);
    assert_eq!(world.entries().0, 4, "flow and mapping are protected");
    world.tables.embryonic.borrow_mut().clear();
    assert_eq!(goes_out(&world, &packet.with(|p| p.dst = at(F::OTHER_CLIENT, 1))), outer);
}

/// Two packets of one source at the same time on two CPUs: one mapping.
fn another_cpu_that_is_faster_wins<F: TestFamily>() {
    // Before which insertion the other CPU is let in: two are the mapping's, one the permission's, two the flow's.
    for moment in 0..5 {
        let world = gateway::<F>(ADDRESS_AND_PORT);
        let packet = going_out::<F>(40_001, at(F::CLIENT, 443), Body::Udp);
        let elsewhere = packet.with(|p| p.dst = at(F::OTHER_CLIENT, 444));
        let mut frame = elsewhere.frame();
        *world.tables.other_cpu.borrow_mut() = Some((
            moment,
            std::boxed::Box::new(move |tables| {
                let parsed = F::walk(&frame.as_mut_slice(), crate::test_packet::NETWORK).unwrap();
                open::<F, _>(tables, &parsed).unwrap();
            }),
        ));
        let outer = goes_out(&world, &packet);
        let other_outer = world.flow(&elsewhere).map(|flow| u16::from_be(flow.rewrite.src_port));
        if let Some(other_outer) = other_outer {
            assert_eq!(outer, other_outer, "let in before insertion {moment}");
        }
        // Nothing is left of the choice that was given back.
        let mappings = world.tables.embryonic.borrow().keys().filter(|key| key.is_of_no_packet()).count();
        assert_eq!(mappings, 2, "let in before insertion {moment}");
    }
}

fn forged_sources_are_not_ours<F: TestFamily>() {
    let world = gateway::<F>(ENDPOINT);
    stays_out(&world, &going_out::<F>(61_001, at(F::CLIENT, 443), Body::Udp), Outcome::NotOurs);
    assert_eq!(world.entries(), (0, 0));
}

fn protocols_without_ports_have_one_host_for_each_remote_end<F: TestFamily>() {
    let world = gateway::<F>(ENDPOINT);
    let packet = going_out::<F>(0, at(F::CLIENT, 0), Body::Other(47));
    goes_out(&world, &packet);
    let other = packet.with(|p| p.src.set_ip(host::<F>(1)));
    from_inside(&world);
    world.leaves(Hook::Tc, &other, Outcome::DropNoPort);
    assert_eq!(goes_out(&world, &other.with(|p| p.dst.set_ip(F::OTHER_CLIENT))), 0);
    // Nobody else comes in: there is no port to tell whom to.
    comes_in(&world, &TestPacket::new(at(F::CLIENT, 0), at(F::LISTEN, 0), Body::Other(47)), at(host::<F>(0), 0));
    let stranger = at(F::OURS, 0);
    stays_out(&world, &TestPacket::new(stranger, at(F::LISTEN, 0), Body::Other(47)), Outcome::NotOurs);
}

proptest! {
    /// Whatever hosts send to whomever, each of their ports is one outer port, no two share one, and what is answered
    /// comes back to who asked.
    #[test]
    fn mappings_are_one_to_one(sent in proptest::collection::vec((0..4_u8, 0..6_u16, 0..2_u8, 0..4_u16), 1..60)) {
        type F = crate::parse::Ipv4;
        let world = gateway::<F>(ADDRESS);
        let mut outer_ports = std::collections::BTreeMap::new();
        for (number, port, remote, remote_port) in sent {
            let inner = at(host::<F>(number), 40_000 + port);
            let remote = at([F::CLIENT, F::OTHER_CLIENT][usize::from(remote)], 1 + remote_port);
            world.tables.ingress.set(INSIDE);
            if number > 1 {
                // Hosts of the network whose way is not known: reached by the way out, which is not where they are.
                continue;
            }
            let outer = goes_out(&world, &TestPacket::new(inner, remote, Body::Udp));
            prop_assert_eq!(*outer_ports.entry(inner).or_insert(outer), outer);
            comes_in(&world, &TestPacket::new(remote, at(F::LISTEN, outer), Body::Udp), inner);
        }
        let distinct: BTreeSet<u16> = outer_ports.values().copied().collect();
        prop_assert_eq!(distinct.len(), outer_ports.len());
    }
}
